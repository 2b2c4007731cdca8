"""The trials of a grid: every combination of the values that the words of `xrun -m` give, in Hydra's order."""

import itertools
import math
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Transformer, ValueType
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException

from runner.conf.overrides import Refusal, parse_word, refuse
from runner.errors import ConfigError

_TRIALS_CAP = 10_000

Words = tuple[str, ...]


def grid(texts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[Words, list[Words]]:
    """Return the words that all trials share, and each trial's own. Raises ConfigError with every wrong word."""
    parser = OverridesParser.create()
    shared: list[str] = []
    axes: list[list[str]] = []
    refusals: list[Refusal] = []
    for text in texts:
        parsed = parse_word(parser, text, groups)
        values = parsed if isinstance(parsed, Refusal) else _values(parsed, groups)
        if isinstance(values, Refusal):
            refusals.append(values)
        elif values is None:
            shared.append(text)
        else:
            axes.append(values)
    if refusals:
        raise refuse(refusals, ("-m", *texts))
    if math.prod(map(len, axes)) > _TRIALS_CAP:
        raise ConfigError(f"more than {_TRIALS_CAP:,} trials, which no sweep has: {' x '.join(_sizes(axes))}")
    return tuple(shared), list(itertools.product(*axes))


def _values(parsed: HydraOverride, groups: Mapping[str, Sequence[str]]) -> list[str] | Refusal | None:
    """Return a word for each value that a word gives, None where it gives one."""
    if not parsed.is_sweep_override():
        return None
    text = str(parsed.input_line)
    if parsed.value_type is ValueType.INTERVAL_SWEEP:
        return Refusal(what=f"{text}: an interval has no end of values for a grid; sweep=optuna picks from it")
    try:
        values = _options(parsed, groups) if parsed.value_type is ValueType.GLOB_CHOICE_SWEEP else _enumerated(parsed)
    except (HydraException, ValueError, TypeError) as error:
        return Refusal(what=f"{text}: {str(error).splitlines()[0]}")
    if not values:
        return Refusal(what=f"{text}: no value at all")
    return [f"{parsed.get_key_element()}={value}" for value in values]


def _enumerated(parsed: HydraOverride) -> list[str]:
    values = parsed.sweep_iterator(transformer=Transformer.str)
    # One more than any sweep has: a range may go on for ever.
    return [str(value) for value in itertools.islice(values, _TRIALS_CAP + 1)]


def _options(parsed: HydraOverride, groups: Mapping[str, Sequence[str]]) -> list[str]:
    pattern, key = parsed.value(), str(parsed.key_or_group)
    assert isinstance(pattern, Glob)
    if key not in groups:
        raise ValueError(f"glob picks options of a group, and {key} is none")
    return list(pattern.filter(list(groups[key])))


def _sizes(axes: list[list[str]]) -> list[str]:
    counts = [f"{len(axis):,}" if len(axis) <= _TRIALS_CAP else "many" for axis in axes]
    return [f"{axis[0].partition('=')[0]} ({count})" for axis, count in zip(axes, counts, strict=True)]
