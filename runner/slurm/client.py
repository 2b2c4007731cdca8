"""SLURM's own commands, each under a time limit: they wait long for a controller that is gone."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import runner
from runner.errors import SchedulerError
from runner.slurm.script import Runtime
from runner.slurm.states import QUEUE_FORMAT, JobState, QueuedJob, accounted_jobs, queued_jobs

_TIMEOUT_S = 30
_QUEUE_EVERY_S = 5.0
# How sbatch says that it is not this job, but the number of them.
_TOO_MANY = re.compile(r"MaxSubmit|MaxJobs|submission limit|[Jj]ob array index|unable to accept job", re.ASCII)


class Unanswered(SchedulerError):
    """A command did not end: what it was to do may have been done."""


class TooMany(SchedulerError):
    """SLURM takes no more jobs of this user now, or not as many in one array."""


class Slurm:
    """The cluster that this machine's commands speak to."""

    def __init__(self) -> None:
        self._queue: tuple[float, list[QueuedJob]] | None = None
        self.asked_at = 0.0
        """When the queue was asked, in seconds since 1970."""

    def queue(self, *, fresh: bool = False) -> list[QueuedJob]:
        """Return all jobs of this user: asked in one call, and again only after some seconds. Raises SchedulerError."""
        now_s = time.monotonic()
        if fresh or self._queue is None or now_s - self._queue[0] >= _QUEUE_EVERY_S:
            words = ("--me", "--noheader", "--array", "--states=all", f"--format={QUEUE_FORMAT}")
            self.asked_at = time.time()
            self._queue = (now_s, queued_jobs(_said("squeue", *words)))
        return self._queue[1]

    def submit(self, script: Path) -> str:
        """Submit a batch script and return the job's id. Raises SchedulerError, TooMany."""
        # With a cluster's name after it where there are several.
        job = _said("sbatch", "--parsable", str(script)).strip().partition(";")[0]
        self._queue = None
        return job

    def accounts(self, jobs: Collection[str]) -> dict[str, JobState]:
        """Return how jobs ended, by SLURM's accounts: empty where it keeps none."""
        if not jobs:
            return {}
        try:
            return accounted_jobs(_said("sacct", "-XnP", "-o", "JobID,State,ExitCode", "-j", ",".join(sorted(jobs))))
        except SchedulerError:
            return {}

    def cancel(self, jobs: Collection[str]) -> None:
        """Cancel jobs; those that have ended already are let be. Raises SchedulerError."""
        if jobs:
            _said("scancel", "--quiet", *sorted(jobs))
            self._queue = None

    def array_limit(self) -> int:
        """Return how many tasks an array may have. Raises SchedulerError."""
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _said("scontrol", "show", "config"), re.MULTILINE)
        return int(found[1]) if found else 1


def runtime(home: Path) -> Runtime:
    """Return this xrun, as the nodes run it."""
    assert runner.__file__ is not None
    return Runtime(python=sys.executable, path=str(Path(runner.__file__).parents[1]), home=str(home))


def _said(*argv: str) -> str:
    """Return what one of SLURM's commands prints. Raises SchedulerError where it fails or does not end."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise SchedulerError(
            f"scheduler=slurm: there is no {argv[0]} on this machine", hint="scheduler=local runs here"
        ) from None
    except subprocess.TimeoutExpired:
        raise Unanswered(f"{argv[0]} did not end in {_TIMEOUT_S} s", hint="scontrol ping") from None
    if done.returncode == 0:
        return done.stdout
    said = _last_line(done.stderr) or f"exit code {done.returncode}"
    if argv[0] == "sbatch" and _TOO_MANY.search(done.stderr):
        raise TooMany(said)
    raise SchedulerError(said, hint=_hint(argv))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _hint(argv: Sequence[str]) -> str:
    return "sinfo -s" if argv[0] == "sbatch" else "scontrol ping"


def job_of_this_process() -> str:
    """Return the id of the SLURM job that this process is part of."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
