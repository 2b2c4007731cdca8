"""Digests of tensors that are on a GPU, computed there: nothing is copied, and nothing waits for them within a step.

`sum64/1`: a tensor's bytes, in the order of its memory, are words of 32 bits; the digest is the sum of word i times an
odd 64-bit number made of i (splitmix64), modulo 2^64. Sums of integers have the same bits in any order, so each GPU may
add as it likes. One changed word always shows, for its factor is odd; two swapped ones show unless their factors agree.
Against chance, not against an adversary: what proves a run's end is SHA-256 over the whole state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from runner.inside.digests import laid_out

if TYPE_CHECKING:
    from torch import Tensor

NAME = "sum64/1"

_WORD_BYTES = 4
_BLOCK = 1 << 24
# Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014), as signed 64-bit numbers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def digest(tensor: Tensor) -> Tensor:
    """Return a tensor's digest, int64 of no dimension, on the tensor's device. Does not wait for it."""
    words = _words(laid_out(tensor))
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for first in range(0, words.numel(), _BLOCK):
        block = words[first : first + _BLOCK]
        # Every word counts, zero too: its place is in the sum by the length.
        total = total + ((block.long() & 0xFFFFFFFF) * _factors(first, block.numel(), tensor.device)).sum()
    return total + _mixed(torch.tensor(words.numel(), device=tensor.device))


def _words(tensor: Tensor) -> Tensor:
    """Return a dense tensor's memory as int32; what is no whole word is filled up with zeros."""
    content = tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    if content.storage_offset() % _WORD_BYTES:
        content = content.clone()
    if rest := content.numel() % _WORD_BYTES:
        content = torch.nn.functional.pad(content, (0, _WORD_BYTES - rest))
    return content.view(torch.int32)


def _factors(first: int, count: int, device: torch.device) -> Tensor:
    return _mixed(torch.arange(first, first + count, dtype=torch.int64, device=device)) | 1


def _mixed(number: Tensor) -> Tensor:
    """Return splitmix64 of numbers: products wrap around, shifts bring in zeros."""
    z = number * _GAMMA
    z = (z ^ _shifted(z, 30)) * _MIX[0]
    z = (z ^ _shifted(z, 27)) * _MIX[1]
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)
