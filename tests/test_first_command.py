"""What the README promises to a bare machine: one fingerprint, on every engine and for every user."""

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from bare_machine import (
    BareMachine,
    bare_machine,
    fingerprint_of,
    normal_user,
    readme_block,
    readme_fingerprint,
)

pytestmark = pytest.mark.image


def test_the_first_command_ends_in_the_fingerprint_that_the_readme_states(
    first_command: CompletedProcess[str],
) -> None:
    assert fingerprint_of(first_command.stdout) == readme_fingerprint()


def test_the_first_command_reaches_the_accuracy_that_the_readme_states(
    machine: BareMachine,
    first_command: CompletedProcess[str],
) -> None:
    stated = re.findall(r"^accuracy +0\.\d{4}$", (machine.folder / "README.md").read_text(), re.MULTILINE)
    assert stated[0] in first_command.stdout


def test_the_built_image_is_the_committed_locks(machine: BareMachine, first_command: CompletedProcess[str]) -> None:
    assert "lock/resnet50.cpu.lock is up to date\n" in first_command.stdout
    lock = tomllib.loads((machine.folder / "lock" / "resnet50.cpu.lock").read_text())
    assert lock["image"]["manifest"] in machine.xrun("image", "ls").stdout


def test_every_byte_of_the_built_image_is_what_its_digest_says(machine: BareMachine) -> None:
    assert re.fullmatch(r"cpu +sha256:[0-9a-f]{64}  whole\n", machine.xrun("image", "verify").stdout)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_normal_user_gets_the_same_image_and_the_same_fingerprint(open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    theirs = bare_machine(open_folder, normal_user("xruntest"))
    ran = theirs.bash(readme_block(1))
    assert "lock/resnet50.cpu.lock is up to date\n" in ran.stdout
    assert fingerprint_of(ran.stdout) == readme_fingerprint()
    assert json.loads(theirs.xrun("show", "last", "--json").stdout)["engine"] == "embedded"


def test_docker_gives_the_same_fingerprint(machine: BareMachine, docker_host: str) -> None:
    ran = machine.xrun("experiment=resnet50", "--offline", DOCKER_HOST=docker_host)
    record = json.loads(machine.xrun("show", "last", "--json").stdout)
    assert (record["engine"], record["status"], record["exit_code"]) == ("docker", "done", 0)
    assert fingerprint_of(ran.stdout) == record["fingerprint"] == readme_fingerprint()
