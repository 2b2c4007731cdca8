"""A run of any program: its declared outputs are what is pinned and compared."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from runner.inside.files import Events, digest_of_file, write_done
from runner.inside.refusal import Refused

if TYPE_CHECKING:
    from pathlib import Path

    from runner.inside.job import Job


# Metrics are passed on while the command runs, this often.
_LOOK_S = 0.5


def run(job: Job) -> int:
    """Run the experiment's command in the run's folder. Returns its exit code; done.json is written only after 0."""
    experiment = job.config["experiment"]
    with Events(job.out / "events.jsonl") as events:
        events.write("start", command=experiment["command"])
        metrics = _Metrics(job.out, experiment.get("metrics"))
        code = _execute(job, metrics, events)
        if code:
            _write_error(job.out, f"error: {experiment['command'][0]} ended with exit code {code}\n")
            return code if code > 0 else 128 - code
        metrics.pass_on(events, is_whole=True)
        names = sorted({*experiment["outputs"], *filter(None, [experiment.get("metrics")])})
        fingerprint = _fingerprint(job.out, names)
        events.write("end", step=metrics.count)
    done = {"nonce": job.nonce, "fingerprint": fingerprint, "weights": None, "steps": metrics.count}
    write_done(job.out, {**done, "metrics": metrics.last})
    return 0


def _execute(job: Job, metrics: _Metrics, events: Events) -> int:
    with subprocess.Popen(job.config["experiment"]["command"], cwd=job.out) as command:
        # By a thread, which sees the end at once; wait(timeout) looks twenty times a second.
        waiting = threading.Thread(target=command.wait, daemon=True)
        waiting.start()
        while waiting.is_alive():
            waiting.join(_LOOK_S)
            metrics.pass_on(events, is_whole=False)
    return int(command.returncode)


class _Metrics:
    """The file to which a command appends one JSON object of metrics a line."""

    def __init__(self, out: Path, name: str | None) -> None:
        self.count = 0
        self.last: dict[str, Any] = {}
        self._path = None if name is None else out / name
        self._position = 0

    def pass_on(self, events: Events, *, is_whole: bool) -> None:
        """Tell of the lines that are new. The last one may be half written, unless the file is whole."""
        if self._path is None or not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            content = file.read()
        end = len(content) if is_whole else content.rfind(b"\n") + 1
        self._position += end
        for line in content[:end].decode("utf-8").splitlines():
            if line.strip():
                self.last = json.loads(line)
                self.count += 1
                events.write("eval", step=self.last.get("step", self.count), metrics=self.last)


def _fingerprint(out: Path, names: list[str]) -> str:
    missing = [name for name in names if not (out / name).is_file()]
    if missing:
        raise Refused(f"the command ended without writing {', '.join(missing)}, which experiment.outputs declares")
    content = "".join(f"{digest_of_file(out / name)}  {name}\n" for name in names)
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def _write_error(out: Path, message: str) -> None:
    (out / "errors").mkdir(exist_ok=True)
    (out / "errors" / "rank0.txt").write_text(message, encoding="utf-8")
