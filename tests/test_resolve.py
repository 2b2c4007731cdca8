from dataclasses import replace
from pathlib import PurePath
from typing import Literal

import pytest

from runner.config import (
    Config,
    Determinism,
    Experiment,
    Hardware,
    ImageChoice,
    Precision,
    Schedule,
    Scheduler,
    Sweep,
    Tracking,
    Training,
    hyperparameters,
    self_test_steps,
)
from runner.errors import ConfigError, LockError
from runner.lock import ImagePin
from runner.resolve import (
    PinnedImage,
    refreshed,
    require_current,
    require_pins,
    resolve,
    run_spec,
)

DIGEST = "sha256:" + "a" * 64
SOURCE = "sha256:" + "c" * 64
PATH = PurePath("lock/tiny.cpu.lock")
CONFIG = Config(
    experiment=Experiment(name="tiny", module="tiny", data=("letters",)),
    seed=0,
    engine="auto",
    model={"width": 8},
    optim={"lr": 0.1},
    data={},
    training=Training(
        steps=4,
        batch_size=8,
        micro_batches=1,
        clip_norm=None,
        eval_every_steps=0,
        checkpoint_every_steps=0,
        checkpoints_kept=0,
    ),
    schedule=Schedule(kind="constant", warmup_steps=0, final_scale=1.0),
    image=ImageChoice(name="cpu", source="recipe", ref="cpu", platform="linux/amd64", python="python3"),
    hardware=Hardware(name="cpu", device="cpu", arch_level="x86-64-v3", threads=2),
    precision=Precision(name="fp32"),
    determinism=Determinism(level="strongest"),
    tracking=Tracking(wandb="off", project="xrun", entity=None, tags=(), group=None, log_every_steps=1),
    scheduler=Scheduler(kind="local", timeout_s=0, hang_timeout_s=60),
    sweep=Sweep(
        kind="grid",
        metrics=("loss",),
        directions=("minimize",),
        jobs=None,
        retries=0,
        trials=0,
        sampler="tpe",
        sampler_options={},
        pruner="none",
        pruner_options={},
        seed=0,
    ),
)
IMAGE = PinnedImage(
    pin=ImagePin(
        name="cpu",
        ref="cpu",
        platform="linux/amd64",
        python="python3",
        source="recipe",
        manifest=DIGEST,
        config=DIGEST,
        diff_ids=(DIGEST,),
        recipe_digest=DIGEST,
    ),
    data={"letters": {"a.txt": DIGEST}, "digits": {"0.txt": DIGEST}},
)
LOCK = resolve(CONFIG, IMAGE, {"cpu": "AMD EPYC"})


def test_a_lock_is_current_for_the_config_it_was_made_of() -> None:
    require_current(LOCK, CONFIG, PATH, "experiment=tiny")


def test_a_lock_pins_only_the_data_that_the_experiment_reads() -> None:
    assert LOCK.data == {"letters": {"a.txt": DIGEST}}


def test_data_that_the_image_does_not_bring_is_refused() -> None:
    asking = replace(CONFIG, experiment=replace(CONFIG.experiment, data=("words",)))
    with pytest.raises(LockError) as refusal:
        resolve(asking, IMAGE, {})
    assert str(refusal.value) == (
        "experiment.data: image cpu brings no data set words; it brings digits, letters\n\n"
        "hint: add it under [data] in images/cpu/recipe.toml"
    )


def test_an_outdated_lock_names_each_key() -> None:
    moved = replace(CONFIG, seed=1, optim={"lr": 0.2}, hardware=replace(CONFIG.hardware, threads=4))
    with pytest.raises(LockError) as refusal:
        require_current(LOCK, moved, PATH, "experiment=tiny")
    assert str(refusal.value) == (
        "lock/tiny.cpu.lock is out of date:\n"
        "  hardware.threads: lock 2, asked 4\n"
        "  determinism.environment.MKL_NUM_THREADS: lock 2, asked 4\n"
        "  determinism.environment.OMP_NUM_THREADS: lock 2, asked 4\n"
        "  optim.lr: lock 0.1, asked 0.2\n"
        "  seed: lock 0, asked 1\n\n"
        "hint: xrun lock experiment=tiny"
    )


def test_a_run_refuses_a_moved_pin_but_not_a_moved_hyperparameter() -> None:
    require_pins(LOCK, replace(CONFIG, seed=1), PATH, "experiment=tiny")
    with pytest.raises(LockError) as refusal:
        require_pins(LOCK, replace(CONFIG, hardware=replace(CONFIG.hardware, threads=4)), PATH, "experiment=tiny")
    assert refusal.value.message == "lock/tiny.cpu.lock pins something else:\n  hardware.threads: lock 2, asked 4"


def test_refreshing_takes_new_hyperparameters_and_moves_no_pin() -> None:
    moved = replace(CONFIG, optim={"lr": 0.2})
    fresh = refreshed(LOCK, moved)
    assert fresh.config == hyperparameters(moved)
    assert (fresh.image, fresh.hardware, fresh.data) == (LOCK.image, LOCK.hardware, LOCK.data)


KNOWN = replace(LOCK, numerics={"mm": "0" * 16})


def test_a_run_is_held_to_the_operators_that_its_lock_pins() -> None:
    assert run_spec(KNOWN, CONFIG, replace(CONFIG, seed=1), SOURCE).numerics == KNOWN.numerics
    assert run_spec(LOCK, CONFIG, CONFIG, SOURCE).numerics is None


@pytest.mark.parametrize(
    "asked",
    [replace(CONFIG, precision=Precision(name="bf16")), replace(CONFIG, determinism=Determinism(level="resume"))],
    ids=["another precision", "another level"],
)
def test_operators_are_pinned_for_one_level_and_precision_only(asked: Config) -> None:
    assert run_spec(KNOWN, CONFIG, asked, SOURCE).numerics is None
    assert refreshed(KNOWN, asked).numerics is None
    assert refreshed(KNOWN, replace(CONFIG, seed=1)).numerics == KNOWN.numerics


def test_a_precision_of_the_same_level_and_variables_has_operators_of_its_own() -> None:
    half = [replace(CONFIG, precision=Precision(name=name)) for name in ("bf16", "fp16")]
    lock = replace(resolve(half[0], IMAGE, {}), numerics={"mm bf16": "0" * 16})
    assert run_spec(lock, half[0], half[1], SOURCE).determinism == lock.determinism
    assert run_spec(lock, half[0], half[1], SOURCE).numerics is None


def test_overrides_are_laid_over_what_is_locked_even_where_conf_has_moved_on() -> None:
    base = replace(CONFIG, seed=7, optim={"lr": 0.3})
    asked = replace(base, optim={"lr": 0.9, "momentum": 0.5})
    assert run_spec(LOCK, base, asked, SOURCE).config == LOCK.config | {"optim": {"lr": 0.9, "momentum": 0.5}}


def test_the_digest_of_a_run_ignores_engine_tracking_and_scheduler() -> None:
    elsewhere = replace(
        CONFIG,
        engine="docker",
        tracking=replace(CONFIG.tracking, project="other"),
        scheduler=replace(CONFIG.scheduler, timeout_s=5),
        determinism=replace(CONFIG.determinism, self_test="on"),
    )
    assert run_spec(LOCK, CONFIG, elsewhere, SOURCE).digest == run_spec(LOCK, CONFIG, CONFIG, SOURCE).digest


@pytest.mark.parametrize(
    "asked",
    [
        replace(CONFIG, seed=1),
        replace(CONFIG, precision=Precision(name="bf16")),
        replace(CONFIG, hardware=replace(CONFIG.hardware, ranks=2)),
        replace(CONFIG, determinism=replace(CONFIG.determinism, virtual_ranks=2)),
        replace(CONFIG, determinism=Determinism(level="repeat")),
    ],
)
def test_the_digest_of_a_run_covers_what_decides_bits(asked: Config) -> None:
    assert run_spec(LOCK, CONFIG, asked, SOURCE).digest != run_spec(LOCK, CONFIG, CONFIG, SOURCE).digest


def test_a_step_has_as_many_shares_as_ranks_unless_it_is_given_more() -> None:
    on_two = replace(CONFIG, hardware=replace(CONFIG.hardware, ranks=2))
    in_eight = replace(on_two, determinism=replace(CONFIG.determinism, virtual_ranks=8))
    assert run_spec(LOCK, CONFIG, on_two, SOURCE).virtual_ranks == 2
    assert run_spec(LOCK, CONFIG, in_eight, SOURCE).virtual_ranks == 8


@pytest.mark.parametrize(
    ("asked", "steps", "tested"), [("auto", 999, 0), ("auto", 1_000, 3), ("on", 1, 3), ("off", 9_999, 0)]
)
def test_long_runs_are_tested_first_unless_it_is_asked_otherwise(
    asked: Literal["auto", "on", "off"], steps: int, tested: int
) -> None:
    determinism, training = replace(CONFIG.determinism, self_test=asked), replace(CONFIG.training, steps=steps)
    assert self_test_steps(replace(CONFIG, determinism=determinism, training=training)) == tested


def test_a_command_has_no_steps_to_test() -> None:
    command = replace(CONFIG.experiment, module=None, command=("true",))
    determinism = replace(CONFIG.determinism, self_test="on")
    assert self_test_steps(replace(CONFIG, experiment=command, determinism=determinism)) == 0


def test_bf16_runs_at_the_level_it_can_keep() -> None:
    bf16 = replace(CONFIG, precision=Precision(name="bf16"))
    assert LOCK.determinism.level == "portable-v3"
    assert run_spec(LOCK, CONFIG, bf16, SOURCE).determinism.level == "resume"


def test_a_level_that_cannot_be_kept_is_refused_when_it_is_asked_for_by_name() -> None:
    asking = replace(CONFIG, precision=Precision(name="bf16"), determinism=Determinism(level="portable-v3"))
    with pytest.raises(ConfigError) as refusal:
        run_spec(LOCK, CONFIG, asking, SOURCE)
    assert str(refusal.value) == (
        "determinism.level: portable-v3 cannot be kept with precision=bf16: its kernels differ between CPU"
        " generations\n\nhint: xrun experiment=tiny determinism=elastic"
    )
