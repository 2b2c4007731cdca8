import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"docker", "filelock", "hydra", "omegaconf", "optuna", "torch", "wandb"}


def xrun(*argv: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", *argv],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def modules_imported_by(*argv: str, cwd: Path) -> set[str]:
    script = (
        "import json, sys\n"
        "from runner.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *argv],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(ran.stderr.splitlines()[-1]))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize("argv", [("--help",), ("ls",), ("ls", "--json"), ("show", "last"), ("--version",)])
def test_looking_costs_no_heavy_import(argv: tuple[str, ...], project: Path) -> None:
    assert not modules_imported_by(*argv, cwd=project) & HEAVY


def test_help_names_every_command_and_ends_well() -> None:
    answer = xrun("--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    for word in ("run", "lock", "ls", "show", "logs", "image"):
        assert f"\n  {word} " in answer.stdout


def test_no_words_at_all_print_help_and_exit_2() -> None:
    answer = xrun()
    assert answer.returncode == 2
    assert answer.stdout == xrun("--help").stdout


def test_an_unknown_command_names_the_nearest() -> None:
    answer = xrun("lokc")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "error: unknown command 'lokc'; did you mean lock?\n\nhint: xrun --help\n"


def test_an_unknown_option_is_one_message() -> None:
    answer = xrun("experiment=resnet50", "--lokced")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "error: unrecognized arguments: --lokced\n\nhint: xrun --help\n"


def test_locked_and_frozen_exclude_each_other() -> None:
    answer = xrun("experiment=resnet50", "--locked", "--frozen")
    assert answer.returncode == 2
    assert answer.stderr == "error: argument --frozen: not allowed with argument --locked\n\nhint: xrun --help\n"


def test_outside_a_project_the_message_says_what_is_missing(tmp_path: Path) -> None:
    answer = xrun("ls", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == (
        f"error: no conf/config.yaml in {tmp_path} or above it\n\nhint: cd <the folder that holds conf/>\n"
    )


def test_an_unknown_run_is_one_message(project: Path) -> None:
    answer = xrun("show", "nothing", cwd=project)
    assert (answer.returncode, answer.stdout) == (7, "")
    assert answer.stderr == f"error: no run 'nothing' in {project / 'runs'}\n\nhint: xrun ls\n"


def test_a_hyperparameter_is_no_word_of_lock() -> None:
    answer = xrun("lock", "experiment=resnet50", "optim.lr=0.2")
    assert answer.returncode == 2
    assert answer.stderr == (
        "error: optim.lr=0.2: a lock pins what conf/ says; hyperparameters are overridden at the run\n\n"
        "hint: xrun experiment=resnet50 optim.lr=0.2\n"
    )
