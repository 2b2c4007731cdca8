"""Only the pinned image, whatever a tag, a registry or an archive says. Real daemon, real registry on loopback."""

import dataclasses
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from engines.conftest import container_name, missing
from engines.tiny_image import TinyImage, TinyImages, digest, docker_archive
from engines.trial import LIMITS, Trial, perform, request_of, until
from runner.engines.docker import DockerEngine
from runner.errors import ImageError
from runner.lock import ImagePin, repository


class Archive(TinyImages):
    """Images whose archive is another's."""

    def __init__(self, image: TinyImage, content: bytes) -> None:
        super().__init__(image)
        self._content = content

    def archive(self, image: ImagePin) -> Iterator[bytes]:  # noqa: ARG002, whatever is asked for
        yield self._content


def forget(client: Any, image: TinyImage) -> None:
    try:
        client.remove_image(image.pin.config, force=True)
    except docker.errors.ImageNotFound:
        return


def marker_of(engine: DockerEngine, pin: ImagePin, folder: Path, name: str) -> str:
    return perform(engine, Trial(script="cat /etc/marker"), pin, folder, container_name(name)).log


def test_a_missing_image_is_loaded_and_gets_no_tag(docker_client: Any, image: TinyImage) -> None:
    forget(docker_client, image)
    DockerEngine(TinyImages(image)).require(image.pin)
    assert docker_client.inspect_image(image.pin.config)["RepoTags"] == []


@pytest.mark.usefixtures("docker_client")
def test_an_image_that_is_there_is_not_loaded_again(image: TinyImage) -> None:
    DockerEngine(TinyImages(image)).require(image.pin)
    DockerEngine(Archive(image, b"not to be read")).require(image.pin)


def test_a_look_alike_under_the_image_s_tag_is_not_run(
    docker_client: Any, image: TinyImage, other_image: TinyImage, tmp_path: Path
) -> None:
    named = dataclasses.replace(image.pin, ref="xrun.test/tiny:v1")
    DockerEngine(TinyImages(other_image)).require(other_image.pin)
    docker_client.tag(other_image.pin.config, "xrun.test/tiny", "v1")
    assert marker_of(DockerEngine(TinyImages(image)), named, tmp_path, "look-alike") == "tiny"


def test_a_forged_archive_is_refused(docker_client: Any, image: TinyImage) -> None:
    forget(docker_client, image)
    config = json.loads(image.blobs[image.pin.config or ""])
    config["config"]["Env"] = ["PATH=/forged"]
    forged = json.dumps(config).encode()
    engine = DockerEngine(Archive(image, docker_archive(image, tags=("xrun.test/tiny:v1",), config=forged)))
    try:
        with pytest.raises(ImageError) as refused:
            engine.require(image.pin)
    finally:
        docker_client.remove_image(digest(forged), force=True)
    assert refused.value.message == f"the daemon took tiny, but has no image {image.pin.config} now"


def test_a_damaged_archive_is_refused_in_the_daemon_s_words(docker_client: Any, image: TinyImage) -> None:
    forget(docker_client, image)
    damaged = bytearray(docker_archive(image))
    place = damaged.index(b"tiny")
    damaged[place : place + 4] = b"tinY"
    with pytest.raises(ImageError) as refused:
        DockerEngine(Archive(image, bytes(damaged))).require(image.pin)
    assert refused.value.message.startswith("the daemon does not load tiny: invalid diffID for layer 0")


def test_an_archive_that_ends_early_is_refused(docker_client: Any, image: TinyImage) -> None:
    forget(docker_client, image)

    class Broken(TinyImages):
        def archive(self, image: ImagePin) -> Iterator[bytes]:
            yield next(super().archive(image))[:2000]
            raise ImageError("blob sha256:0 is damaged")

    with pytest.raises(ImageError, match=r"^blob sha256:0 is damaged$"):
        DockerEngine(Broken(image)).require(image.pin)


def test_an_image_with_other_layers_than_the_lock_s_is_refused(docker_engine: DockerEngine, image: TinyImage) -> None:
    wrong = dataclasses.replace(image.pin, diff_ids=(f"sha256:{'0' * 64}",))
    with pytest.raises(ImageError) as refused:
        docker_engine.require(wrong)
    assert refused.value.message == f"image {image.pin.config} of the daemon has other layers than tiny in the lock"


def test_an_image_removed_before_the_start_is_loaded_again(
    docker_client: Any, docker_engine: DockerEngine, image: TinyImage, tmp_path: Path
) -> None:
    forget(docker_client, image)
    assert marker_of(docker_engine, image.pin, tmp_path, "removed") == "tiny"


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("pytorch/pytorch:2.14.0", "pytorch/pytorch"),
        ("docker.io/pytorch/pytorch:2.14.0@sha256:9c99", "docker.io/pytorch/pytorch"),
        ("127.0.0.1:5000/tiny", "127.0.0.1:5000/tiny"),
        ("127.0.0.1:5000/tiny:v1", "127.0.0.1:5000/tiny"),
    ],
)
def test_a_repository_is_a_reference_without_tag_and_digest(ref: str, name: str) -> None:
    assert repository(ref) == name


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    address: str
    storage: Path

    def blob(self, digest_: str) -> Path:
        hex_ = digest_.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / hex_[:2] / hex_ / "data"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    program = shutil.which("docker-registry")
    if program is None:
        missing("docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", tmp_path / "registry.yml"], stdout=log, stderr=log)
    try:
        until(lambda: _answers(port))
        yield Registry(address=f"127.0.0.1:{port}", storage=tmp_path / "registry")
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def push(client: Any, registry: Registry, image: TinyImage) -> ImagePin:
    """Push an image as tiny:v1, remove it here, and return a pin of it by registry."""
    DockerEngine(TinyImages(image)).require(image.pin)
    name = f"{registry.address}/tiny"
    client.tag(image.pin.config, name, "v1")
    said = list(client.push(name, tag="v1", stream=True, decode=True))
    (pushed,) = [line["aux"]["Digest"] for line in said if "Digest" in line.get("aux", {})]
    forget(client, image)
    return dataclasses.replace(image.pin, source="registry", ref=f"{name}:v1", manifest=pushed)


def test_an_image_is_pulled_by_digest(docker_client: Any, registry: Registry, image: TinyImage, tmp_path: Path) -> None:
    pin = push(docker_client, registry, image)
    engine = DockerEngine(TinyImages(image))
    engine.require(pin)
    assert docker_client.inspect_image(pin.config)["RepoTags"] == []
    assert marker_of(engine, pin, tmp_path, "pulled") == "tiny"


def test_a_moved_tag_moves_nothing(
    docker_client: Any, registry: Registry, image: TinyImage, other_image: TinyImage, tmp_path: Path
) -> None:
    pin = push(docker_client, registry, image)
    push(docker_client, registry, other_image)
    assert marker_of(DockerEngine(TinyImages(image)), pin, tmp_path, "moved") == "tiny"


def test_a_pin_with_only_a_manifest_is_pulled_and_known_again(
    docker_client: Any, registry: Registry, image: TinyImage, tmp_path: Path
) -> None:
    pin = dataclasses.replace(push(docker_client, registry, image), config=None, diff_ids=())
    engine = DockerEngine(TinyImages(image))
    engine.require(pin)
    shutil.rmtree(registry.storage)
    assert marker_of(engine, pin, tmp_path, "manifest") == "tiny"


def test_a_look_alike_does_not_stand_for_a_pin_that_was_never_pulled(
    docker_client: Any, registry: Registry, image: TinyImage, other_image: TinyImage
) -> None:
    pin = dataclasses.replace(push(docker_client, registry, image), config=None, diff_ids=())
    shutil.rmtree(registry.storage)
    DockerEngine(TinyImages(other_image)).require(other_image.pin)
    docker_client.tag(other_image.pin.config, f"{registry.address}/tiny", "v1")
    with pytest.raises(ImageError) as refused:
        DockerEngine(TinyImages(image)).require(pin)
    assert refused.value.message.startswith(f"{registry.address}/tiny@{pin.manifest} cannot be pulled: ")


def test_a_tampered_layer_in_the_registry_is_refused(docker_client: Any, registry: Registry, image: TinyImage) -> None:
    pin = push(docker_client, registry, image)
    manifest = json.loads(registry.blob(pin.digest).read_bytes())
    layer = registry.blob(manifest["layers"][0]["digest"])
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)
    with pytest.raises(ImageError) as refused:
        DockerEngine(TinyImages(image)).require(pin)
    assert refused.value.message == (
        f"{registry.address}/tiny@{pin.manifest} cannot be pulled: "
        f"filesystem layer verification failed for digest {manifest['layers'][0]['digest']}"
    )


def test_a_tampered_manifest_in_the_registry_is_refused(
    docker_client: Any, registry: Registry, image: TinyImage
) -> None:
    pin = push(docker_client, registry, image)
    manifest = registry.blob(pin.digest)
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(ImageError) as refused:
        DockerEngine(TinyImages(image)).require(pin)
    assert refused.value.message.startswith(f"{registry.address}/tiny@{pin.manifest} cannot be pulled: ")


def test_an_image_swapped_behind_the_daemon_s_back_is_refused_after_create(
    docker_engine: DockerEngine, other_image: TinyImage, image: TinyImage, tmp_path: Path
) -> None:
    """The daemon's answer to `create` is the only thing replaced: no real daemon swaps an image on demand."""
    DockerEngine(TinyImages(other_image)).require(other_image.pin)
    create = docker_engine._client.create_container_from_config

    def swapped(payload: dict[str, Any], name: str) -> Any:
        return create(payload | {"Image": other_image.pin.config}, name)

    docker_engine._client.create_container_from_config = swapped
    (tmp_path / "out").mkdir()
    request = request_of(Trial(script="true", limits=LIMITS), image.pin, tmp_path / "out", container_name("swapped"))
    with pytest.raises(ImageError) as refused:
        docker_engine.start(request, tmp_path / "log")
    assert refused.value.message == (
        f"the Docker daemon made a container of image {other_image.pin.config}, not of {image.pin.config}"
    )
    assert docker_engine._client.containers(all=True, filters={"name": request.name}) == []
