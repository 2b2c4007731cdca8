"""`xrun lock` where the probe cannot run: the lock is made, its numerics stay open, and it says why."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from host_project import IMAGE, ROOT

EXPERIMENT = """\
# @package _global_
experiment: {name: tiny, module: tiny}
training: {steps: 3, batch_size: 16}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny.py").touch()
    (tmp_path / "conf" / "image" / "none.yaml").write_text(IMAGE)
    (tmp_path / "conf" / "experiment" / "tiny.yaml").write_text(EXPERIMENT)
    return tmp_path


def lock(project: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XRUN_HOME": str(project / "home")}
    environment["DOCKER_HOST"] = "unix:///nowhere/docker.sock"
    argv = [sys.executable, "-m", "runner", "lock", "experiment=tiny", *words]
    return subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_without_an_engine_for_the_image_numerics_stay_open(project: Path) -> None:
    locked = lock(project, "image=none")
    assert locked.returncode == 0
    assert re.fullmatch(r"numerics: left open: [^\n]*none[^\n]*\n", locked.stderr)
    assert "numerics" not in tomllib.loads((project / "lock" / "tiny.cpu.lock").read_text())


def test_the_host_s_own_python_says_nothing_of_an_image(project: Path) -> None:
    config = project / "conf" / "config.yaml"
    config.write_text(re.sub(r"^engine: \w+", "engine: host", config.read_text(), flags=re.MULTILINE))
    assert lock(project, "image=none").stderr == "numerics: left open: engine=host runs no image\n"


def test_on_other_hardware_numerics_stay_open(project: Path) -> None:
    locked = lock(project, "image=none", "hardware=h200")
    assert locked.stderr == "numerics: left open: this machine is not what hardware=h200 requires\n"
    assert (locked.returncode, locked.stdout.partition(" is written")[0]) == (0, "lock/tiny.h200.lock")
