"""The trace of one virtual rank, and what it has computed of a step so far: digests, those of a GPU on their way."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, List, Union

import torch

from runner.inside import device_digest, trace
from runner.inside.digests import plain, raw_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

_Parts = List[Union[bytes, "Tensor"]]
"""Digests that stand for one tensor or mapping; those on a device are read at the end of the step."""
STREAMS = ("sample_ids", "batch", "rng_before", "output")


class Lane:
    """The trace of one virtual rank, and what it has computed of the step so far."""

    def __init__(self, file: Any, chain: bytes) -> None:
        self.file = file
        self.chain = chain
        self.begin()
        self.channels: dict[str, bytes] = {}
        self.tensors: dict[str, list[bytes]] = {}
        # What a GPU is still computing: digests of a channel's tensors, and of what belongs to a stream.
        self.pending: dict[str, list[_Parts]] = {}
        self.streamed: list[tuple[str, Tensor]] = []

    def begin(self) -> None:
        """Start a step."""
        self.streams = {name: hashlib.sha256() for name in STREAMS}

    def stream(self, name: str, value: object) -> None:
        """Take in the content of tensors, one after the other."""
        for tensor in tensors_in(value):
            if is_on_device(tensor):
                self.streamed.append((name, device_digest.digest(tensor)))
            else:
                self.streams[name].update(raw_bytes(plain(tensor)))

    def look(self, channel: str, tensors: Iterable[object]) -> None:
        """Take in one digest a tensor, or a mapping of tensors."""
        self.pending[channel] = [_parts(tensor) for tensor in tensors]

    def waited_for(self) -> list[Tensor]:
        """Return the digests that are on a device."""
        parts = (part for entries in self.pending.values() for entry in entries for part in entry)
        return [*(digest for _, digest in self.streamed), *(part for part in parts if isinstance(part, torch.Tensor))]

    def settle(self, words: Iterator[bytes]) -> None:
        """Take in the words of `waited_for`, in their order: what was looked at is known now."""
        for name, _ in self.streamed:
            self.streams[name].update(next(words))
        for channel, entries in self.pending.items():
            found = [[part if isinstance(part, bytes) else next(words) for part in entry] for entry in entries]
            self.tensors[channel] = [_word(parts) for parts in found]
            self.channels[channel] = trace.digest_of(self.tensors[channel])
        self.pending, self.streamed = {}, []


def is_on_device(tensor: Tensor) -> bool:
    """Say whether a tensor is digested where it is, on a GPU."""
    return tensor.device.type == "cuda"


def _parts(value: object) -> _Parts:
    """Return the digests of a tensor, or of all that a mapping holds. All that is on the CPU has one."""
    tensors = list(tensors_in(value))
    on_device = [device_digest.digest(tensor) for tensor in tensors if is_on_device(tensor)]
    content = hashlib.sha256()
    for tensor in tensors:
        if not is_on_device(tensor):
            content.update(raw_bytes(plain(tensor)))
    has_others = len(tensors) > len(on_device)
    return [*([content.digest()[: trace.WORD_BYTES]] if has_others else []), *on_device]


def _word(parts: Sequence[bytes]) -> bytes:
    """Return the one word of several; nothing's is zeros."""
    if not parts:
        return trace.NOTHING
    return parts[0] if len(parts) == 1 else trace.digest_of(parts)


def tensors_in(value: object) -> Iterable[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors_in(value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
