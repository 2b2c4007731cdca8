"""Runs that are killed at random moments, and go on until they are done."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from inside.jobs import make_spec, run, start
from runner.inside.trace import TraceError
from runner.traces import opened_traces

STEPS = 12


class Whole(NamedTuple):
    """A run that nobody killed."""

    fingerprint: str
    step_s: float


class Survived(NamedTuple):
    """A run that was killed, and done in the end."""

    fingerprint: str
    went_on_from: tuple[int, ...]
    """After each kill, the step of the newest checkpoint; 0 where there was none."""


def killed_spec(ranks: int, precision: str) -> dict[str, Any]:
    """Return the spec of a run with all kinds of state and many checkpoints."""
    return make_spec(
        ranks=ranks,
        determinism__level="resume",
        config__precision=precision,
        config__training__steps=STEPS,
        config__training__checkpoint_every_steps=2,
        config__training__clip_norm=1.0,
    )


def whole(folder: Path, spec: Mapping[str, Any]) -> Whole:
    """Train without a kill, and see how long a step takes with its share of checkpoints."""
    ran = run(folder, spec, name="whole")
    fingerprint = str(ran.done["fingerprint"])
    second, last = (ran.out / "checkpoints" / f"step-{step:08d}" / "manifest.json" for step in (2, STEPS))
    return Whole(fingerprint, (last.stat().st_mtime - second.stat().st_mtime) / (STEPS - 2))


def killed_until_done(folder: Path, spec: Mapping[str, Any], step_s: float, draw: random.Random, most: int) -> Survived:
    """Kill a run at least once and at most so often, each time at a moment of its training that `draw` picks.

    Raises AssertionError if a process ends in any other way.
    """
    went_on_from: list[int] = []
    for attempt in range(1000):
        past = f"out-{attempt - 1}" if went_on_from else None
        resume = {"XRUN_RESUME": str(folder / past)} if past else {}
        process = start(folder, spec, name=(name := f"out-{attempt}"), environment=resume)
        out = folder / name
        if len(went_on_from) < most:
            first = went_on_from[-1] if went_on_from else 0
            _kill_at(process, out, draw.uniform(first, STEPS), step_s, draw)
        output = "".join(process.communicate(timeout=600))
        if (out / "done.json").exists():
            if went_on_from:
                return Survived(json.loads((out / "done.json").read_bytes())["fingerprint"], tuple(went_on_from))
            continue  # it was done before its moment came: once more from the start
        assert process.returncode == -signal.SIGKILL, output
        went_on_from.append(_newest(out))
    raise AssertionError("no moment ever came in time")


def _kill_at(process: "subprocess.Popen[str]", out: Path, moment: float, step_s: float, draw: random.Random) -> None:
    """Kill a run's processes so many steps after the start of its training, counted with a fraction."""
    ranks = json.loads(out.with_suffix(".json").read_bytes())["virtual_ranks"]
    while process.poll() is None and _records(out, ranks) < int(moment):
        time.sleep(0.0005)
    time.sleep(step_s * (moment % 1))
    pids = below(process.pid)
    draw.shuffle(pids)
    for pid in [*pids, process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _records(out: Path, ranks: int) -> int:
    """Return how many steps every rank has finished; -1 before the training starts."""
    try:
        with opened_traces(out, ranks) as traces:
            return min(trace.count() for trace in traces)
    except TraceError:
        return -1


def below(root: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _newest(out: Path) -> int:
    """Return the step of the newest checkpoint; 0 where there is none."""
    return max((int(path.name.rpartition("-")[2]) for path in out.glob("checkpoints/step-*")), default=0)
