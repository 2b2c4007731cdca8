"""The learning rate over a run: linear warm-up, then constant or half a cosine."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_PI = Decimal("3.14159265358979323846264338327950288419717")
_DIGITS = 40


def scale_at(step: int, steps: int, schedule: Mapping[str, object]) -> float:
    """Return the share of the learning rate at a step, counted from 1; the last step is `steps`."""
    warmup_steps = int(str(schedule["warmup_steps"]))
    if step <= warmup_steps:
        return step / warmup_steps
    if schedule["kind"] == "constant":
        return 1.0
    final = Decimal(str(schedule["final_scale"]))
    done = Decimal(step - warmup_steps) / Decimal(max(1, steps - warmup_steps))
    scale = final + (1 - final) * (1 + _cosine(_PI * done)) / 2
    return float(round(scale, _DIGITS // 2))


def _cosine(angle: Decimal) -> Decimal:
    """Sum the series in decimal arithmetic: the last bit of `math.cos` is the C library's own choice."""
    with localcontext() as context:
        context.prec = _DIGITS
        total, term, order = Decimal(1), Decimal(1), 0
        while abs(term) > Decimal(10) ** -_DIGITS:
            order += 2
            term *= -angle * angle / (order * (order - 1))
            total += term
        return total
