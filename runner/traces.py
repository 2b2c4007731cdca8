"""The traces of a run, read from the folder that its container writes: hostile bytes, at any place in O(1)."""

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from runner.errors import RunFailed, StoreError
from runner.hostile import opened, opened_folder
from runner.inside import operator_log
from runner.inside.leaves import differing
from runner.inside.trace import (
    Header,
    Record,
    TraceError,
    file_name,
    first_link,
    layout,
    link,
    unpack,
)
from runner.inside.trace_header import LINE_CAP_BYTES, read_header

_BLOCK_BYTES = 1 << 20


class TraceFile:
    """One virtual rank's trace. It may grow while it is read; every number counts whole records."""

    def __init__(self, file: int, name: str) -> None:
        self.name = name
        self._file = file
        try:
            line = _first_line(file)
            self.header: Header = read_header(line)
        except TraceError as error:
            raise TraceError(f"{name}: {error}") from None
        self._layout = layout(self.header)
        self._start = len(line) + 1

    def count(self) -> int:
        """Return how many whole records there are by now."""
        return (os.fstat(self._file).st_size - self._start) // self._layout.record_bytes

    def record(self, index: int) -> Record:
        """Return the record of step index + 1. Raises TraceError unless it is there and says that it is."""
        record = unpack(self.header, self._layout, self._read(index))
        if record.step != index + 1:
            raise TraceError(f"{self.name}: step {record.step} stands in the place of step {index + 1}")
        return record

    def chain(self, index: int) -> bytes:
        """Return the chain after step index + 1; before the first step with index -1."""
        return first_link(self.header.weights) if index < 0 else self.record(index).chain

    def verify(self) -> None:
        """Compute every link of the chain again. Raises TraceError for bytes that are not as they were written."""
        chain = first_link(self.header.weights)
        size = os.fstat(self._file).st_size - self._start
        if size % self._layout.record_bytes:
            rest = size % self._layout.record_bytes
            raise TraceError(f"{self.name} is cut short: {rest} bytes after the last whole record")
        for index in range(self.count()):
            data, end = self._read(index), self._layout.content_bytes
            chain = link(chain, data[:end])
            if data[end:] != chain:
                raise TraceError(f"{self.name} has been edited: its chain breaks at step {index + 1}")
            self.record(index)

    def _read(self, index: int) -> bytes:
        size = self._layout.record_bytes
        data = os.pread(self._file, size, self._start + index * size)
        if len(data) != size:
            raise TraceError(f"{self.name} is cut short: there is no step {index + 1}")
        return data


def _first_line(file: int) -> bytes:
    line = b""
    while len(line) <= LINE_CAP_BYTES and (block := os.pread(file, _BLOCK_BYTES, len(line))):
        head, end, _ = block.partition(b"\n")
        line += head
        if end:
            return line
    raise TraceError("it is no trace: it has no first line")


def operator_logs(out: Path, processes: int) -> list[list[operator_log.Operator]]:
    """Return the operators of the step that a run logged, by process. Raises StoreError for a log that is no log."""
    logs = []
    try:
        with opened_folder(out) as folder:
            for name in map(operator_log.file_name, range(processes)):
                with opened(folder, name, name) as (file, _), os.fdopen(os.dup(file), "rb") as reader:
                    logs.append(operator_log.read(reader))
    except operator_log.LogError as error:
        raise StoreError(f"out/{name}: {error}") from error
    except RunFailed as error:
        raise StoreError(error.message) from error
    except OSError as error:
        raise StoreError(f"out/{error.filename} cannot be read: {error.strerror}") from error
    return logs


@contextmanager
def opened_traces(out: Path, virtual_ranks: int) -> Iterator[list[TraceFile]]:
    """Open the traces of a run. Raises TraceError for one that is missing or is none of this format."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(opened_folder(out))
            traces = []
            for number in range(virtual_ranks):
                name = file_name(number)
                file, _ = stack.enter_context(opened(folder, name, name))
                traces.append(TraceFile(file, f"out/{name}"))
        except RunFailed as error:
            raise TraceError(error.message) from error
        except OSError as error:
            raise TraceError(f"out/{error.filename} cannot be read: {error.strerror}") from error
        for number, trace in enumerate(traces):
            found = trace.header.virtual_rank, trace.header.virtual_ranks
            if found != (number, virtual_ranks):
                raise TraceError(f"{trace.name} is of rank {found[0]} of {found[1]}")
        yield traces


def tell_numerics(out: Path, ranks: int) -> bool:
    """Say whether all traces of a run tell what the probed operators computed; no where they cannot be read."""
    try:
        with opened_traces(out, ranks) as traces:
            return all(trace.header.numerics for trace in traces)
    except TraceError:
        return False


def moved_operators(past: Path, again: Path, ranks: int, used: Collection[str] | None) -> list[str]:
    """Name the probed operators, of those used or of all, that computed other bits in another run. Raises TraceError.

    A run whose traces tell nothing of them has none.
    """
    with opened_traces(past, ranks) as old, opened_traces(again, ranks) as new:
        leaves = [(a.header.numerics, b.header.numerics) for a, b in zip(old, new, strict=True)]
    return sorted({name for before, after in leaves if before for name in differing(before, after, used)})
