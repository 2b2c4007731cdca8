"""What xrun and the process that speaks to Weights & Biases tell each other. Plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runner.parse import plain
from runner.record import Metrics, Started
from runner.spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What the child is told at its start, on one line of stdin."""

    mode: Literal["online", "offline"]
    name: str
    project: str
    entity: str | None
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, object]
    image_digest: str
    pid: int | None
    """The container's first process, whose tree's load is logged; None where it is out of sight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is tracked: a run, or a sweep as a whole."""

    job_type: Literal["train", "trial", "replay", "sweep"]
    group: str | None
    """Where the user asks for no other."""
    config: Mapping[str, object]
    facts: Mapping[str, object]
    image_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the child is told at the end, on the last line of stdin."""

    status: str
    exit_code: int | None
    fingerprint: str | None
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the child tells, on one line of stdout each."""

    kind: Literal["started", "trouble", "finished"]
    message: str = ""
    id: str | None = None
    mode: Literal["online", "offline"] = "offline"
    url: str | None = None
    path: str | None = None
    """Folder of W&B's files, relative to the run's folder."""


def subject_of(spec: RunSpec, started: Started) -> Subject:
    """Return what W&B is told that a run is."""
    facts = {
        "spec_digest": started.spec_digest,
        "lock_digest": started.lock_digest,
        "image_digest": started.image_digest,
        "source": started.source,
        "engine": started.engine,
        "level": started.level,
        "ranks": spec.ranks,
        "hardware": plain(spec.hardware),
        "replay_of": started.replay_of,
        "sweep": started.sweep,
        "trial": started.trial,
    }
    job_type: Literal["train", "trial", "replay"] = (
        "replay" if started.replay_of else "trial" if started.sweep else "train"
    )
    return Subject(
        job_type=job_type,
        group=started.sweep,
        config=spec.config,
        facts=facts,
        image_digest=started.image_digest,
    )
