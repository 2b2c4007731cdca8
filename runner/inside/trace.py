"""The trace: what each step of a virtual rank computed, a fixed-size record a step, chained. See docs/trace.md.

Two equal chains mean two equal histories up to that step. Nothing but training content enters a chain.
Standard library only and no files: the container writes traces with this module, the host reads them with it.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = "xrun-trace"
VERSION = 3
MAGIC = b"xrun trace 3\n"
# Of a tensor in the CPU's memory and in a GPU's: the first eight bytes of SHA-256, and device_digest.py's sum.
DIGESTS = ("sha256/8", "sum64/1")
WORD_BYTES = 8
CHAIN_BYTES = 32
NOTHING = bytes(WORD_BYTES)

# In the order of cause and effect: what differs first is nearest to the cause.
CHANNELS = (
    "sample_ids",
    "batch",
    "rng_before",
    "weights_before",
    "output",
    "loss",
    "local_grad",
    "reduced_grad",
    "grad_norm",
    "scale",
    "growth",
    "lr",
    "settings",
    "optimizer",
    "buffers",
    "weights",
)
REALS = frozenset({"loss", "grad_norm", "scale", "lr"})
# These look at one slice of the tensors a step, and also write a digest of each tensor in it.
SLICED = ("weights_before", "local_grad", "reduced_grad", "optimizer", "buffers", "weights")

# A step digests about this much of the weights, so that it costs under a hundredth of most steps.
_SLICE_BYTES = 1 << 16
_SLICES_CAP = 256


class TraceError(Exception):
    """A trace is cut short, of another version, or its chain does not hold."""


class Tensor(NamedTuple):
    """A parameter or buffer of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    slice: int
    """The slice that it is in: looked at in the steps whose number, modulo the slices, is this."""


class Header(NamedTuple):
    """What a trace says once."""

    digest: str
    """How tensors are digested, one of DIGESTS."""
    level: str
    virtual_rank: int
    virtual_ranks: int
    world_size: int
    """Processes that the virtual ranks were shared among; no bit depends on it."""
    torch: str
    knobs: Mapping[str, Any]
    """Settings as the libraries themselves reported them."""
    numerics: Mapping[str, str]
    """What the probed operators compute here, operator -> leaf; no bit depends on it."""
    weights: str
    """Digest of the initial weights and buffers."""
    slices: int
    parameters: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]

    def line(self) -> bytes:
        """Return the trace's first line."""
        content = {"format": FORMAT, "version": VERSION, "channels": CHANNELS, **self._asdict()}
        return json.dumps(content, sort_keys=True).encode("ascii") + b"\n"

    def looked_at(self, channel: str, step: int) -> list[Tensor]:
        """Return the tensors whose digests a step's record holds, in the order of the model."""
        tensors = self.buffers if channel == "buffers" else self.parameters
        return [tensor for tensor in tensors if tensor.slice == step % self.slices]


class Layout(NamedTuple):
    """Where a record's words are; the same for all records of a trace."""

    widths: tuple[int, ...]
    """Words of each sliced channel: as many as its fullest slice has tensors."""

    @property
    def content_bytes(self) -> int:
        """Size of a record without its chain."""
        return WORD_BYTES * (1 + len(CHANNELS) + sum(self.widths))

    @property
    def record_bytes(self) -> int:
        """Size of a record."""
        return self.content_bytes + CHAIN_BYTES


class Record(NamedTuple):
    """One step. The chain says that every step before it had these bits, too."""

    step: int
    channels: Mapping[str, bytes]
    """Channel -> eight bytes: a digest's first, or a number's."""
    tensors: Mapping[str, tuple[bytes, ...]]
    """Sliced channel -> digest of each tensor that the step looked at."""
    chain: bytes

    def number(self, channel: str) -> float:
        """Return a channel that is a number."""
        return float(struct.unpack("<d" if channel in REALS else "<Q", self.channels[channel])[0])


def file_name(virtual_rank: int) -> str:
    """Return the name of a virtual rank's trace in the run's folder."""
    return f"trace-rank{virtual_rank}.bin"


def layout(header: Header) -> Layout:
    """Return where the words of a trace's records are."""
    return Layout(tuple(_fullest(header, channel) for channel in SLICED))


def _fullest(header: Header, channel: str) -> int:
    counts = [0] * header.slices
    for tensor in header.buffers if channel == "buffers" else header.parameters:
        counts[tensor.slice] += 1
    return max(counts)


def slices_for(weights_bytes: int) -> int:
    """Return into how many slices a model is cut: 1, everything every step, where it is small."""
    return max(1, min(_SLICES_CAP, weights_bytes // _SLICE_BYTES))


def sliced(sizes: Sequence[int], slices: int) -> list[int]:
    """Return the slice of each tensor, so that slices are about equal in bytes and not too unlike in number."""
    mean = sum(sizes) // max(len(sizes), 1)
    lightest = [(0, number) for number in range(slices)]
    places = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        weight, number = heapq.heappop(lightest)
        places[index] = number
        # Each tensor also counts as an average one: a digest of few bytes is not free, and has a place in the record.
        heapq.heappush(lightest, (weight + sizes[index] + mean, number))
    return places


def word(number: float, *, real: bool = True) -> bytes:
    """Return a number's bits as a channel holds them."""
    return struct.pack("<d", number) if real else struct.pack("<Q", int(number))


def digest_of(words: Sequence[bytes]) -> bytes:
    """Return the digest of digests."""
    return hashlib.sha256(b"".join(words)).digest()[:WORD_BYTES]


def pack(place: Layout, step: int, channels: Mapping[str, bytes], tensors: Mapping[str, Sequence[bytes]]) -> bytes:
    """Return a record without its chain."""
    rows = [b"".join(tensors[name]).ljust(width * WORD_BYTES, b"\0") for name, width in zip(SLICED, place.widths)]
    return b"".join([struct.pack("<Q", step), *(channels[name] for name in CHANNELS), *rows])


def unpack(header: Header, place: Layout, data: bytes) -> Record:
    """Read a record. Raises TraceError if it has another size."""
    if len(data) != place.record_bytes:
        raise TraceError(f"it is cut short: a record has {place.record_bytes} bytes, here are {len(data)}")
    (step,) = struct.unpack_from("<Q", data)
    words = [data[at : at + WORD_BYTES] for at in range(WORD_BYTES, place.content_bytes, WORD_BYTES)]
    at, tensors = len(CHANNELS), {}
    for name, width in zip(SLICED, place.widths):
        tensors[name] = tuple(words[at : at + len(header.looked_at(name, step))])
        at += width
    return Record(step, dict(zip(CHANNELS, words)), tensors, data[place.content_bytes :])


def first_link(weights: str) -> bytes:
    """Return the chain before the first step."""
    return link(MAGIC, raw(weights))


def link(previous: bytes, content: bytes) -> bytes:
    """Return the chain after a record."""
    return hashlib.sha256(previous + content).digest()


def fingerprint(chains: Sequence[bytes], weights: str) -> str:
    """Return the fingerprint of a run: the heads of all chains, closed with the digest of the final weights."""
    return "sha256:" + link(b"".join(chains), raw(weights)).hex()


def raw(digest: str) -> bytes:
    """Return the bytes of a `sha256:<hex>` digest."""
    return bytes.fromhex(digest[len("sha256:") :])
