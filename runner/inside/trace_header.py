"""A trace's first line, read strictly: it may come from anywhere."""

from __future__ import annotations

import json
import re
from typing import Any

from runner.inside.leaves import are_leaves
from runner.inside.trace import CHANNELS, DIGESTS, FORMAT, VERSION, Header, Tensor, TraceError

LINE_CAP_BYTES = 16 << 20
_SLICES_CAP = 1 << 16
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KEYS = {
    "digest": str,
    "level": str,
    "virtual_rank": int,
    "virtual_ranks": int,
    "world_size": int,
    "torch": str,
    "knobs": dict,
    "numerics": dict,
    "weights": str,
    "slices": int,
    "parameters": list,
    "buffers": list,
}


def read_header(line: bytes) -> Header:
    """Return what a trace's first line says. Raises TraceError for any other line."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise TraceError("it is no trace: its first line is no JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TraceError("it is no trace")
    if content.get("version") != VERSION:
        raise TraceError(f"its format has version {content.get('version')!r}; this xrun reads version {VERSION}")
    if content.get("digest") not in DIGESTS or content.get("channels") != list(CHANNELS):
        raise TraceError(f"its channels are not those of version {VERSION}")
    for key, kind in _KEYS.items():
        if type(content.get(key)) is not kind:
            raise TraceError(f"its {key} is {content.get(key)!r:.100}")
    if not _DIGEST.fullmatch(content["weights"]):
        raise TraceError(f"its weights is {content['weights']!r:.100}, not a digest")
    if not are_leaves(content["numerics"]):
        raise TraceError(f"its numerics is {content['numerics']!r:.100}, not operators and their leaves")
    slices = content["slices"]
    if not 1 <= slices <= _SLICES_CAP:
        raise TraceError(f"its slices is {slices}")
    tables = {key: tuple(_tensor(entry, slices) for entry in content[key]) for key in ("parameters", "buffers")}
    return Header(**{**{key: content[key] for key in _KEYS}, **tables})


def _tensor(entry: Any, slices: int) -> Tensor:
    if isinstance(entry, list) and list(map(type, entry)) == [str, list, str, int]:
        name, shape, dtype, place = entry
        if all(type(size) is int for size in shape) and 0 <= place < slices:
            return Tensor(name, tuple(shape), dtype, place)
    raise TraceError(f"its table of tensors holds {entry!r:.100}")
