"""Containers whose xrun is dead, taken up by another one."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import container_name
from engines.tiny_image import TinyImage
from engines.trial import Trial, outcome_of, request_of, until
from runner.engines.docker import DockerEngine
from runner.engines.docker_payload import container_name as name_in_daemon
from runner.engines.embedded import EmbeddedEngine
from runner.engines.host import HostEngine
from runner.engines.log import GAP, unlogged
from runner.engines.request import ContainerRequest, Engine, Outcome, Remains
from runner.processes import with_variable

HERE = Path(__file__).parents[2]

ORPHAN = """
import os, pathlib, signal
from engines.tiny_image import TinyImage, TinyImages
from engines.trial import Trial
from runner.engines.docker import DockerEngine
from runner.engines.host import HostEngine
from runner.engines.request import ContainerRequest, Limits, Mount
from runner.lock import ImagePin
from pathlib import PosixPath
request = {request!r}
engine = {engine}
log = pathlib.Path({log!r})
engine.start(request, log)
while {word!r} not in log.read_text():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def orphan(engine: str, request: ContainerRequest, remains: Remains, word: str) -> None:
    """Start a container in a process that is killed when a word is in the log."""
    code = ORPHAN.format(engine=engine, request=request, log=str(remains.log), word=word)
    environment = dict(os.environ) | {"PYTHONPATH": f"{HERE}:{HERE / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def docker_orphan(image: TinyImage, remains: Remains, script: str) -> ContainerRequest:
    engine = f'DockerEngine(TinyImages(TinyImage(pin={image.pin!r}, root=pathlib.Path("/nowhere"), blobs={{}})))'
    request = request_of(Trial(script=script), image.pin, remains.out, remains.run.name)
    request = dataclasses.replace(request, store=str(remains.run.parent))
    orphan(engine, request, remains, "one")
    return request


@pytest.fixture
def remains(tmp_path: Path) -> Remains:
    return made(tmp_path / "runs")


def made(store: Path) -> Remains:
    run = store / container_name("orphan")
    (run / "out").mkdir(parents=True)
    return Remains(run=run, out=run / "out", log=run / "log.txt")


def test_a_container_is_taken_up_with_its_outcome_and_its_whole_log(
    docker_client: Any, docker_engine: DockerEngine, image: TinyImage, remains: Remains
) -> None:
    request = docker_orphan(image, remains, "echo one; while [ ! -e /out/go ]; do sleep 0.05; done; echo two; exit 7")
    assert docker_engine.is_running(remains)
    container = docker_engine.attach(remains)
    assert container is not None
    assert container.wait(0.1) is None
    (remains.out / "go").touch()
    assert outcome_of(container) == Outcome(kind="exited", exit_code=7)
    assert remains.log.read_text() == "one\ntwo\n"
    assert not docker_engine.is_running(remains)
    container.remove()
    assert docker_client.containers(all=True, filters={"name": name_in_daemon(request)}) == []
    assert docker_engine.attach(remains) is None


def test_a_container_that_has_ended_meanwhile_is_taken_up_too(
    docker_engine: DockerEngine, image: TinyImage, remains: Remains
) -> None:
    docker_orphan(image, remains, "echo one; sleep 0.5; echo two; exit 7")
    until(lambda: not docker_engine.is_running(remains))
    container = docker_engine.attach(remains)
    assert container is not None
    assert outcome_of(container) == Outcome(kind="exited", exit_code=7)
    assert remains.log.read_text() == "one\ntwo\n"
    assert remains.out.stat().st_uid == os.geteuid()
    container.remove()


def test_a_container_that_was_never_started_is_removed(
    docker_client: Any, docker_engine: DockerEngine, image: TinyImage, remains: Remains
) -> None:
    labels = {"xrun.run": remains.run.name, "xrun.store": str(remains.run.parent)}
    made_only = docker_client.create_container(image.pin.config, "true", name=remains.run.name, labels=labels)
    assert docker_engine.attach(remains) is None
    assert docker_client.containers(all=True, filters={"id": made_only["Id"]}) == []


def test_runs_of_one_id_in_two_stores_are_told_apart(
    docker_engine: DockerEngine, image: TinyImage, tmp_path: Path
) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    containers = []
    for remains in (one, other):
        request = request_of(Trial(script="sleep 100"), image.pin, remains.out, remains.run.name)
        request = dataclasses.replace(request, store=str(remains.run.parent))
        containers.append(docker_engine.start(request, remains.log))
    containers[0].stop(0)
    assert (docker_engine.is_running(one), docker_engine.is_running(other)) == (False, True)
    containers[1].stop(0)
    for container in containers:
        container.remove()


def host_request(image: TinyImage, remains: Remains, script: str) -> ContainerRequest:
    request = request_of(Trial(script=script), image.pin, remains.out)
    return dataclasses.replace(request, environment=(*request.environment, ("XRUN_OUT", "/out")))


@pytest.fixture
def host_orphan(image: TinyImage, remains: Remains) -> Iterator[Engine]:
    script = "echo one; sleep 1000 & while [ ! -e /out/go ]; do sleep 0.05; done; echo two"
    script = script.replace("/out", str(remains.out))
    orphan("HostEngine()", host_request(image, remains, script), remains, "one")
    yield HostEngine()
    for pid in with_variable("XRUN_OUT", str(remains.out)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_process_of_the_host_is_taken_up_without_its_exit_code(host_orphan: Engine, remains: Remains) -> None:
    assert host_orphan.is_running(remains)
    container = host_orphan.attach(remains)
    assert container is not None
    assert container.wait(0.1) is None
    pid = container.pid()
    assert pid is not None
    assert os.getsid(pid) == pid
    (remains.out / "go").touch()
    assert outcome_of(container) == Outcome(kind="unseen", exit_code=255)
    assert remains.log.read_text() == "one\ntwo\n"
    assert container.pid() is None
    until(lambda: with_variable("XRUN_OUT", str(remains.out)) == [])
    assert host_orphan.attach(remains) is None


def test_a_process_that_was_taken_up_is_stopped_with_all_that_it_has_started(
    host_orphan: Engine, remains: Remains
) -> None:
    container = host_orphan.attach(remains)
    assert container is not None
    container.stop(5)
    assert not host_orphan.is_running(remains)
    until(lambda: with_variable("XRUN_OUT", str(remains.out)) == [])


def test_processes_that_their_first_one_left_behind_are_ended(host_orphan: Engine, remains: Remains) -> None:
    container = host_orphan.attach(remains)
    assert container is not None
    first = container.pid()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: not host_orphan.is_running(remains))
    assert host_orphan.attach(remains) is None
    until(lambda: with_variable("XRUN_OUT", str(remains.out)) == [])


def test_a_sandbox_is_never_left(embedded_engine: EmbeddedEngine, remains: Remains) -> None:
    assert embedded_engine.attach(remains) is None
    assert not embedded_engine.is_running(remains)


@pytest.mark.parametrize(
    ("logged", "rest"),
    [
        (b"", b"one\ntwo\nthree\n"),
        (b"o", b"ne\ntwo\nthree\n"),
        (b"one\n", b"two\nthree\n"),
        (b"one\ntw", b"o\nthree\n"),
        (b"one\ntwo\nthree\n", b""),
        (b"zero\none\n", GAP + b"one\ntwo\nthree\n"),
    ],
)
def test_what_is_in_the_log_is_not_written_twice(tmp_path: Path, logged: bytes, rest: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(logged)
    assert b"".join(unlogged(iter([b"one\n", b"two\n", b"three\n"]), path)) == rest


def test_a_log_that_was_never_opened_is_written_whole(tmp_path: Path) -> None:
    assert b"".join(unlogged(iter([b"one\n", b"two\n"]), tmp_path / "log")) == b"one\ntwo\n"
