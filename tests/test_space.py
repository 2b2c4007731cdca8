from collections.abc import Mapping

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hypothesis import given
from hypothesis import strategies as st

from runner.conf.space import dimensions
from runner.errors import ConfigError
from runner.space import Dimension, word

GROUPS: Mapping[str, tuple[str, ...]] = {"experiment": ("tiny",), "precision": ("bf16", "fp16", "fp32")}


def one(text: str) -> Dimension:
    fixed, (dimension,) = dimensions([text], GROUPS)
    assert fixed == []
    return dimension


def floats(key: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Dimension:
    return Dimension(key=key, kind="float", low=low, high=high, step=step, log=log)


def ints(key: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Dimension:
    return Dimension(key=key, kind="int", low=low, high=high, step=step, log=log)


def choice(key: str, *choices: str) -> Dimension:
    return Dimension(key=key, kind="choice", choices=choices)


def read(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("lr=interval(1e-4,1e-1)", floats("lr", 1e-4, 1e-1)),
        ("lr=tag(log, interval(1e-4,1e-1))", floats("lr", 1e-4, 1e-1, log=True)),
        ("lr=interval(1,8)", floats("lr", 1.0, 8.0)),
        ("n=int(interval(1,8))", ints("n", 1, 8)),
        ("n=tag(log, int(interval(1,8)))", ints("n", 1, 8, log=True)),
        ("n=int(tag(log, interval(1,8)))", ints("n", 1, 8, log=True)),
        ("n=tag(int, log, interval(1,8))", ints("n", 1, 8, log=True)),
        ("n=range(1,9,2)", ints("n", 1, 7, step=2)),
        ("n=range(3)", ints("n", 0, 2)),
        ("n=range(9,1,-2)", ints("n", 3, 9, step=2)),
        ("n=shuffle(range(1,9,2))", ints("n", 1, 7, step=2)),
        ("n=range(4,5)", ints("n", 4, 4)),
        ("n=tag(log, range(1,9))", ints("n", 1, 8, log=True)),
        ("x=range(0.1,0.5,0.1)", floats("x", 0.1, 0.4, step=0.1)),
        ("x=float(range(1,4))", floats("x", 1.0, 3.0, step=1.0)),
        ("++a.b=1,x,'y,z',null,1.5e-7", choice("++a.b", "1", "x", "'y,z'", "null", "1.5e-07")),
        ("+a=choice(a,b)", choice("+a", "a", "b")),
        ("optim.kind=SGD,AdamW", choice("optim.kind", "SGD", "AdamW")),
        ("model={a: 1},{b: [2,3]}", choice("model", "{a:1}", "{b:[2,3]}")),
        ("n=sort(3,1,2)", choice("n", "1", "2", "3")),
        ("n=sort(3,1,2,reverse=true)", choice("n", "3", "2", "1")),
        ("n=shuffle(3,1,2)", choice("n", "3", "1", "2")),
        ("precision=fp32,bf16", choice("precision", "fp32", "bf16")),
        ("precision=glob(*)", choice("precision", "bf16", "fp16", "fp32")),
        ("precision=glob([fp*],exclude=*16)", choice("precision", "fp32")),
    ],
)
def test_a_sweep_of_hydras_grammar_is_a_dimension(text: str, dimension: Dimension) -> None:
    assert one(text) == dimension


def test_words_that_every_trial_has_are_kept_as_they_are_and_in_order() -> None:
    texts = ["experiment=tiny", "n=range(3)", "+a=[1, 2]", "lr=interval(1,2)", "~b"]
    fixed, found = dimensions(texts, GROUPS)
    assert fixed == ["experiment=tiny", "+a=[1, 2]", "~b"]
    assert [dimension.key for dimension in found] == ["n", "lr"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=interval(1,1)", "both ends are the same; an interval goes from its low to its high end"),
        ("lr=interval(2,1)", "the larger end stands first; an interval goes from its low to its high end"),
        ("n=int(interval(0.2,0.8))", "both ends are the same; an interval goes from its low to its high end"),
        ("lr=interval(0,inf)", "the ends of an interval are finite numbers"),
        ("lr=interval(nan,1)", "the ends of an interval are finite numbers"),
        ("lr=tag(log,interval(0,1))", "a log scale begins above 0, found 0.0"),
        ("n=tag(log,range(1,9,2))", "a log scale has no steps; tag(log, interval(low,high))"),
        ("n=tag(log,float(range(1,9)))", "a log scale has no steps; tag(log, interval(low,high))"),
        ("lr=tag(lgo,interval(1,2))", "unknown tag lgo; did you mean log?"),
        ("lr=tag(x,interval(1,2))", "unknown tag x; tags are int, log"),
        ("lr=tag(log,choice(1,2))", "unknown tag log; choices take no tag"),
        ("n=range(5,5)", "no value is in it; a range ends before its second number"),
        ("n=range(1,9,0)", "a step of 0 leads nowhere"),
        ("x=range(0.0,inf,1.0)", "the ends and the step of a range are finite numbers"),
        ("x=range(0,1e9,0.5)", "more than 100000 values; for so many there is interval(low,high)"),
        ("n=range(0,99999999999999999)", "a search tells integers apart up to 2**53 only"),
        ("n=choice()", "empty choice is not legal"),
        ("n=1,2,1", "1 stands in it twice"),
        ("n=glob(*)", "glob picks from a group's options, and n is not a group"),
        ("precision=glob(x*)", "no value to choose from"),
        ("~n=1,2", "a key is deleted in every trial or in none"),
    ],
)
def test_a_dimension_that_cannot_be_searched_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        one(text)
    assert str(refusal.value) == f"{text}: {message}"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["precision=fp32,bf15"], "unknown precision 'bf15'; did you mean bf16? conf/precision/ has bf16, fp16, fp32"),
        (["a/b=1,2"], "a/b: unknown group; groups are experiment, precision"),
        (["lr=1,["], "cannot read on from the mark:\n  lr=1,[\n        ^"),
        (["n=1", "+n=range(3)"], "n: given twice; a key is fixed or searched, by one word"),
        (["n=1,2", "n=range(3)"], "n: given twice; a key is fixed or searched, by one word"),
        (["lr=interval(1,1)", "n=range(5,5)"], None),
        (
            ["precision=bf15", "n=range(3)"],
            (
                "unknown precision 'bf15'; did you mean bf16? conf/precision/ has bf16, fp16, fp32"
                "\n\nhint: xrun precision=bf16 'n=range(3)'"
            ),
        ),
    ],
)
def test_wrong_words_are_named_all_at_once(texts: list[str], message: str | None) -> None:
    with pytest.raises(ConfigError) as refusal:
        dimensions(texts, GROUPS)
    if message is None:
        assert [line.partition(":")[0] for line in str(refusal.value).splitlines()] == texts
    else:
        assert str(refusal.value) == message


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_picked_float_is_read_back_with_all_its_bits(value: float) -> None:
    assert repr(read(word(floats("lr", -1e308, 1e308), value)).value()) == repr(value)


@given(st.integers(-(2**53), 2**53))
def test_a_picked_integer_is_read_back_as_it_is(value: int) -> None:
    assert repr(read(word(ints("+n", -(2**53), 2**53), float(value))).value()) == repr(value)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values_of_any_kind = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=6,
)


def written(value: object) -> str:
    """A value as a careful person writes it on the command line: every string in quotes."""
    if isinstance(value, str):
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value)


@given(st.lists(values_of_any_kind, min_size=2, max_size=4, unique_by=repr))
def test_a_picked_choice_is_read_back_as_it_was_written(values: list[object]) -> None:
    dimension = one(f"model={','.join(map(written, values))}")
    assert [repr(read(word(dimension, text)).value()) for text in dimension.choices] == [repr(v) for v in values]


@given(st.lists(st.text("ab1.- \\,'\":=[]{}()$@éTruenlf", min_size=1, max_size=6), min_size=2, max_size=3))
def test_a_choice_without_quotes_is_read_back_as_hydra_reads_it(texts: list[str]) -> None:
    text = f"model={','.join(texts)}"
    try:
        dimension = one(text)
    except (ConfigError, ValueError):
        return  # refused, or no sweep at all
    assert [repr(read(word(dimension, choice)).value()) for choice in dimension.choices] == [
        repr(Override._convert_value(value)) for value in read(text).sweep_iterator()
    ]


@given(
    st.integers(-50, 50),
    st.integers(1, 60),
    st.sampled_from([1.0, 0.1, 0.01, 0.25, 1e-3, 1 / 3]),
    st.sampled_from([1, -1]),
)
def test_every_value_of_a_range_of_floats_has_the_bits_that_hydra_gives_it(
    start: int, count: int, unit: float, sign: int
) -> None:
    stop = start + sign * count
    text = f"x=range({start * unit!r},{stop * unit!r},{sign * unit!r})"
    values = [float(str(value)) for value in read(text).sweep_iterator()]
    dimension = one(text)
    assert dimension.size == len(values)
    # What a search picks is off by some roundings of its own.
    picked = [dimension.low + index * unit for index in range(len(values))]
    assert [read(word(dimension, value)).value() for value in picked] == sorted(values)
