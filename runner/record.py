"""What is known of a run when it starts, and what is known when it has ended. Plain values and their exact bytes."""

import datetime as dt
import json
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn, TypeVar

from runner.canonical import canonical_bytes, digest_of_value, is_digest
from runner.config import Scheduler, Tracking
from runner.engines.request import Limits
from runner.parse import Mistake, ParseError, Scalar, parse, plain

VERSION = 1

Status = Literal["done", "failed", "interrupted", "out-of-memory", "timeout", "lost", "pruned"]
Metrics = dict[str, float | str]
"""Name -> value; what JSON cannot say is spelled 'nan', 'inf' or '-inf'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFact:
    """Size and digest of a file that a run left."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """Where a run's metrics went beside its own folder."""

    mode: Literal["online", "offline", "off"]
    id: str | None = None
    url: str | None = None
    path: str | None = None
    """Folder of the offline run, relative to the run's folder."""
    message: str = ""
    """Why tracking stopped early; empty where it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conducted:
    """How a run was conducted, so that a replay is conducted alike; none of it decides bits."""

    limits: Limits
    tracking: Tracking
    scheduler: Scheduler
    data_recipe: str | None
    """Recipe whose data sets were mounted; None where the image holds its own."""
    nodes: int = 1
    """Machines that shared the ranks, each within these limits. Where a backend adds up, it may do so otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a cluster ran a run."""

    job: str
    """Id of its SLURM job."""
    attempts: int
    """How often it was started; only the last one's time is the record's duration."""
    nodes: str = ""
    """Of the last attempt, as SLURM writes them: node[1-2]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a replay proved, in one line, and where it parted from the run."""

    result: Literal["identical", "identical in part", "compared", "diverged", "not comparable"]
    """`compared`: equal, but on hardware that the level does not promise it for."""
    message: str
    step: int | None = None
    """The first step that differs; 0 for what is before the first step."""
    ranks: tuple[int, ...] = ()
    """Whose own part of that step differs."""
    channel: str | None = None
    """The first thing that differs, in the order of cause and effect: a channel of the trace, or a file."""
    tensor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What is known of a run before its container exists."""

    version: int = VERSION
    xrun: str
    """Version of xrun."""
    engine: str
    level: str
    spec_digest: str
    lock_digest: str | None = None
    image_digest: str
    source: str
    """Digest of the source snapshot."""
    overrides: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    """Of the xrun command."""
    started_at: str
    """UTC, as `timestamp` writes it."""
    host: dict[str, Scalar]
    """Name, CPU, kernel, driver: recorded, never compared."""
    conducted: Conducted | None = None
    nonce: str | None = None
    """Proves that a completion manifest is this run's, also to an xrun that takes the run up."""
    replay_of: str | None = None
    continues: str | None = None
    """The run whose checkpoint was taken up."""
    sweep: str | None = None
    trial: int | None = None
    """Number of the trial in its sweep."""

    def facts(self) -> dict[str, Any]:
        """Return the fields by name: what a record takes over as it is."""
        return {known.name: getattr(self, known.name) for known in fields(Started)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Started):
    """A run that has ended: what was known at its start, and how it ended."""

    id: str
    status: Status
    exit_code: int | None
    """Of the container; None where it could not be had."""
    message: str = ""
    """Why the run did not end well, in one line."""
    fingerprint: str | None = None
    metrics: Metrics = field(default_factory=dict)
    finished_at: str
    duration_s: float
    wandb: Tracked | None = None
    verdict: Verdict | None = None
    """Of a replay that found out."""
    placed: Placed | None = None
    """None for a run on this machine."""
    files: dict[str, FileFact] = field(default_factory=dict)
    """Path relative to the run's folder -> what was there at the end."""


T = TypeVar("T", Started, Record)


def to_bytes(value: Started) -> bytes:
    """Return a record's file: canonical JSON with the digest of all the rest."""
    content = plain(value)
    return canonical_bytes(content | {"digest": digest_of_value(content)})


def from_bytes(kind: type[T], data: bytes) -> T:
    """Read what `to_bytes` wrote. Raises ParseError for any other byte."""
    try:
        content = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"is no JSON: {error}") from error
    if not isinstance(content, dict) or canonical_bytes(content) != data:
        raise _damaged("has been edited: it is not the text that xrun writes")
    stated = content.pop("digest", None)
    if stated != (actual := digest_of_value(content)):
        raise _damaged(f"has been edited: it states {stated}, its content is {actual}")
    value = parse(kind, content)
    if mistakes := _mistakes(value):
        raise ParseError(mistakes)
    return value


def timestamp(seconds: float) -> str:
    """Return seconds since 1970 as UTC in ISO 8601, to the millisecond, so that texts sort as times do."""
    moment = dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def _mistakes(value: Started) -> list[Mistake]:
    mistakes = []
    if value.version != VERSION:
        mistakes.append(Mistake(place="version", what=f"this xrun reads version {VERSION}, found {value.version}"))
    digests = {key: getattr(value, key) for key in ("spec_digest", "image_digest", "source")}
    times = {"started_at": value.started_at}
    if isinstance(value, Record):
        digests |= {f"files.{path}": fact.digest for path, fact in value.files.items()}
        times["finished_at"] = value.finished_at
    mistakes += [
        Mistake(place=place, what=f"expected a digest (sha256:<64 hex>), found {digest!r}")
        for place, digest in digests.items()
        if not is_digest(digest)
    ]
    mistakes += [
        Mistake(place=place, what=f"expected a time such as 2026-01-31T12:00:00.000Z, found {text!r}")
        for place, text in times.items()
        if not _TIMESTAMP.fullmatch(text)
    ]
    return mistakes


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands twice")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _damaged(what: str) -> ParseError:
    return ParseError([Mistake(place="", what=what)])
