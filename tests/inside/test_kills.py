"""A run that is killed at random moments and goes on, again and again, ends with the bits of one that never was."""

import random
from pathlib import Path

import pytest

from inside.kills import killed_spec, killed_until_done, whole


@pytest.mark.parametrize(("ranks", "precision"), [(1, "fp32"), (2, "bf16"), (4, "fp16")])
def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(
    tmp_path: Path, ranks: int, precision: str
) -> None:
    spec = killed_spec(ranks, precision)
    unbroken = whole(tmp_path, spec)
    survived = killed_until_done(tmp_path, spec, unbroken.step_s, random.Random(ranks), most=2)
    assert survived.went_on_from
    assert survived.fingerprint == unbroken.fingerprint
