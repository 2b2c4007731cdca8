"""The leaves of a numerics probe: what each operator computes on a machine, eight bytes of digest an operator.

Standard library only: the container computes them, the host compares them.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_OPERATOR = re.compile(r"[a-z][a-z0-9_ ]{0,39}")
_LEAF = re.compile(r"[0-9a-f]{16}")
_COUNT_CAP = 1000
_NAMED_AT_MOST = 6


def are_leaves(value: object) -> bool:
    """Say whether a value, which may come from anywhere, is operators and their leaves."""
    return (
        isinstance(value, dict)
        and len(value) <= _COUNT_CAP
        and all(isinstance(name, str) and _OPERATOR.fullmatch(name) for name in value)
        and all(isinstance(leaf, str) and _LEAF.fullmatch(leaf) for leaf in value.values())
    )


def digest_of_leaves(leaves: Mapping[str, str]) -> str:
    """Return the digest over all leaves: two machines with one digest compute all operators alike."""
    content = "".join(f"{name} {leaves[name]}\n" for name in sorted(leaves))
    return "sha256:" + hashlib.sha256(content.encode("ascii")).hexdigest()


def differing(past: Mapping[str, str], here: Mapping[str, str], used: Collection[str] | None = None) -> list[str]:
    """Name the operators, of those used or of all, that compute other bits or are on one side only."""
    names = sorted({*past, *here} if used is None else {*past, *here}.intersection(used))
    return [name for name in names if past.get(name) != here.get(name)]


def listed(operators: list[str]) -> str:
    """Return operators as a message names them: the first few, and how many more there are."""
    more = len(operators) - _NAMED_AT_MOST
    return ", ".join(operators[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
