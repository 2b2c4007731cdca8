"""Digests of files and of tensor content: always `sha256:<hex>`."""

from __future__ import annotations

import ctypes
import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

_BLOCK_BYTES = 1 << 20


def digest_of_file(path: Path) -> str:
    """Return the digest of a file's bytes, read block by block."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK_BYTES), b""):
            content.update(block)
    return "sha256:" + content.hexdigest()


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the digest over name, dtype, shape and raw bytes of every tensor, in the order of the names.

    Two models have one digest only if every bit of them is equal; how and where they were saved does not matter.
    """
    content = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        content.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode("ascii") + b"\n")
        content.update(raw_bytes(tensor))
    return "sha256:" + content.hexdigest()


def raw_bytes(tensor: torch.Tensor) -> bytes | ctypes.Array[ctypes.c_char]:
    """Return a tensor's memory without a copy. By address, because NumPy knows no bfloat16 and may be missing."""
    size = tensor.numel() * tensor.element_size()
    return (ctypes.c_char * size).from_address(tensor.data_ptr()) if size else b""
