"""What SLURM says of a job, in one of a few words."""

from dataclasses import dataclass
from typing import Literal

Word = Literal["queued", "running", "requeued", "done", "failed", "cancelled", "timeout", "out-of-memory", "lost"]
QUEUE_FORMAT = "%i|%j|%T|%r|%Z"

_QUEUED = {"PENDING", "CONFIGURING"}
# None of these is an end, whatever it sounds like: a job that is requeued goes through them.
_REQUEUED = {"PREEMPTED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "NODE_FAIL"}
_ENDED: dict[str, Word] = {
    "COMPLETED": "done",
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "out-of-memory",
    "FAILED": "failed",
    "NODE_FAIL": "lost",
    "BOOT_FAIL": "lost",
    "PREEMPTED": "lost",
    "REVOKED": "lost",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """How a job is."""

    word: Word
    reason: str = ""
    """Why it waits, or how it ended, in SLURM's words."""

    @property
    def has_ended(self) -> bool:
        """Whether no next attempt can follow."""
        return self.word not in {"queued", "running", "requeued"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """A line of the queue; an array's tasks have one each."""

    id: str
    """Of an array's task: <array>_<index>."""
    name: str
    folder: str
    """The working folder: with the name, it tells a job from all others."""
    state: JobState


def queued_jobs(text: str) -> list[QueuedJob]:
    """Read what squeue prints in QUEUE_FORMAT."""
    jobs = []
    for line in text.splitlines():
        id_, name, state, reason, folder = line.split("|", 4)
        jobs.append(QueuedJob(id=id_, name=name, folder=folder, state=_queued(state, reason)))
    return jobs


def _queued(state: str, reason: str) -> JobState:
    reason = "" if reason == "None" else reason
    if state in _QUEUED:
        return JobState(word="queued", reason=reason)
    if state in _REQUEUED:
        return JobState(word="requeued", reason=state)
    return JobState(word=_ENDED.get(state, "running"), reason=state if state in _ENDED else "")


def accounted_jobs(text: str) -> dict[str, JobState]:
    """Read what `sacct -XnP -o JobID,State,ExitCode` prints, of jobs that the queue has no more."""
    states = {}
    for line in text.splitlines():
        id_, state, code = line.split("|")
        # "CANCELLED by 1000" is one state.
        word = _ENDED.get(state.partition(" ")[0])
        if word is not None:
            states[id_] = JobState(word=word, reason=f"{state}, exit code {code.partition(':')[0]}")
    return states


def left_behind(exit_code: int | None) -> JobState:
    """Return how a job is that SLURM no longer knows: by the exit code that its script left, if it did."""
    if exit_code is None:
        return JobState(word="lost", reason="SLURM knows the job no more")
    return JobState(word="failed" if exit_code else "done", reason=f"exit code {exit_code}")
