import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.toml import toml_text

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8")),
)
keys = st.text(st.characters(codec="utf-8"))
trees = st.dictionaries(
    keys,
    st.recursive(
        scalars | st.lists(scalars),
        lambda inner: st.dictionaries(keys, inner) | st.lists(st.dictionaries(keys, scalars), min_size=1),
        max_leaves=12,
    ),
)


@given(trees)
def test_what_is_written_reads_back_as_the_same_value(tree: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(tree)) == tree


def test_the_order_of_keys_does_not_change_the_text() -> None:
    assert toml_text({"b": 1, "a": {"d": 2, "c": 3}}) == toml_text({"a": {"c": 3, "d": 2}, "b": 1})


def test_a_float_keeps_every_digit() -> None:
    assert toml_text({"lr": 0.1 + 0.2, "tiny": 5e-324}) == "lr = 0.30000000000000004\ntiny = 5e-324\n"


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="TOML has no word for nan"):
        toml_text({"loss": float("nan")})
