"""Digests of tensor content: `sha256:<hex>`, or the bytes that a trace takes in."""

from __future__ import annotations

import ctypes
import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    if not size:
        return b""
    memory: Any = (ctypes.c_char * size).from_address(tensor.data_ptr())
    # The tensor may be a copy that nobody else holds.
    memory.owner = tensor
    return memory  # type: ignore[no-any-return]


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the CPU whose memory, read from its start, is its content."""
    return laid_out(tensor.detach().cpu())


def laid_out(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory, read from its start, is its content: a copy only where there is no other way."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):  # noqa: PLR2004, n, c, h, w
        return tensor
    return tensor.contiguous()


def digest_of_state(value: object) -> str:
    """Return the digest of nested mappings, sequences, tensors and plain values: a training state, every bit of it."""
    content = hashlib.sha256()
    _take_in(content, value)
    return "sha256:" + content.hexdigest()


def _take_in(content: hashlib._Hash, value: object) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        content.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode("ascii"))
        content.update(raw_bytes(tensor))
    elif isinstance(value, dict):
        content.update(b"{%d" % len(value))
        for key in sorted(value, key=repr):
            content.update(repr(key).encode() + b":")
            _take_in(content, value[key])
    elif isinstance(value, (list, tuple)):
        content.update(b"[%d" % len(value))
        for item in value:
            _take_in(content, item)
    else:
        content.update(repr(value).encode() + b",")
