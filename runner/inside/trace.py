"""The trace: what a run computed, one fixed-size record a step, chained.

Format, version 1: one line of JSON, then records of 56 bytes, little-endian:
step u64, loss f64, learning rate f64 (their exact bits), chain (32 bytes).
    first chain = sha256(MAGIC || sha256 of the initial weights)
    chain       = sha256(previous chain || the record's other 24 bytes)
    fingerprint = sha256(last chain || sha256 of the final weights)
Two equal chains mean two equal histories up to that step. Nothing but training content enters a chain.
Uses the standard library only: the host reads traces with this module, too.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

VERSION = 1
MAGIC = b"xrun trace 1\n"
_VALUES = struct.Struct("<Qdd")
_CHAIN_BYTES = hashlib.sha256().digest_size
RECORD_BYTES = _VALUES.size + _CHAIN_BYTES


class TraceError(Exception):
    """A trace is cut short, of another version, or its chain does not hold."""


class Record(NamedTuple):
    """One step. The chain says that every step before it had these bits, too."""

    step: int
    loss: float
    lr: float
    chain: bytes


class Trace(NamedTuple):
    """A trace read back whole. `header` has what the process read back of its own settings."""

    header: Mapping[str, object]
    records: list[Record]


class Writer:
    """Appends one record a step; each is on disk when the call returns, but for the system's own buffers."""

    def __init__(self, path: Path, weights: str, header: Mapping[str, object]) -> None:
        self.chain = _link(MAGIC, _raw(weights))
        self._file = path.open("wb", buffering=0)
        line = json.dumps({**header, "format": "xrun-trace", "version": VERSION, "weights": weights}, sort_keys=True)
        self._file.write(line.encode("ascii") + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, step: int, loss: float, lr: float) -> None:
        """Append the record of a step."""
        values = _VALUES.pack(step, loss, lr)
        self.chain = _link(self.chain, values)
        self._file.write(values + self.chain)


def fingerprint(chain: bytes, weights: str) -> str:
    """Return the fingerprint of a run: its chain's head, closed with the digest of its final weights."""
    return "sha256:" + _link(chain, _raw(weights)).hex()


def read(path: Path) -> Trace:
    """Read a trace and check every link of its chain. Raises TraceError."""
    content = path.read_bytes()
    line, _, records = content.partition(b"\n")
    header = _header(path, line)
    if len(records) % RECORD_BYTES:
        raise TraceError(f"{path.name} is cut short: {len(records) % RECORD_BYTES} bytes after the last whole record")
    chain = _link(MAGIC, _raw(str(header["weights"])))
    trace = Trace(header, [])
    for at in range(0, len(records), RECORD_BYTES):
        values = records[at : at + _VALUES.size]
        chain = _link(chain, values)
        step, loss, lr = _VALUES.unpack(values)
        record = Record(step, loss, lr, records[at + _VALUES.size : at + RECORD_BYTES])
        if record.chain != chain:
            raise TraceError(f"{path.name} has been edited: the chain breaks at step {record.step}")
        trace.records.append(record)
    return trace


def _header(path: Path, line: bytes) -> Mapping[str, object]:
    try:
        header = json.loads(line)
    except ValueError:
        raise TraceError(f"{path.name} is not a trace: its first line is not JSON") from None
    if not isinstance(header, dict) or header.get("format") != "xrun-trace" or header.get("version") != VERSION:
        raise TraceError(f"{path.name} is not a trace of version {VERSION}")
    return header


def _link(previous: bytes, content: bytes) -> bytes:
    return hashlib.sha256(previous + content).digest()


def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest[len("sha256:") :])
