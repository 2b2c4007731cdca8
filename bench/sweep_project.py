"""A project for measurements of sweeps: conf/, experiments, locks and recipes of this one, and a short run."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.store import RunStore

ROOT = Path(__file__).parent.parent
SHORT_WORDS = ("experiment=short", "hardware.threads=1")
NO_IMAGE = f"""\
name: none
source: registry
ref: registry.example/none@sha256:{"0" * 64}
platform: linux/amd64
python: python3
"""
# Sleeps, so that nothing but its start and its end takes a core from others; the clock is the machine's.
SHORT = """\
import json, sys, time
begun_s = time.monotonic()
time.sleep(float(sys.argv[1]))
x, y = float(sys.argv[2]), float(sys.argv[3])
loss = (x + 2) ** 2 + 10 * (y - 0.9 - 0.3 * (x + 2)) ** 2
with open("metrics.jsonl", "w") as metrics:
    print(json.dumps({"step": 1, "loss": loss}), file=metrics)
with open("span.json", "w") as span:
    json.dump([begun_s, time.monotonic()], span)
"""


@dataclass(frozen=True)
class Use:
    """One trial's use of a slot, by the machine's monotonic clock."""

    trial: int
    slot: str
    from_s: float
    to_s: float


@dataclass(frozen=True)
class SweepProject:
    """A folder in which sweeps are run."""

    folder: Path
    engine: str
    slots: int

    def lay_out(self) -> None:
        """Copy what a project has, and add the short run."""
        for name in ("conf", "experiments", "lock", "images"):
            shutil.copytree(ROOT / name, self.folder / name)
        (self.folder / "conf" / "image" / "none.yaml").write_text(NO_IMAGE)
        words = ["${model.seconds}", "${optim.x}", "${optim.y}"]
        argv = json.dumps(["python3", "-c", SHORT, *words])
        (self.folder / "conf" / "experiment" / "short.yaml").write_text(
            f"# @package _global_\nexperiment: {{name: short, command: {argv}, metrics: metrics.jsonl}}\n"
            "model: {seconds: 1.0}\noptim: {x: 0.0, y: 0.0}\ntraining: {steps: 1, batch_size: 1}\n"
        )

    def start(self, *words: str, said: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start xrun; what it says goes to a file, to be read where it fails."""
        image = ["image=none"] if self.engine == "host" else []
        argv = [sys.executable, "-m", "runner", *words, f"engine={self.engine}", *image, "tracking=off"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XRUN_LEASES": str(self.folder / "leases")}
        with (said or self.said).open("ab") as file:
            return subprocess.Popen(
                [*argv, f"scheduler.slots={self.slots}"],
                cwd=self.folder,
                env=environment,
                stdout=file,
                stderr=file,
            )

    def run(self, *words: str) -> None:
        """Run xrun to its end, which must be a good one."""
        assert self.start(*words).wait() == 0, self.said.read_text()

    @property
    def said(self) -> Path:
        """What all xruns have said."""
        return self.folder / "said.txt"

    @property
    def store(self) -> RunStore:
        """The runs."""
        return RunStore(self.folder / "runs")

    def uses(self) -> list[Use]:
        """Return the log of leases of all sweeps, a slot a line of each trial."""
        lines = [json.loads(line) for path in self._logs() for line in path.read_text().splitlines()]
        return [
            Use(line["trial"], slot, line["from_s"], line["to_s"])
            for line in lines
            for slot in line["slots"].removeprefix("cpu ").split(",")
        ]

    def _logs(self) -> Iterable[Path]:
        return sorted(self.folder.glob("runs/sweeps/*/leases.jsonl"))

    def spans(self) -> dict[int, tuple[float, float]]:
        """Return from when to when the program of each trial of short runs ran."""
        found = {}
        for run in self.store.runs():
            if run.facts is not None and run.facts.trial is not None and run.status == "done":
                begun_s, ended_s = json.loads((run.folder.out / "span.json").read_text())
                found[run.facts.trial] = (begun_s, ended_s)
        return found


def gaps_s(uses: Iterable[Use]) -> list[float]:
    """Return for how long each slot was free between two uses, by its log; less than nothing where two had it."""
    by_slot: dict[str, list[Use]] = defaultdict(list)
    for use in sorted(uses, key=lambda use: use.from_s):
        by_slot[use.slot].append(use)
    return [later.from_s - earlier.to_s for own in by_slot.values() for earlier, later in itertools.pairwise(own)]


def utilisation(spans: Iterable[tuple[float, float]], slots: int) -> float:
    """Return which part of so many slots was in use, from the first start to the last end."""
    spans = list(spans)
    whole_s = max(end for _, end in spans) - min(begun for begun, _ in spans)
    return sum(end - begun for begun, end in spans) / (slots * whole_s)


def load() -> dict[str, Any]:
    """Return how busy the machine was in the last minute, with all that ran beside."""
    return {"load_1_min": round(os.getloadavg()[0], 1), "cores": len(os.sched_getaffinity(0))}
