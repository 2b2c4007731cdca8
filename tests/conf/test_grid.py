import pytest

from runner.conf.grid import example, grid, swept
from runner.errors import ConfigError

GROUPS = {"experiment": ("big", "tiny", "tiny2"), "precision": ("bf16", "fp32")}


def test_a_grid_is_every_combination_in_the_order_of_the_words() -> None:
    assert grid(["experiment=tiny", "optim.lr=0.1,0.01", "+seed=range(2)"], GROUPS) == [
        ("experiment=tiny", "optim.lr=0.1", "+seed=0"),
        ("experiment=tiny", "optim.lr=0.1", "+seed=1"),
        ("experiment=tiny", "optim.lr=0.01", "+seed=0"),
        ("experiment=tiny", "optim.lr=0.01", "+seed=1"),
    ]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("x=choice(a,b)", ["x=a", "x=b"]),
        ("x='a b','c,d'", ["x='a b'", "x='c,d'"]),
        ("x={a:1},[2,3]", ["x={a:1}", "x=[2,3]"]),
        ("x=range(1,4)", ["x=1", "x=2", "x=3"]),
        ("x=range(1.0,2.0,0.25)", ["x=1.0", "x=1.25", "x=1.5", "x=1.75"]),
        ("x=sort(3,1,2,reverse=true)", ["x=3", "x=2", "x=1"]),
        ("x=tag(t,choice(1,2))", ["x=1", "x=2"]),
        ("experiment=glob(tiny*)", ["experiment=tiny", "experiment=tiny2"]),
        ("experiment=glob(*,exclude=big)", ["experiment=tiny", "experiment=tiny2"]),
    ],
)
def test_hydras_whole_grammar_of_several_values_is_taken(word: str, values: list[str]) -> None:
    assert grid([word], GROUPS) == [(value,) for value in values]


def test_a_shuffled_range_has_every_value_once() -> None:
    assert sorted(grid(["x=shuffle(range(5))"], GROUPS)) == [(f"x={number}",) for number in range(5)]


def test_a_word_without_several_values_stays_as_it_was_typed() -> None:
    assert grid(["~model.act", "x=[1,2]"], GROUPS) == [("~model.act", "x=[1,2]")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["x=interval(0,1)"],
            "x=interval(0,1): an interval has no end of values for a grid; sweep=optuna picks from it",
        ),
        (["x=glob(*)"], "x=glob(*): glob picks options of a group, and x is none"),
        (["experiment=glob(z*)"], "experiment=glob(z*): no value at all"),
        (["x=range(3,1)"], "x=range(3,1): no value at all"),
        (
            ["x=range(200)", "y=range(200)", "z=1"],
            "more than 10,000 trials, which no sweep has: x (200) x y (200)",
        ),
        (["x=range(1000000000)"], "more than 10,000 trials, which no sweep has: x (many)"),
        (["a b=1,2", "x=interval(0,1)"], "cannot read on from the mark:\n  a b=1,2\n   ^"),
    ],
)
def test_what_is_no_grid_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        grid(words, GROUPS)
    assert refusal.value.message == message


def test_an_example_gives_each_word_one_value() -> None:
    words = ["experiment=tiny", "x=3,4", "y=interval(1,2)", "z=tag(log,int(interval(3,4)))"]
    assert example(words, GROUPS) == ("experiment=tiny", "x=3", "y=1.0", "z=3")
    assert swept(words, GROUPS) == (1, 2, 3)
