"""What a search may vary and how it is asked to pick, as plain values; a picked value as a command line's word."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from runner.parse import Scalar

Direction = Literal["minimize", "maximize"]
Sampler = Literal["tpe", "gp", "cmaes", "qmc", "random", "nsga2", "nsga3", "bruteforce"]
Pruner = Literal["none", "median", "percentile", "hyperband", "successive-halving", "patient", "threshold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One key that a search varies, and the values that it may take."""

    key: str
    """As it stands before the `=`, with its `+` where it has one."""
    kind: Literal["float", "int", "choice"]
    low: float = 0
    high: float = 0
    """The largest value: ends are inside."""
    step: float | None = None
    """To the next value; below 0 counted from `high`. None where every float between the ends may be picked."""
    log: bool = False
    choices: tuple[str, ...] = ()
    """Texts, each as it stands after the `=`."""

    @property
    def name(self) -> str:
        """The key alone."""
        return self.key.lstrip("+")

    @property
    def size(self) -> int | None:
        """How many values there are; None where they cannot be counted."""
        if self.kind == "choice":
            return len(self.choices)
        return None if self.step is None else round((self.high - self.low) / abs(self.step)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How the next trial of a search is picked, and when one is given up early."""

    sampler: Sampler
    sampler_options: Mapping[str, Scalar]
    pruner: Pruner
    pruner_options: Mapping[str, Scalar]
    directions: tuple[Direction, ...]
    """One an objective."""
    seed: int


def word(dimension: Dimension, value: float | str) -> str:
    """Return the word that gives a dimension's key a value; read back, it is the very same value."""
    if dimension.kind == "choice":
        return f"{dimension.key}={value}"
    if dimension.kind == "int":
        return f"{dimension.key}={int(value)}"
    return f"{dimension.key}={_on_step(dimension, float(value))!r}"


def _on_step(dimension: Dimension, value: float) -> float:
    """Return a value of a stepped range with the very bits that Hydra's range gives it."""
    if dimension.step is None:
        return value
    first = dimension.low if dimension.step > 0 else dimension.high
    exact, step = Decimal(first), Decimal(dimension.step)
    # Hydra adds up, and each sum is rounded to 28 digits: 0.1 three times is 0.3 by that, by a product it is not.
    for _ in range(round((value - first) / dimension.step)):
        exact += step
    return float(exact)
