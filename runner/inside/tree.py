"""Sums over a fixed tree of virtual ranks: the same bits on any number of processes.

A floating-point sum depends on its order. Here the order is a balanced binary tree over the virtual ranks, so it is
part of the experiment; which process adds what is not. See docs/determinism.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, List, NamedTuple, Optional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Tensors = List[Optional["Tensor"]]
"""What is summed, element by element; None is nothing, such as the gradient of a frozen parameter."""


class Subtree(NamedTuple):
    """The sum of some virtual ranks that stand side by side."""

    first: int
    leaves: int
    tensors: Tensors


def owned(virtual_ranks: int, world_size: int, rank: int) -> range:
    """Return the virtual ranks of a process: as even as they go, in order."""
    return range(rank * virtual_ranks // world_size, (rank + 1) * virtual_ranks // world_size)


def push(forest: list[Subtree], subtree: Subtree) -> None:
    """Add a subtree at the end of a forest, and add up neighbours of equal height, as a binary counter carries.

    Sums are made in place, in the tensors of the left one.
    """
    forest.append(subtree)
    while len(forest) > 1 and _are_siblings(*forest[-2:]):
        right, left = forest.pop(), forest.pop()
        forest.append(Subtree(left.first, 2 * left.leaves, _added(left.tensors, right.tensors)))


def fold(forest: Sequence[Subtree]) -> Tensors:
    """Return the sum of all virtual ranks. What is no power of two leaves subtrees, which are added from the right."""
    *rest, last = forest
    total = last.tensors
    for subtree in reversed(rest):
        total = _added(subtree.tensors, total)
    return total


def shape(leaves: range) -> list[tuple[int, int]]:
    """Return (first, leaves) of the subtrees that a process is left with when it has pushed all of its own."""
    forest: list[Subtree] = []
    for leaf in leaves:
        push(forest, Subtree(leaf, 1, []))
    return [(subtree.first, subtree.leaves) for subtree in forest]


def _are_siblings(left: Subtree, right: Subtree) -> bool:
    return left.leaves == right.leaves and left.first % (2 * left.leaves) == 0


def _added(left: Tensors, right: Tensors) -> Tensors:
    return [b if a is None else a if b is None else a.add_(b) for a, b in zip(left, right)]
