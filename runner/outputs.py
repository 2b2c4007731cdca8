"""What a container wrote: how it ended, why it failed, what happens in it."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.canonical import is_digest
from runner.errors import RunFailed
from runner.hostile import Quota, fact, facts, names, opened, opened_folder
from runner.parse import ParseError, parse
from runner.record import FileFact, Metrics
from runner.terminal import clipped, printable

DONE = "done.json"
EVENTS = "events.jsonl"
Event = dict[str, Any]
"""One line of events.jsonl: `kind` is a string, every other key may be anything."""

_TEXT_CAP_BYTES = 16 << 20
_ERROR_CAP_BYTES = 64 << 10
_LINE_CAP_BYTES = 64 << 10
_BLOCK_BYTES = 1 << 20
_SHOWN_CAP = 300
_RANK_ERRORS = re.compile(r"rank([0-9]{1,6})\.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a run computed, every byte of its files checked on this side."""

    fingerprint: str
    weights: str | None
    """Digest of the final weights; None for a command."""
    steps: int
    metrics: Metrics
    files: dict[str, FileFact]
    """Path relative to the run's folder -> what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    nonce: str
    fingerprint: str
    weights: str | None
    steps: int
    metrics: dict[str, object]
    files: dict[str, FileFact]


def collect(out: Path, nonce: str) -> Completion:
    """Check what a container left against the done.json that it wrote last. Raises RunFailed with the reason.

    Of the metrics only numbers are kept.
    """
    try:
        with opened_folder(out) as folder:
            manifest, done = _manifest(folder)
            if manifest.nonce != nonce:
                raise RunFailed(f"out/{DONE} is not this run's: it carries another nonce")
            found = dict(facts(folder, Quota()))
    except OSError as error:
        raise RunFailed(f"out/ cannot be read: {error.filename}: {error.strerror}") from error
    del found[DONE]
    for name in sorted(manifest.files.keys() | found):
        _compare(name, manifest.files.get(name), found.get(name))
    return Completion(
        fingerprint=manifest.fingerprint,
        weights=manifest.weights,
        steps=manifest.steps,
        metrics=_numbers(manifest.metrics),
        files={f"out/{name}": found[name] for name in sorted(found)} | {f"out/{DONE}": done},
    )


def fact_of(path: Path) -> FileFact:
    """Return size and digest of a file. Raises RunFailed for anything that is not a plain file."""
    with opened_folder(path.parent) as folder, opened(folder, path.name, path.name) as (file, size):
        return fact(file, size, path.name)


def failure(out: Path) -> str | None:
    """Return why a run failed, in one line, as the first of its ranks to fail said. None if none did."""
    found = _first_error(out)
    if found is None:
        return None
    rank, text = found
    lines = [line for line in text.splitlines() if line.strip()]
    said = lines[-1] if "Traceback (most recent call last):" in lines else lines[0].removeprefix("error: ")
    places = [line.strip() for line in lines if line.startswith("  File ")]
    if said.startswith("Timeout (") and places:
        said = f"hung, at {places[0]}"
    return printable(f"rank {rank}: {said.strip()}")


def failure_text(out: Path) -> str | None:
    """Return the whole of what the first rank to fail said: mostly a traceback. None if none did."""
    found = _first_error(out)
    return None if found is None else printable(found[1], keep="\n\t")


def _first_error(out: Path) -> tuple[int, str] | None:
    """Return rank and words of the error that was written first; the others mostly died of it."""
    errors = []
    # What is odd in there is no reason to fail otherwise than by what is known already.
    with suppress(OSError, RunFailed), opened_folder(out / "errors") as folder:
        for name in names(folder, "errors", Quota()):
            match = _RANK_ERRORS.fullmatch(name)
            if match and (found := _error(folder, name)):
                errors.append((found[0], int(match[1]), found[1]))
    return min(errors)[1:] if errors else None


def _error(folder: int, name: str) -> tuple[int, str] | None:
    with opened(folder, name, f"errors/{name}") as (file, _):
        text = os.read(file, _ERROR_CAP_BYTES).decode("utf-8", "replace")
        return (os.fstat(file).st_mtime_ns, text) if text.strip() else None


def _manifest(folder: int) -> tuple[_Manifest, FileFact]:
    try:
        with opened(folder, DONE, DONE) as (file, size):
            if size > _TEXT_CAP_BYTES:
                raise RunFailed(f"out/{DONE} has {size:,} bytes, more than the {_TEXT_CAP_BYTES:,} of any manifest")
            with os.fdopen(os.dup(file), "rb") as reader:
                data = reader.read(_TEXT_CAP_BYTES)
    except FileNotFoundError:
        raise RunFailed(f"the container ended without out/{DONE}: the run is not complete") from None
    try:
        manifest = parse(_Manifest, json.loads(data))
    except (ValueError, RecursionError, ParseError) as error:
        raise RunFailed(
            f"out/{DONE} is no completion manifest: {_shown('; '.join(str(error).splitlines()))}"
        ) from error
    digests = {"fingerprint": manifest.fingerprint, "weights": manifest.weights}
    for key, digest in digests.items():
        if digest is not None and not is_digest(digest):
            raise RunFailed(f"out/{DONE} is no completion manifest: {key} is {_shown(digest)}, not a digest")
    return manifest, FileFact(size=len(data), digest="sha256:" + hashlib.sha256(data).hexdigest())


def _compare(name: str, stated: FileFact | None, found: FileFact | None) -> None:
    if found is None:
        raise RunFailed(f"out/{printable(name)} is in {DONE} but was not written")
    if stated is None:
        raise RunFailed(f"out/{name} was written but is not in {DONE}")
    if stated != found:
        raise RunFailed(
            f"out/{name} is not what {DONE} states: {found.size:,} bytes, {found.digest}; "
            f"stated {stated.size:,} bytes, {_shown(stated.digest)}"
        )


def _shown(text: str) -> str:
    return clipped(printable(text), _SHOWN_CAP)


def _numbers(metrics: dict[str, object]) -> Metrics:
    return {
        name: number
        for name, value in sorted(metrics.items())
        if isinstance(value, int | float) and not isinstance(value, bool)
        for number in [_number(value)]
    }


def _number(value: float) -> float | str:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return number if math.isfinite(number) else str(number)


class EventReader:
    """What a container has written to events.jsonl since the last look. Lines that are no event are counted."""

    def __init__(self, out: Path) -> None:
        self.skipped = 0
        self.position = 0
        self._out = out
        self._rest = b""

    def read(self) -> Iterator[Event]:
        """Yield the events of the lines that have become whole, at most a mebibyte of them."""
        *lines, rest = (self._rest + self._new_bytes()).split(b"\n")
        # One byte over the cap is kept of a line without end, and tells it from one that fits.
        self._rest = rest[: _LINE_CAP_BYTES + 1]
        for line in lines:
            event = _event(line)
            if event is None:
                self.skipped += 1
            else:
                yield event

    def _new_bytes(self) -> bytes:
        # Opened anew each time: the container may put anything in the file's place, at any time.
        try:
            with opened_folder(self._out) as folder, opened(folder, EVENTS, EVENTS) as (file, _):
                data = os.pread(file, _BLOCK_BYTES, self.position)
        except (OSError, RunFailed):
            return b""
        self.position += len(data)
        return data


def _all_events(out: Path) -> Iterator[Event]:
    reader, position = EventReader(out), -1
    while reader.position != position:
        position = reader.position
        yield from reader.read()


def tells_of(out: Path, kind: str) -> bool:
    """Say whether a run has told of an event of a kind."""
    return any(event["kind"] == kind for event in _all_events(out))


def operators_used(out: Path) -> frozenset[str] | None:
    """Return which of the probed operators a run told that its training calls; None where it told nothing."""
    for event in _all_events(out):
        names = event.get("names")
        if event["kind"] == "operators" and isinstance(names, list) and all(isinstance(name, str) for name in names):
            return frozenset(names)
    return None


def _event(line: bytes) -> Event | None:
    if len(line) > _LINE_CAP_BYTES:
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None
