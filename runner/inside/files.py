"""Files that are whole or not there, their digests, and the event stream."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

DONE = "done.json"
_BLOCK_BYTES = 1 << 20


class Events:
    """events.jsonl: one JSON object a line, on its way to the reader as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="ascii", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, kind: str, **values: object) -> None:
        """Append one event. Raises ValueError for a number that JSON cannot say."""
        self.repeat(json.dumps({"kind": kind, **values}, allow_nan=False) + "\n")

    def repeat(self, line: str) -> None:
        """Append a line that is an event already."""
        self._file.write(line)


def write_whole(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON file that no reader ever sees half of."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="ascii") as file:
        json.dump(value, file, sort_keys=True, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of_file(path: Path) -> str:
    """Return the digest of a file's bytes, read block by block."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK_BYTES), b""):
            content.update(block)
    return "sha256:" + content.hexdigest()


def write_done(out: Path, values: Mapping[str, object]) -> None:
    """Write done.json, last of all: what was computed, and every file of the run with its size and digest."""
    files = {
        path.relative_to(out).as_posix(): {"size": path.stat().st_size, "digest": digest_of_file(path)}
        for path in sorted(out.rglob("*"))
        if path.is_file() and path != out / DONE
    }
    write_whole(out / DONE, {**values, "files": files})
