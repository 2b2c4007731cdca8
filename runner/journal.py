"""A journal: lines of JSON that are only appended, those of one action in one piece or not at all."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import StoreError

_MORE = "more"
"""How many lines of the same piece follow a line; those who read the journal otherwise pass over this key."""

Line = Mapping[str, Any]


class Journal:
    """A study's log as Optuna has it, for one process at a time; what a process left half written is cut off.

    Optuna's own backend appends line by line, waits 30 s for the lock of a process that was killed, and cannot go on
    after a torn line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unread: list[Line] = _whole(path)
        self._lines_read = 0
        self._piece: list[str] | None = None

    def read_logs(self, log_number_from: int) -> Iterator[Line]:
        """Yield the lines that were not read before."""
        assert log_number_from == self._lines_read
        lines, self._unread = self._unread, []
        self._lines_read += len(lines)
        yield from lines

    def append_logs(self, logs: Iterable[Line]) -> None:
        """Append lines: to the piece that is open, else to the disk."""
        for log in logs:
            text = json.dumps(log, separators=(",", ":"))
            self._unread.append(json.loads(text))
            if self._piece is None:
                self._append([text], durable=True)
            else:
                self._piece.append(text)

    @contextmanager
    def in_one_piece(self, *, durable: bool = True) -> Iterator[None]:
        """Append together what the block appends, once it has ended well. Durable: it outlives a loss of power too."""
        assert self._piece is None
        piece: list[str] = []
        self._piece = piece
        try:
            yield
        finally:
            self._piece = None
        if piece:
            self._append(piece, durable=durable)

    def _append(self, texts: list[str], *, durable: bool) -> None:
        counted = (_counted(text, len(texts) - 1 - index) for index, text in enumerate(texts))
        left = memoryview("".join(counted).encode())
        try:
            with self._path.open("ab", buffering=0) as file:
                before = os.fstat(file.fileno()).st_size
                try:
                    while left:
                        left = left[file.write(left) :]
                    if durable:
                        os.fsync(file.fileno())
                except OSError:
                    file.truncate(before)
                    raise
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from error


def _counted(text: str, more: int) -> str:
    return f'{text[:-1]},"{_MORE}":{more}}}\n' if more else f"{text}\n"


def _whole(path: Path) -> list[Line]:
    """Return the lines of a journal. What follows its last whole piece is removed from the file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        path.touch()
        return []
    texts = content.splitlines(keepends=True)
    if texts and not texts[-1].endswith(b"\n"):
        texts.pop()
    lines = [_line(path, index, text) for index, text in enumerate(texts)]
    if lines and lines[-1].get(_MORE):
        first = lines.pop()
        while lines and lines[-1].get(_MORE) == first[_MORE] + 1:
            first = lines.pop()
    end = sum(map(len, texts[: len(lines)]))
    if end < len(content):
        os.truncate(path, end)
    return lines


def _line(path: Path, index: int, text: bytes) -> Line:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise StoreError(f"{path}:{index + 1}: not a line of JSON")
    return line
