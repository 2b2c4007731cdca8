"""Where the traces of two runs first part, as far as the container needs it: step, virtual ranks, channel, tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from runner.inside.trace import CHANNELS, SLICED, Header, Record, file_name, layout, unpack
from runner.inside.trace_header import read_header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Difference(NamedTuple):
    """The first thing that differs, in the order of cause and effect."""

    step: int
    """0 for what is before the first step."""
    ranks: tuple[int, ...]
    """Virtual ranks whose own part differs."""
    channel: str
    tensor: str | None

    @property
    def what(self) -> str:
        """What differs, in the words of docs/trace.md."""
        return f"{self.channel} of {self.tensor}" if self.tensor else self.channel


def first_difference(past: Path, again: Path, virtual_ranks: int) -> Difference | None:
    """Return where the traces of two `out` folders part, None where they are equal. Raises TraceError."""
    pairs = [tuple(_read(out / file_name(number)) for out in (past, again)) for number in range(virtual_ranks)]
    starts = [_start(old) != _start(new) for (old, _), (new, _) in pairs]
    if any(starts):
        return Difference(0, _places(starts), "weights", None)
    for records in zip(*(zip(old, new) for (_, old), (_, new) in pairs)):
        if any(old.chain != new.chain for old, new in records):
            return _difference(pairs[0][0][0], records)
    return None


def _read(path: Path) -> tuple[Header, list[Record]]:
    line, _, content = path.read_bytes().partition(b"\n")
    header = read_header(line)
    place = layout(header)
    ends = range(place.record_bytes, len(content) + 1, place.record_bytes)
    return header, [unpack(header, place, content[end - place.record_bytes : end]) for end in ends]


def _start(header: Header) -> tuple[object, ...]:
    return header.weights, header.parameters, header.buffers


def _difference(header: Header, records: Sequence[tuple[Record, Record]]) -> Difference:
    """Return what differs in one step's records of all virtual ranks."""
    for channel in CHANNELS:
        differs = [old.channels[channel] != new.channels[channel] for old, new in records]
        if any(differs):
            ranks = _places(differs)
            return Difference(records[0][0].step, ranks, channel, _tensor(header, channel, *records[ranks[0]]))
    raise AssertionError(f"the chains of step {records[0][0].step} differ, no channel does")


def _tensor(header: Header, channel: str, past: Record, again: Record) -> str | None:
    """Name the tensor that is nearest to the cause: the backward pass comes to the model's last one first."""
    if channel not in SLICED:
        return None
    words = zip(header.looked_at(channel, past.step), past.tensors[channel], again.tensors[channel])
    names = [entry.name for entry, old, new in words if old != new]
    return names[-1 if channel.endswith("_grad") else 0]


def _places(differs: Sequence[bool]) -> tuple[int, ...]:
    return tuple(place for place, differing in enumerate(differs) if differing)
