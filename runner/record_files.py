"""Records, and what is known of a run when it starts, read from their files."""

import re
from pathlib import Path

from runner.errors import StoreError
from runner.parse import ParseError
from runner.record import Record, Started, T, from_bytes

_STARTED_AT = re.compile(rb'"started_at":"([^"]*)"')


def read_record(path: Path, run_id: str) -> Record | None:
    """Return the record of a run, None where it has none yet. Raises StoreError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    record = _parsed(Record, data, path)
    if record.id != run_id:
        raise StoreError(f"{path} is the record of {record.id}")
    return record


def started_at(path: Path) -> bytes:
    """Return when a run started, unchecked: good enough to put runs in order."""
    try:
        found = _STARTED_AT.search(path.read_bytes())
    except OSError:
        return b""
    return found[1] if found else b""


def read_started(path: Path) -> Started:
    """Return what was known of a run when it started. Raises StoreError."""
    try:
        return _parsed(Started, path.read_bytes(), path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _parsed(kind: type[T], data: bytes, path: Path) -> T:
    try:
        return from_bytes(kind, data)
    except ParseError as error:
        raise StoreError(f"{path} {error}") from error
