"""Two stored runs, the step in which they part, and what this machine says of it."""

import shutil
from pathlib import Path

import pytest
from host_project import Bench, make_bench
from inside import jobs

STEPS = ("experiment=tiny", "training.checkpoint_every_steps=5", "training.checkpoints_kept=0", "determinism=resume")

BATCH = "the batch differs; its samples were equal: the data or what was made of it is other"
GRADIENT = (
    "gradient of 0.bias differs (and 1 more); batch, RNG and weights before it were equal: "
    "the backward pass computed other bits"
)
RATE = "the learning rate differs (0.01 then, 0.02 now); the gradient was equal: the schedule says otherwise"
OPERATOR = "noisy.ulp.default in NoiseBackward of 1 computed other bits from equal inputs"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = make_bench(tmp_path_factory.mktemp("project"))
    shutil.copy(Path(jobs.__file__).with_name("experiments") / "noisy.py", made.folder / "experiments")
    return made


@pytest.fixture(scope="module")
def plain(bench: Bench) -> str:
    return bench.run(*STEPS)


def bisect(bench: Bench, one: str, other: str) -> tuple[int, list[str]]:
    ran = bench.xrun("bisect", one, other, "--engine", "host")
    assert ran.returncode in {0, 10}, ran.stderr
    return ran.returncode, ran.stdout.splitlines()


def test_equal_runs_are_said_to_be_equal_and_nothing_is_run(bench: Bench, plain: str) -> None:
    again = bench.run(*STEPS)
    assert bisect(bench, plain, again) == (0, ["equal: the 30 steps that both have"])
    assert bench.record()["id"] == again


def test_a_run_that_something_around_it_changed_is_told_from_the_one_that_is_repeated(bench: Bench, plain: str) -> None:
    bench.flag.touch()
    try:
        other = bench.run(*STEPS)
    finally:
        bench.flag.unlink()
    assert bisect(bench, other, plain) == (
        10,
        [
            f"first differ at step 17: {BATCH}",
            f"{other}, run twice here, is equal to itself, up to step 17 as in {plain}",
        ],
    )
    window = bench.record()
    assert window["replay_of"] == other
    assert (bench.folder / f"runs/{window['id']}/out/operators-rank0.jsonl").exists()
    assert (bench.folder / f"runs/{window['id']}/out/checkpoints/step-00000015").exists()


def test_an_operator_that_computes_other_bits_each_time_is_named(bench: Bench) -> None:
    words = ("experiment=tiny", "experiment.module=noisy", "determinism=repeat", "training.steps=4")
    one, other = bench.run(*words), bench.run(*words)
    assert bisect(bench, one, other) == (
        10,
        [
            f"first differ at step 2: {GRADIENT}",
            f"{one}, run twice here, differs from itself at step 2: {OPERATOR}",
        ],
    )


def test_what_was_asked_otherwise_is_followed_to_the_operator_that_it_reaches_first(bench: Bench, plain: str) -> None:
    other = bench.run(*STEPS, "optim.lr=0.02")
    assert bisect(bench, plain, other) == (
        10,
        [
            f"first differ at step 1: {RATE}",
            "asked otherwise:",
            "  config.optim.lr: 0.01 | 0.02",
            f"{plain}, run twice here, is equal to itself, up to step 1 as in {plain}",
            "between them: aten._fused_adamw_.default is given other inputs; what computed them is not in the log",
        ],
    )


def test_runs_of_different_weights_part_before_the_first_step(bench: Bench, plain: str) -> None:
    other = bench.run(*STEPS, "seed=3")
    assert bisect(bench, plain, other) == (
        10,
        ["first differ before step 1: the initial weights differ", "asked otherwise:", "  config.seed: 0 | 3"],
    )


def test_what_has_no_step_in_common_is_not_comparable(bench: Bench, plain: str) -> None:
    said = bench.run("experiment=said")
    ran = bench.xrun("bisect", plain, said)
    assert (ran.returncode, ran.stdout) == (11, f"not comparable: {said} is a command's run, which has no trace\n")
