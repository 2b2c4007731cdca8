"""The level's self-test, with the real processes that it starts."""

from pathlib import Path
from typing import Any

import pytest

from inside.jobs import make_spec, run

TEST = {"XRUN_SELF_TEST_STEPS": "3"}


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({"determinism__level": "repeat"}, [1, 1]),
        ({"determinism__level": "elastic", "ranks": 2}, [2, 2, 1]),
        ({"determinism__level": "elastic", "virtual_ranks": 2}, [1, 1, 2]),
        ({"determinism__level": "resume", "ranks": 2, "config__precision": "bf16"}, [2, 2]),
    ],
    ids=["repeat", "elastic on 2 ranks", "elastic on 1 rank", "bf16 on 2 ranks"],
)
def test_a_sound_experiment_passes_and_no_bit_of_its_run_changes(
    tmp_path: Path, changes: dict[str, Any], ranks: list[int]
) -> None:
    spec = make_spec(**changes, config__training__eval_every_steps=2, config__training__checkpoint_every_steps=3)
    plain, tested = run(tmp_path, spec, name="plain"), run(tmp_path, spec, name="tested", environment=TEST)
    assert tested.done["fingerprint"] == plain.done["fingerprint"]
    assert [event["kind"] for event in tested.events[: len(ranks) + 2]] == [
        *["self-test-run"] * len(ranks),
        "self-test",
        "start",
    ]
    assert tested.events[len(ranks)] == {"kind": "self-test", "steps": 3, "ranks": ranks}
    assert tested.done["files"].keys() == plain.done["files"].keys()


def test_an_operator_whose_bits_are_not_the_same_in_every_process_is_named(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(config__experiment__module="noisy"), environment=TEST)
    assert ran.exit_code == 2
    assert ran.error() == (
        "error: level repeat cannot be kept: two runs of its first steps in fresh processes differ at step 2, rank 0, "
        "in local_grad of 0.bias: noisy.ulp.default in NoiseBackward of 1 computed other bits from equal inputs\n\n"
        "hint: determinism=seeded\n"
    )
    assert not (ran.out / "done.json").exists()


def test_an_operator_that_returns_memory_it_never_wrote_is_named(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(config__experiment__module="unwritten"), environment=TEST)
    assert ran.exit_code == 2
    assert ran.error() == (
        "error: level repeat cannot be kept: two runs of its first steps in fresh processes differ at step 1, rank 0, "
        "in output: unwritten.zeros.default of 0 computed other bits from equal inputs\n\n"
        "hint: determinism=seeded\n"
    )


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({"ranks": 2}, "2 and 1 ranks at step 1, ranks 0, 1"),
        ({"virtual_ranks": 2}, "1 and 2 ranks at step 1, virtual ranks 0, 1"),
    ],
    ids=["on 2 ranks", "on 1 rank"],
)
def test_bits_that_depend_on_the_number_of_processes_are_refused(
    tmp_path: Path, changes: dict[str, Any], runs: str
) -> None:
    spec = make_spec(config__experiment__module="counting", determinism__level="elastic", **changes)
    ran = run(tmp_path, spec, environment=TEST)
    assert ran.exit_code == 2
    assert ran.error() == (
        f"error: level elastic cannot be kept: its first steps differ between {runs}, in loss: "
        "aten.mul.Tensor is given other inputs; what computed them is not in the log\n\n"
        "hint: determinism=resume\n"
    )


def test_an_experiment_that_fails_in_the_self_test_fails_with_its_own_error(tmp_path: Path) -> None:
    spec = make_spec(ranks=2, config__data={"fault": "raise"}, config__training__batch_size=64)
    ran = run(tmp_path, spec, environment=TEST)
    assert ran.exit_code == 1
    assert ran.error(1).endswith("ValueError: sample 41 cannot be read\n")
    assert ran.output.endswith("\nself-test: 3 steps on 2 ranks failed\n")
    assert [event["kind"] for event in ran.events] == ["self-test-run"]


def test_a_level_that_promises_nothing_is_not_tested(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(determinism__level="seeded"), environment=TEST)
    assert ran.done
    assert ran.events[0]["kind"] == "start"


def test_a_run_is_computed_on_as_many_ranks_as_it_is_told_to(tmp_path: Path) -> None:
    spec = make_spec(determinism__level="elastic", virtual_ranks=4)
    one, two = run(tmp_path, spec, name="one"), run(tmp_path, spec, name="two", environment={"XRUN_RANKS": "2"})
    assert one.done["fingerprint"] == two.done["fingerprint"]
    assert b'"world_size": 2' in (two.out / "trace-rank0.bin").read_bytes()


@pytest.mark.parametrize(
    ("level", "ranks", "message"),
    [
        ("resume", "2", "level resume promises nothing on 2 ranks: the run has 4"),
        ("elastic", "8", "8 ranks cannot share 4 virtual ranks"),
    ],
)
def test_ranks_that_a_level_does_not_hold_on_are_refused(tmp_path: Path, level: str, ranks: str, message: str) -> None:
    ran = run(tmp_path, make_spec(determinism__level=level, ranks=4), environment={"XRUN_RANKS": ranks})
    assert (ran.exit_code, ran.error()) == (2, f"error: {message}\n")
