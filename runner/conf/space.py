"""From the words of `xrun -m` to the dimensions of a search, by Hydra's grammar: interval, range, choice, glob, tag."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    OverrideType,
    RangeSweep,
    Sweep,
)
from hydra.core.override_parser.types import Override as HydraOverride

from runner.conf.overrides import Refusal, parse_word, read_overrides, refuse
from runner.errors import ConfigError
from runner.parse import nearest
from runner.space import Dimension, word

_TAGS = ("int", "log")
_MAX_VALUES = 100_000
_EXACT = 2**53
"""Beyond it a float cannot tell an integer from the next one."""

Answer = Dimension | Refusal | None


def dimensions(texts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[list[str], list[Dimension]]:
    """Part the words of a command line into those that every trial has and the dimensions that trials differ in.

    The order of the values, which sort and shuffle are about, is the search's to choose. Raises ConfigError with
    every word that is wrong in itself.
    """
    answers = [_read(text, groups) for text in texts]
    refusals = [answer for answer in answers if isinstance(answer, Refusal)]
    found = [answer for answer in answers if isinstance(answer, Dimension)]
    fixed = [text for text, answer in zip(texts, answers, strict=True) if answer is None]
    refusals += _twice(fixed, found)
    if refusals:
        raise refuse(refusals, texts)
    return fixed, found


def _read(text: str, groups: Mapping[str, Sequence[str]]) -> Answer:
    """Return the dimension that a word is, None where it is a plain word, or why it is refused."""
    parsed = parse_word(text, groups)
    if isinstance(parsed, Refusal):
        return parsed
    if not parsed.is_sweep_override():
        return _wrong(text, [text], groups)
    if parsed.type is OverrideType.DEL:
        return Refusal(what=f"{text}: a key is deleted in every trial or in none")
    dimension = _dimension(text, parsed, groups)
    if isinstance(dimension, Refusal):
        return dimension
    # Of a group every option must be there; what is wrong with a key is wrong with any of its values.
    values = dimension.choices or (dimension.low,)
    checked = values if parsed.key_or_group in groups else values[:1]
    return _wrong(text, [word(dimension, value) for value in checked], groups) or dimension


def _wrong(text: str, words: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Refusal | None:
    """Say what is wrong with the words that one word of the command line stands for."""
    try:
        read_overrides(words, groups)
    except ConfigError as error:
        meant = error.hint.removeprefix("xrun ") if error.hint and [text] == list(words) else None
        return Refusal(what=error.message, text=text, instead=meant)
    return None


def _dimension(text: str, parsed: HydraOverride, groups: Mapping[str, Sequence[str]]) -> Dimension | Refusal:
    sweep, key = parsed.value(), parsed.get_key_element()
    tags = sorted(sweep.tags) if isinstance(sweep, Sweep) else []
    allowed = () if isinstance(sweep, ChoiceSweep) else _TAGS
    for tag in tags:
        if tag not in allowed:
            near = nearest(str(tag), allowed)
            known = f"tags are {', '.join(allowed)}" if allowed else "choices take no tag"
            return Refusal(what=f"{text}: unknown tag {tag}; {f'did you mean {near}?' if near else known}")
    if isinstance(sweep, IntervalSweep):
        return _interval(text, key, sweep)
    if isinstance(sweep, RangeSweep):
        return _range(text, key, sweep)
    if isinstance(sweep, Glob):
        group = str(parsed.key_or_group)
        if group not in groups:
            return Refusal(what=f"{text}: glob picks from a group's options, and {group} is not a group")
        return _choice(text, key, sorted(sweep.filter(list(groups[group]))))
    assert isinstance(sweep, ChoiceSweep)
    return _choice(text, key, list(parsed.sweep_string_iterator()) if not sweep.shuffle else _written(parsed, sweep))


def _written(parsed: HydraOverride, sweep: ChoiceSweep) -> list[str]:
    """Return shuffled choices as they were written: Hydra would shuffle them anew each time it reads the word."""
    sweep.shuffle = False
    return list(parsed.sweep_string_iterator())


def _interval(text: str, key: str, sweep: IntervalSweep) -> Dimension | Refusal:
    assert sweep.start is not None
    assert sweep.end is not None
    if not (math.isfinite(sweep.start) and math.isfinite(sweep.end)):
        return Refusal(what=f"{text}: the ends of an interval are finite numbers")
    is_int = "int" in sweep.tags or type(sweep.start) is int
    low, high = (int(sweep.start), int(sweep.end)) if is_int else (sweep.start, sweep.end)
    if low >= high:
        what = "both ends are the same" if low == high else "the larger end stands first"
        return Refusal(what=f"{text}: {what}; an interval goes from its low to its high end")
    kind: Literal["int", "float"] = "int" if is_int else "float"
    step = 1 if is_int else None
    return _numbers(text, Dimension(key=key, kind=kind, low=low, high=high, step=step, log="log" in sweep.tags))


def _range(text: str, key: str, sweep: RangeSweep) -> Dimension | Refusal:
    if sweep.step == 0:
        return Refusal(what=f"{text}: a step of 0 leads nowhere")
    if not all(math.isfinite(number or 0) for number in (sweep.start, sweep.stop, sweep.step)):
        return Refusal(what=f"{text}: the ends and the step of a range are finite numbers")
    values = sweep.range()
    # A range of integers knows its ends however long it is; one of floats has to be gone through.
    listed = [] if isinstance(values, range) else list(itertools.islice(values, _MAX_VALUES + 1))
    if len(listed) > _MAX_VALUES:
        return Refusal(what=f"{text}: more than {_MAX_VALUES} values; for so many there is interval(low,high)")
    ends = [values[0], values[-1]] if isinstance(values, range) and values else listed[:1] + listed[-1:]
    if not ends:
        return Refusal(what=f"{text}: no value is in it; a range ends before its second number")
    kind: Literal["int", "float"] = "int" if isinstance(values, range) else "float"
    low, high, log = min(ends), max(ends), "log" in sweep.tags
    # Where a range of floats begins decides their last bits.
    step = abs(sweep.step) if kind == "int" else sweep.step
    return _numbers(text, Dimension(key=key, kind=kind, low=low, high=high, step=step, log=log))


def _numbers(text: str, dimension: Dimension) -> Dimension | Refusal:
    is_int = dimension.kind == "int"
    if dimension.log and dimension.step != (1 if is_int else None):
        return Refusal(what=f"{text}: a log scale has no steps; tag(log, interval(low,high))")
    if dimension.log and dimension.low <= 0:
        return Refusal(what=f"{text}: a log scale begins above 0, found {dimension.low}")
    if is_int and max(abs(dimension.low), abs(dimension.high)) > _EXACT:
        return Refusal(what=f"{text}: a search tells integers apart up to 2**53 only")
    return dimension


def _choice(text: str, key: str, choices: Sequence[str]) -> Dimension | Refusal:
    if not choices:
        return Refusal(what=f"{text}: no value to choose from")
    for index, choice in enumerate(choices):
        if choice in choices[:index]:
            return Refusal(what=f"{text}: {choice} stands in it twice")
    return Dimension(key=key, kind="choice", choices=tuple(choices))


def _twice(fixed: Sequence[str], found: Sequence[Dimension]) -> Iterator[Refusal]:
    said = {text.partition("=")[0].lstrip("+~") for text in fixed}
    for dimension in found:
        if dimension.name in said:
            yield Refusal(what=f"{dimension.name}: given twice; a key is fixed or searched, by one word")
        said.add(dimension.name)
