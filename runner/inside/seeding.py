"""Randomness that is a function of what it is for, never of who asks first.

Sample order and augmentation come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"),
in exact integer arithmetic: the same draws in any batch, on any rank, on any device and CPU.
"""

from __future__ import annotations

import array
import hashlib
import random
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from runner.inside.digests import raw_bytes

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Draws(NamedTuple):
    """Samples of one micro-batch, and the random numbers that belong to each of them."""

    seed: int
    ids: Tensor
    """Sample numbers, int64 (count,)."""
    epochs: Tensor
    """The epoch that each sample is drawn in, int64 (count,)."""

    def integers(self, purpose: str, high: int) -> Tensor:
        """Return one integer of 0 … high - 1 a sample, int64 (count,). Each purpose has numbers of its own."""
        return (self._words(purpose)[0] * high) >> 32

    def _words(self, purpose: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        counter = (torch.zeros_like(self.ids), self.epochs, self.ids & _WORD, self.ids >> 32)
        return philox(counter, key(self.seed, purpose))


def sample_order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order of an epoch's samples: a permutation of 0 … count - 1, int64."""
    ids = torch.arange(count)
    zero = torch.zeros_like(ids)
    words = philox((zero, zero + epoch, ids & _WORD, ids >> 32), key(seed, "order"))
    return torch.argsort((words[0] << 31) ^ words[1], stable=True)


class Sampler:
    """The endless stream of samples, epoch after epoch; any part of it by position."""

    def __init__(self, seed: int, count: int) -> None:
        self._seed = seed
        self._count = count
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def draws(self, first: int, count: int) -> Draws:
        """Return the samples at positions first … first + count - 1. A batch may reach into the next epoch."""
        positions = torch.arange(first, first + count)
        epochs = torch.div(positions, self._count, rounding_mode="floor")
        ids = torch.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            ids[here] = self._order_of(epoch)[positions[here] - epoch * self._count]
        return Draws(self._seed, ids, epochs)

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, sample_order(self._seed, epoch, self._count)
        return self._order


def seed_generators(seed: int, purpose: str) -> None:
    """Seed Python's and torch's generators, on every device, for one purpose; NumPy's where it is in use."""
    low, high = key(seed, purpose)
    random.seed(low | high << 32)
    torch.manual_seed(low | high << 32)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed([low, high])


def generators(device: torch.device) -> bytes:
    """Return the states of the generators that this process's next numbers come from."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    content = bytes(array.array("L", random.getstate()[1])) + b"".join(bytes(raw_bytes(state)) for state in states)
    if (numpy := sys.modules.get("numpy")) is not None:
        _, words, *rest = numpy.random.get_state()
        content += words.tobytes() + repr(rest).encode()
    return content


def key(seed: int, purpose: str) -> tuple[int, int]:
    """Return two words of 32 bits that belong to a seed and a purpose."""
    content = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(content[:4], "little"), int.from_bytes(content[4:8], "little")


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four words of 32 bits for each counter of four words, all as int64 of the same shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the high and low word of a product of 64 bits, which int64 cannot hold at once."""
    upper, lower = word * (constant >> 16), word * (constant & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    low = ((upper & 0xFFFF) << 16) + (lower & _WORD)
    return high, low & _WORD
