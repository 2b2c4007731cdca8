"""A run of any program: its declared outputs are what is pinned and compared."""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

from runner.inside.digests import digest_of_file
from runner.inside.files import Events, write_done
from runner.inside.refusal import Refused

if TYPE_CHECKING:
    from pathlib import Path

    from runner.inside.job import Job


def run(job: Job) -> int:
    """Run the experiment's command in the run's folder. Returns its exit code; done.json is written only after 0."""
    experiment = job.config["experiment"]
    with Events(job.out / "events.jsonl") as events:
        events.write("start", command=experiment["command"])
        code = subprocess.run(experiment["command"], cwd=job.out, check=False).returncode
        if code:
            _write_error(job.out, f"error: {experiment['command'][0]} ended with exit code {code}\n")
            return code if code > 0 else 128 - code
        lines = _metrics(job.out, experiment.get("metrics"))
        for number, metrics in enumerate(lines, 1):
            events.write("eval", step=metrics.get("step", number), metrics=metrics)
        names = sorted({*experiment["outputs"], *filter(None, [experiment.get("metrics")])})
        fingerprint = _fingerprint(job.out, names)
        events.write("end", step=len(lines))
    done = {"nonce": job.nonce, "fingerprint": fingerprint, "weights": None, "steps": len(lines)}
    write_done(job.out, {**done, "metrics": lines[-1] if lines else {}})
    return 0


def _fingerprint(out: Path, names: list[str]) -> str:
    missing = [name for name in names if not (out / name).is_file()]
    if missing:
        raise Refused(f"the command ended without writing {', '.join(missing)}, which experiment.outputs declares")
    content = "".join(f"{digest_of_file(out / name)}  {name}\n" for name in names)
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def _metrics(out: Path, name: str | None) -> list[dict[str, Any]]:
    if name is None or not (out / name).is_file():
        return []
    return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines() if line.strip()]


def _write_error(out: Path, message: str) -> None:
    (out / "errors").mkdir(exist_ok=True)
    (out / "errors" / "rank0.txt").write_text(message, encoding="utf-8")
