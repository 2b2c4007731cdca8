import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conf.tiny import CONF
from runner.conf.words import completion_script, completions, show_config, show_info
from runner.errors import ConfigError

COMMANDS = ("run", "lock", "ls", "show", "logs", "image")


def test_cfg_shows_the_job_alone_or_one_package_of_it(conf: Path) -> None:
    shown = show_config(conf, ["experiment=tiny", "optim.lr=0.5"], "job", package=None, resolve=False)
    assert shown.startswith("seed: 0\nengine: auto\nexperiment:\n  module: tiny\n")
    assert "\nhydra:" not in shown
    part = show_config(conf, ["experiment=tiny", "optim.lr=0.5"], "job", package="optim", resolve=False)
    assert part == "# @package optim\nlr: 0.5\nnesterov: true\n"


def test_cfg_resolves_on_request_only(conf: Path) -> None:
    words = ["experiment=tiny", "seed=${training.steps}"]
    assert show_config(conf, words, "job", package=None, resolve=False).startswith("seed: ${training.steps}\n")
    assert show_config(conf, words, "job", package=None, resolve=True).startswith("seed: 60\n")


@pytest.mark.parametrize("kind", ["hydra", "all"])
def test_cfg_shows_hydras_own_node_resolved(conf: Path, kind: str) -> None:
    shown = show_config(conf, ["experiment=tiny"], kind, package="hydra.run", resolve=True)
    assert re.fullmatch(r"# @package hydra.run\ndir: outputs/[-\d]+/[-\d]+\n", shown)


def test_cfg_never_shows_the_environment(conf: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        show_config(conf, ["experiment=tiny", "optim.lr=${oc.env:HOME}"], "all", package=None, resolve=True)
    message = "${oc.env:…} does not resolve: a secret or this machine's environment must not reach a lock"
    assert str(refusal.value) == message


def test_cfg_of_a_package_that_is_not_there_names_the_nearest(conf: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        show_config(conf, ["experiment=tiny"], "job", package="optim.lrr", resolve=False)
    assert str(refusal.value) == "--package optim.lrr: no such key; did you mean optim.lr?"


@pytest.mark.parametrize("info", ["all", "config", "defaults", "defaults-tree", "searchpath"])
def test_info_without_an_experiment_says_which_there_are(conf: Path, info: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        show_info(conf, [], info)
    assert str(refusal.value) == "no experiment chosen; conf/experiment/ has tiny\n\nhint: xrun experiment=tiny"


@pytest.mark.parametrize(
    ("info", "line"),
    [
        ("all", "Config search path"),
        ("config", "Defaults Tree"),
        ("defaults", "| experiment/tiny    "),
        ("defaults-tree", "      image: pytorch-cuda\n"),
        ("plugins", "BashCompletion"),
        ("searchpath", "| main "),
    ],
)
def test_info_says_how_the_config_is_made_and_leaves_logging_as_it_was(conf: Path, info: str, line: str) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    assert line in show_info(conf, ["experiment=tiny", "hardware=h200"], info)
    assert (list(root.handlers), root.level) == before


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("xrun l", ["lock", "logs", "ls"]),
        ("xrun experiment=", ["experiment=tiny"]),
        ("xrun experiment=t", ["experiment=tiny"]),
        ("xrun lock exp", ["experiment="]),
        ("xrun precision=", ["precision=bf16", "precision=fp16", "precision=fp32", "precision=tf32"]),
        ("xrun experiment=tiny optim.l", ["optim.lr="]),
        ("xrun experiment=tiny optim.", ["optim.lr=", "optim.nesterov="]),
        ("xrun run --offline experiment=tiny sch", ["schedule.", "scheduler.", "scheduler="]),
        ("xrun experiment=tiny hydra", []),
        ("xrun show ", []),
        ("xrun experiment=nope optim.l", []),
        ("xrun experiment=[ optim.l", []),
        ("xrun experiment=tiny 'a b", []),
    ],
)
def test_completion_offers_commands_groups_options_and_keys(conf: Path, line: str, expected: list[str]) -> None:
    assert completions(conf, line, COMMANDS) == expected


def test_completion_outside_a_project_offers_the_commands() -> None:
    assert completions(None, "xrun ", COMMANDS) == sorted(COMMANDS)


def test_a_shell_that_is_not_known_is_refused_with_the_line_to_paste() -> None:
    with pytest.raises(ConfigError) as refusal:
        completion_script("install=csh")
    assert str(refusal.value) == (
        "-sc install=csh: expected install= or uninstall= one of bash, zsh, fish"
        '\n\nhint: eval "$(xrun -sc install=bash)"'
    )


@pytest.fixture
def bash(tmp_path: Path, conf: Path) -> dict[str, str]:
    """The environment of a shell that finds an installed xrun, in a project."""
    program = tmp_path / "bin" / "xrun"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom runner.cli import main\nmain()\n")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(CONF.parent), "PROJECT": str(conf.parent)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("xrun experiment=", ["experiment=tiny"]),
        ("xrun experiment=tiny precision=b", ["precision=bf16"]),
        ("xrun experiment=tiny optim.l", ["optim.lr="]),
        ("xrun lo", ["lock", "logs"]),
    ],
)
def test_a_real_bash_completes_the_words(bash: dict[str, str], line: str, expected: list[str]) -> None:
    words = line.split()
    script = (
        'eval "$(xrun -sc install=bash)"\n'
        'cd "$PROJECT"\n'
        "complete -p xrun >&2\n"
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}\n"
        "hydra_bash_completion\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    ran = subprocess.run(["bash", "--norc", "-c", script], env=bash, capture_output=True, text=True, check=False)
    assert (ran.stdout.splitlines(), ran.returncode) == (expected, 0), ran.stderr
    assert "-F hydra_bash_completion xrun" in ran.stderr
