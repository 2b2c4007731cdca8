"""The trials of a grid: every combination of the values that the words of `xrun -m` give, in Hydra's order."""

import itertools
import math
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.types import Glob, IntervalSweep, Transformer, ValueType
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException

from runner.conf.overrides import Refusal, parse_word, refuse
from runner.errors import ConfigError

_TRIALS_CAP = 10_000

Words = tuple[str, ...]


def swept(texts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Return the places of the words that give several values. Raises ConfigError with every wrong word."""
    return tuple(place for place, parsed in enumerate(_parsed(texts, groups)) if parsed.is_sweep_override())


def example(texts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Words:
    """Return words of which each gives one value, the first of its own. Raises ConfigError."""
    words = []
    for text, parsed in zip(texts, _parsed(texts, groups), strict=True):
        value = parsed.value()
        if isinstance(value, IntervalSweep):
            words.append(f"{parsed.get_key_element()}={value.start}")
            continue
        values = _values(parsed, groups)
        if isinstance(values, Refusal):
            raise refuse([values], ("-m", *texts))
        words.append(values[0] if values else text)
    return tuple(words)


def grid(texts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[Words]:
    """Return the words of each trial, every combination of the values. Raises ConfigError with every wrong word."""
    found = [_values(parsed, groups) for parsed in _parsed(texts, groups)]
    if refusals := [values for values in found if isinstance(values, Refusal)]:
        raise refuse(refusals, ("-m", *texts))
    axes = [values if isinstance(values, list) else [text] for text, values in zip(texts, found, strict=True)]
    if math.prod(map(len, axes)) > _TRIALS_CAP:
        raise ConfigError(f"more than {_TRIALS_CAP:,} trials, which no sweep has: {' x '.join(_sizes(axes))}")
    return list(itertools.product(*axes))


def _parsed(texts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[HydraOverride]:
    answers = [parse_word(text, groups) for text in texts]
    if refusals := [answer for answer in answers if isinstance(answer, Refusal)]:
        raise refuse(refusals, ("-m", *texts))
    return [answer for answer in answers if not isinstance(answer, Refusal)]


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
    several = [axis for axis in axes if len(axis) > 1]
    counts = [f"{len(axis):,}" if len(axis) <= _TRIALS_CAP else "many" for axis in several]
    return [f"{axis[0].partition('=')[0]} ({count})" for axis, count in zip(several, counts, strict=True)]
