"""The operator log: what each operator of one training step was given and what it computed, a line of JSON each.

Standard library only and no files: the container writes logs with this module, both sides read them with it, strictly.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LINE_CAP_BYTES = 4096
_OPERATORS_CAP = 1 << 20
_TEXT_CAP = 300
UNKNOWN = "0" * 16
"""Stands for what cannot be looked at, such as what a collective is still about to write."""

_DIGEST = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")


class LogError(Exception):
    """An operator log is cut short or was not written by this module."""


class Operator(NamedTuple):
    """One call of an operator."""

    number: int
    """Counted from 1, over all that a process calls in the step."""
    name: str
    """As torch's dispatcher has it: `aten.convolution_backward.default`."""
    rank: int | None
    """The virtual rank whose share of the step it is of; None for what all of them share, such as the update."""
    module: str
    """The part of the model it belongs to, in the backward pass too: `layer3.0.conv1`; empty outside of the model."""
    node: str
    """The node of the backward pass that called it; empty elsewhere."""
    inputs: str
    outputs: str

    @property
    def place(self) -> str:
        """Where in the step it is called."""
        within = f" of {self.module}" if self.module else ""
        return f"{self.name} in {self.node}{within}" if self.node else f"{self.name}{within}"

    def line(self) -> bytes:
        """Return the operator as a line of the log."""
        # A name that nobody would read to its end must not make the log unreadable.
        short = self._replace(module=self.module[-_TEXT_CAP:], node=self.node[:_TEXT_CAP])
        return json.dumps(short._asdict()).encode("ascii") + b"\n"


class Parting(NamedTuple):
    """The first operator in which two runs of one step differ."""

    number: int
    name: str
    module: str
    message: str
    """What about it differs, in words."""
    is_cause: bool
    """Whether it computed other bits from equal inputs; what else differs is of a cause before it, or outside."""


def file_name(process: int) -> str:
    """Return the name of a process's log below `out`."""
    return f"operators-rank{process}.jsonl"


def read(file: BinaryIO) -> list[Operator]:
    """Return the operators of a log. Raises LogError for any line that this module would not have written."""
    operators: list[Operator] = []
    for line in iter(lambda: file.readline(LINE_CAP_BYTES + 1), b""):
        if len(operators) == _OPERATORS_CAP:
            raise LogError(f"it holds more than {_OPERATORS_CAP:,} operators")
        operators.append(_operator(line, len(operators) + 1))
    return operators


def _operator(line: bytes, number: int) -> Operator:
    if len(line) > LINE_CAP_BYTES or not line.endswith(b"\n"):
        raise LogError(f"line {number} is cut short or has more than {LINE_CAP_BYTES:,} bytes")
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise LogError(f"line {number} is no JSON") from None
    if not isinstance(content, dict) or tuple(content) != Operator._fields:
        raise LogError(f"line {number} is no operator")
    for key, value in content.items():
        if not _is_right(key, value):
            raise LogError(f"line {number}: its {key} is {value!r:.100}")
    if content["number"] != number:
        raise LogError(f"line {number} has number {content['number']}")
    return Operator(**content)


def _is_right(key: str, value: object) -> bool:
    if key == "number" or (key == "rank" and value is not None):
        return type(value) is int and value >= 0
    if key == "rank":
        return True
    if not isinstance(value, str):
        return False
    if key in {"inputs", "outputs"}:
        return _DIGEST.fullmatch(value) is not None
    return _NAME.fullmatch(value) is not None if key == "name" else len(value) <= _TEXT_CAP


def first_of(past: Sequence[Sequence[Operator]], again: Sequence[Sequence[Operator]]) -> Parting | None:
    """Return the first operator that differs between the logs of all processes: a cause, where there is one."""
    if len(past) == len(again):
        pairs = list(zip(past, again))
    else:
        pairs = [in_common([each for log in past for each in log], [each for log in again for each in log])]
    partings = [parting for parting in (first_operator(*pair) for pair in pairs) if parting]
    return min(partings, key=lambda parting: (not parting.is_cause, parting.number), default=None)


def first_operator(past: Sequence[Operator], again: Sequence[Operator]) -> Parting | None:
    """Return the first operator that differs between two logs of one step, None where none does."""
    for old, new in zip(past, again):
        if (old.name, old.rank, old.module, old.node) != (new.name, new.rank, new.module, new.node):
            return _parting(new, f"{new.place} is called, where the other run called {old.place}")
        if old.inputs != new.inputs:
            return _parting(new, f"{new.place} is given other inputs; what computed them is not in the log")
        if old.outputs != new.outputs:
            return _parting(new, f"{new.place} computed other bits from equal inputs", is_cause=True)
    if len(past) == len(again):
        return None
    longer = max(past, again, key=len)
    extra = longer[min(len(past), len(again))]
    return _parting(extra, f"{extra.place} is called by one of the runs only")


def _parting(operator: Operator, message: str, *, is_cause: bool = False) -> Parting:
    return Parting(operator.number, operator.name, operator.module, message, is_cause)


def in_common(past: Sequence[Operator], again: Sequence[Operator]) -> tuple[list[Operator], list[Operator]]:
    """Return what both logs hold of their virtual ranks' own shares, in the order of the first.

    Other numbers of processes share a step otherwise, and so call other operators between the shares.
    """
    theirs = dict(_named(again))
    pairs = [(old, theirs[name]) for name, old in _named(past) if name in theirs]
    return [old for old, _ in pairs], [new for _, new in pairs]


def _named(operators: Sequence[Operator]) -> Iterator[tuple[tuple[object, ...], Operator]]:
    """Yield each operator of a virtual rank with what tells it from all others."""
    counts: dict[tuple[object, ...], int] = {}
    for operator in operators:
        if operator.rank is None:
            continue
        place = operator.rank, operator.name, operator.module, operator.node
        counts[place] = counts.get(place, 0) + 1
        yield (*place, counts[place]), operator
