import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.tiny import CONF, TINY
from runner.conf.compose import compose
from runner.conf.files import groups
from runner.config import hyperparameters
from runner.errors import ConfigError

TINY_FILE = Path("experiment", "tiny.yaml")


def refused(conf: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        compose(conf, overrides)
    return str(refusal.value)


@pytest.mark.parametrize("experiment", groups(CONF)["experiment"])
@pytest.mark.parametrize("hardware", groups(CONF)["hardware"])
def test_every_experiment_composes_on_every_hardware(experiment: str, hardware: str) -> None:
    config = compose(CONF, [f"experiment={experiment}", f"hardware={hardware}"])
    assert (config.experiment.name, config.hardware.name) == (experiment, hardware)


@pytest.mark.parametrize("group", ["image", "precision", "determinism", "tracking", "scheduler"])
def test_every_option_of_every_group_composes(group: str) -> None:
    for option in groups(CONF)[group]:
        compose(CONF, ["experiment=hello", "hardware=h200", f"{group}={option}"])


def test_hardware_brings_the_image_that_fits_it_and_image_picks_another(conf: Path) -> None:
    assert compose(conf, ["experiment=tiny"]).image.name == "cpu"
    assert compose(conf, ["experiment=tiny", "hardware=h200"]).image.name == "pytorch-cuda"
    assert compose(conf, ["experiment=tiny", "hardware=h200", "image=cpu"]).image.name == "cpu"


def test_overrides_and_new_keys_reach_the_config(conf: Path) -> None:
    config = compose(conf, ["experiment=tiny", "precision=bf16", "hardware.ranks=2", "+optim.eps=1e-8", "~model.act"])
    assert config.precision.name == "bf16"
    assert config.hardware.ranks == 2
    assert config.optim == {"lr": 0.05, "nesterov": True, "eps": 1e-8}
    assert config.model == {"layers": 4, "note": None}


def test_interpolations_between_keys_resolve(conf: Path) -> None:
    assert compose(conf, ["experiment=tiny", "seed=${training.steps}"]).seed == 60


def test_an_int_for_a_float_becomes_a_float_so_that_one_value_has_one_digest(conf: Path) -> None:
    rate = compose(conf, ["experiment=tiny", "optim.lr=1"]).optim["lr"]
    assert (type(rate), rate) == (float, 1.0)


def test_hyperparameters_hold_what_is_trained_and_no_open_key(conf: Path) -> None:
    assert hyperparameters(compose(conf, ["experiment=tiny", "hardware=h200", "tracking=off"])) == {
        "experiment": {"name": "tiny", "module": "tiny", "command": [], "outputs": [], "data": []},
        "seed": 0,
        "model": {"layers": 4, "act": "relu"},
        "optim": {"lr": 0.05, "nesterov": True},
        "data": {},
        "training": {
            "steps": 60,
            "batch_size": 64,
            "micro_batches": 1,
            "eval_every_steps": 0,
            "checkpoint_every_steps": 0,
            "checkpoints_kept": 3,
        },
        "schedule": {"kind": "constant", "warmup_steps": 0, "final_scale": 1.0},
        "precision": "fp32",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no experiment chosen; conf/experiment/ has tiny\n\nhint: xrun experiment=tiny"),
        (
            "experiment=tinny seed=1",
            (
                "unknown experiment 'tinny'; did you mean tiny? conf/experiment/ has tiny"
                "\n\nhint: xrun experiment=tiny seed=1"
            ),
        ),
        ("experiment=qqq", "unknown experiment 'qqq'; conf/experiment/ has tiny"),
        ("tiny", "'tiny': expected key=value; did you mean experiment=tiny?\n\nhint: xrun experiment=tiny"),
        (
            "experiment=tiny optim.lrr=1",
            (
                "optim.lrr: unknown key in conf/experiment/tiny.yaml; did you mean optim.lr?"
                " to add a new key: +optim.lrr=1\n\nhint: xrun experiment=tiny optim.lr=1"
            ),
        ),
        (
            "experiment=tiny lr=1",
            (
                "lr: unknown key in conf/experiment/tiny.yaml; did you mean optim.lr?"
                "\n\nhint: xrun experiment=tiny optim.lr=1"
            ),
        ),
        (
            "experiment=tiny sed=1",
            "sed: unknown key in conf/config.yaml; did you mean seed?\n\nhint: xrun experiment=tiny seed=1",
        ),
        (
            "experiment=tiny hardware.rank=2",
            (
                "hardware.rank: unknown key in conf/config.yaml; did you mean hardware.ranks?"
                "\n\nhint: xrun experiment=tiny hardware.ranks=2"
            ),
        ),
        (
            "experiment=tiny optim.zzz=2",
            (
                "optim.zzz: unknown key in conf/experiment/tiny.yaml; known keys: lr, nesterov;"
                " to add a new key: +optim.zzz=2"
            ),
        ),
        ("experiment=tiny optim={lrr:1}", "optim.lrr: unknown key"),
        (
            "experiment=tiny +training.epochs=3",
            "training.epochs: unknown key; did you mean steps?",
        ),
        (
            "experiment=tiny +optim.lr=1",
            (
                "+optim.lr=1: optim.lr is there already, in conf/experiment/tiny.yaml; it is set without the +"
                "\n\nhint: xrun experiment=tiny optim.lr=1"
            ),
        ),
        (
            "experiment=tiny optim.lr=abc",
            (
                "optim.lr: expected float, found str 'abc' (conf/experiment/tiny.yaml has 0.05)"
                "\n\nhint: xrun experiment=tiny optim.lr=0.05"
            ),
        ),
        (
            "experiment=tiny optim.nesterov=1",
            (
                "optim.nesterov: expected bool, found int 1 (conf/experiment/tiny.yaml has true)"
                "\n\nhint: xrun experiment=tiny optim.nesterov=true"
            ),
        ),
        (
            "experiment=tiny model.layers=4.5",
            (
                "model.layers: expected int, found float 4.5 (conf/experiment/tiny.yaml has 4)"
                "\n\nhint: xrun experiment=tiny model.layers=4"
            ),
        ),
        (
            "experiment=tiny training.steps=ten",
            (
                "training.steps: expected int, found str 'ten' (conf/experiment/tiny.yaml has 60)"
                "\n\nhint: xrun experiment=tiny training.steps=60"
            ),
        ),
        (
            "experiment=tiny engine=dockr",
            (
                "engine: expected one of auto, docker, embedded, host, found 'dockr'; did you mean docker?"
                " (conf/config.yaml has auto)\n\nhint: xrun experiment=tiny engine=docker"
            ),
        ),
        ("experiment=tiny optim=3", "optim: expected a group of keys, found int 3"),
        (
            "experiment=tiny training.batch_size=7 hardware.ranks=2",
            (
                "training.batch_size: 7 samples do not split evenly over 2 ranks x 1 micro-batches"
                " (conf/experiment/tiny.yaml has 64)"
                "\n\nhint: xrun experiment=tiny training.batch_size=64 hardware.ranks=2"
            ),
        ),
        (
            "experiment=tiny hardware.ranks=3",
            (
                "conf/experiment/tiny.yaml: training.batch_size: 64 samples do not split evenly over 3 ranks"
                " x 1 micro-batches"
            ),
        ),
        (
            "experiment=tiny hardware.name=gpu",
            (
                "hardware.name: expected 'cpu', its file's name, found 'gpu' (conf/hardware/cpu.yaml has cpu)"
                "\n\nhint: xrun experiment=tiny hardware.name=cpu"
            ),
        ),
        ("experiment=tiny optim.lr=${nope}", "optim.lr: Interpolation key 'nope' not found"),
    ],
)
def test_a_wrong_word_is_named_with_its_file_and_what_was_meant(conf: Path, words: str, message: str) -> None:
    assert refused(conf, *words.split()) == message


def test_all_mistakes_are_named_at_once_and_the_hint_mends_them_all(conf: Path) -> None:
    assert refused(conf, "experiment=tiny", "hardware.threads=0", "training.steps=-3", "optim.lr=x") == (
        "optim.lr: expected float, found str 'x' (conf/experiment/tiny.yaml has 0.05)\n"
        "training.steps: expected at least 1, found -3 (conf/experiment/tiny.yaml has 60)\n"
        "hardware.threads: expected at least 1, found 0 (conf/hardware/cpu.yaml has 2)\n"
        "\n"
        "hint: xrun experiment=tiny hardware.threads=2 training.steps=60 optim.lr=0.05"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 60", "steps: sixty", "conf/experiment/tiny.yaml: training.steps: expected int, found str 'sixty'"),
        ("  steps: 60\n", "", "conf/experiment/tiny.yaml: training.steps: missing"),
        ("steps: 60", "steps: 0", "conf/experiment/tiny.yaml: training.steps: expected at least 1, found 0"),
        (
            "steps: 60",
            "steps: 60\n  stepz: 1",
            "conf/experiment/tiny.yaml: training.stepz: unknown key; did you mean steps?",
        ),
        (
            "name: tiny",
            "name: other",
            "conf/experiment/tiny.yaml: experiment.name: expected 'tiny', its file's name, found 'other'",
        ),
        ("lr: 0.05", "lr: [", "conf/experiment/tiny.yaml:8:6: expected ',' or ']', but got ':'"),
        ("lr: 0.05", "lr: 0.05\n  lr: 1", "conf/experiment/tiny.yaml:7:3: found duplicate key lr"),
        ("lr: 0.05", "lr: \x07", "conf/experiment/tiny.yaml: character 73: special characters are not allowed"),
        ("lr: 0.05", "lr: .nan", "conf/experiment/tiny.yaml: optim.lr: expected a number, found nan"),
        (
            "module: tiny",
            "module: null",
            "conf/experiment/tiny.yaml: experiment: expected either a module or a command",
        ),
    ],
)
def test_a_wrong_file_is_named_with_the_key(conf: Path, old: str, new: str, message: str) -> None:
    (conf / TINY_FILE).write_text(TINY.replace(old, new))
    assert refused(conf, "experiment=tiny") == message


def test_a_broken_file_that_is_not_used_stops_nobody(conf: Path) -> None:
    (conf / "experiment" / "draft.yaml").write_text("a: [")
    assert compose(conf, ["experiment=tiny"]).experiment.name == "tiny"


@pytest.mark.parametrize("resolver", ["oc.env:HOME", "oc.env:NOT_THERE,x", "env:HOME", "now:%Y", "hydra:runtime.cwd"])
def test_what_only_this_machine_or_moment_knows_does_not_resolve(conf: Path, resolver: str) -> None:
    name = resolver.partition(":")[0]
    message = f"${{{name}:…}} does not resolve: a secret or this machine's environment must not reach a lock"
    for value in (f"${{{resolver}}}", f"'${{oc.select:x,${{{resolver}}}}}'", f"'x${{oc.decode:${{{resolver}}}}}'"):
        (conf / TINY_FILE).write_text(TINY.replace("act: relu", f"act: {value}"))
        assert refused(conf, "experiment=tiny") == f"model.act: {message}"
    (conf / TINY_FILE).write_text(TINY)
    assert refused(conf, "experiment=tiny", f"optim.lr=${{{resolver}}}") == f"optim.lr: {message}"


def test_hydras_own_node_cannot_be_referred_to(conf: Path) -> None:
    message = "optim.lr: Interpolation key 'hydra.runtime.cwd' not found"
    assert refused(conf, "experiment=tiny", "optim.lr=${hydra.runtime.cwd}") == message


def test_composing_runs_no_plugin_writes_no_file_and_leaves_folder_and_environment_alone(
    conf: Path, tmp_path: Path
) -> None:
    plugins = tmp_path / "here" / "hydra_plugins" / "evil"
    plugins.mkdir(parents=True)
    (plugins / "__init__.py").write_text("raise SystemExit('a plugin of the working folder ran')\n")
    script = (
        "import os, sys, pathlib\n"
        "sys.path.insert(0, '')\n"
        "from runner.conf.compose import compose\n"
        "before = dict(os.environ), os.getcwd()\n"
        "compose(pathlib.Path(sys.argv[1]), ['experiment=tiny'])\n"
        "assert (dict(os.environ), os.getcwd()) == before\n"
    )
    environment = os.environ | {"PYTHONPATH": str(CONF.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    before = sorted(tmp_path.rglob("*"))
    ran = subprocess.run(
        [sys.executable, "-c", script, str(conf)],
        cwd=tmp_path / "here",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_command_takes_hyperparameters_as_its_words(conf: Path) -> None:
    words = ["experiment=tiny", "experiment.module=null", "experiment.command=[run,'${optim.lr}','${seed}',true]"]
    assert compose(conf, words).experiment.command == ("run", "0.05", "0", "true")
