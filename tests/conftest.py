"""The machine that the whole-program tests share: the README's first command, run once as root, no engine in sight."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from bare_machine import BareMachine, bare_machine, readme_block


@pytest.fixture(scope="session", autouse=True)
def leases(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give out the slots of this machine anew: two sessions of tests do not wait for each other."""
    os.environ["XRUN_LEASES"] = str(tmp_path_factory.mktemp("leases") / "xrun")


@pytest.fixture(scope="session", autouse=True)
def _sigint() -> None:
    """Let Ctrl-C reach what the tests start: a shell ignores it for what it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root_machine(tmp_path_factory: pytest.TempPathFactory) -> BareMachine:
    return bare_machine(tmp_path_factory.mktemp("root"), "root")


@pytest.fixture(scope="session")
def first_command(root_machine: BareMachine) -> CompletedProcess[str]:
    """What the README's first command printed."""
    return root_machine.bash(readme_block(1))


@pytest.fixture(scope="session")
def machine(root_machine: BareMachine, first_command: CompletedProcess[str]) -> BareMachine:
    """A clone in which xrun is installed and the image is there."""
    assert first_command.returncode == 0
    return root_machine


@pytest.fixture
def edited(machine: BareMachine, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file of the clone (by its path, as the test's parameter), put back after the test."""
    path = machine.folder / request.param
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


@pytest.fixture(scope="session")
def docker_host() -> str:
    """The Docker daemon's address: .ci/run starts one. Elsewhere its absence is a skip, in CI a failure."""
    socket = Path("/var/run/docker.sock")
    if not socket.exists() and os.environ.get("CI") != "true":
        pytest.skip("no Docker daemon at /var/run/docker.sock")
    return f"unix://{socket}"
