"""Which engine is taken."""

from pathlib import Path
from typing import Any

import pytest

from engines.tiny_image import TinyImage, TinyImages
from runner.engines.select import pick
from runner.errors import EngineError


@pytest.mark.usefixtures("docker_client")
def test_auto_is_docker_where_a_daemon_answers(image: TinyImage) -> None:
    assert pick("auto", TinyImages(image)).name == "docker"


def test_auto_is_embedded_where_none_does(image: TinyImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert pick("auto", TinyImages(image)).name == "embedded"


def test_docker_is_never_replaced(image: TinyImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineError):
        pick("docker", TinyImages(image))


@pytest.mark.parametrize("name", ["embedded", "host"])
def test_an_engine_is_taken_by_its_name(name: Any, image: TinyImage) -> None:
    assert pick(name, TinyImages(image)).name == name
