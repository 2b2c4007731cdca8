"""How the end of a container is seen: by the end of its output, and by asking the daemon now and then."""

import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from engines.conftest import container_name
from engines.tiny_image import TinyImage
from engines.trial import Trial, request_of
from runner.engines import docker
from runner.engines.docker import DockerEngine
from runner.engines.request import Container, Outcome


def started(engine: DockerEngine, image: TinyImage, folder: Path, name: str) -> Container:
    (folder / "out").mkdir()
    request = request_of(Trial(script="sleep 30"), image.pin, folder / "out", container_name(name))
    return engine.start(request, folder / "log")


def test_the_daemon_is_not_asked_at_every_wait_while_the_output_is_open(
    docker_engine: DockerEngine, image: TinyImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "_INSPECT_S", 600.0)
    container = started(docker_engine, image, tmp_path, "open")
    inspect = Mock(wraps=docker_engine._client.inspect_container)  # the daemon's own, counted
    monkeypatch.setattr(docker_engine._client, "inspect_container", inspect)
    assert [container.wait(0.01) for _ in range(5)] == [None] * 5
    assert inspect.call_count == 1
    container.stop(0)


def test_a_container_whose_output_never_ends_is_seen_to_have_ended(
    docker_client: Any, docker_engine: DockerEngine, image: TinyImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "_INSPECT_S", 0.2)
    monkeypatch.setattr(docker, "_LOG_END_TIMEOUT_S", 0.0)
    container: Any = started(docker_engine, image, tmp_path, "silent")
    ended = threading.Event()
    container._logging = threading.Thread(target=ended.wait, daemon=True)
    container._logging.start()
    assert container.wait(0.01) is None
    docker_client.kill(container_name("silent"))
    answers = (container.wait(0.05) for _ in range(600))
    assert next(filter(None, answers), None) == Outcome(kind="killed", exit_code=137)
    ended.set()
