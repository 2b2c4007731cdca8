"""Exactly the pinned image in a Docker daemon: found by digest, checked, pulled by digest or loaded. Never by tag."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import docker

from runner.engines.dockerd import DAEMON_ERRORS, daemon_words, plain_text, words_of
from runner.engines.request import Images
from runner.errors import ImageError
from runner.lock import ImagePin, repository


def require_image(client: Any, images: Images, pin: ImagePin) -> Mapping[str, Any]:
    """Return the daemon's description of the pinned image; get the image first if need be. Raises ImageError."""
    found = find_image(client, pin)
    if found is not None:
        return found
    if pin.source == "registry":
        _pull(client, pin)
    else:
        _load(client, images, pin)
    found = find_image(client, pin)
    if found is None:
        raise ImageError(f"the daemon took {pin.name}, but has no image {_ids(pin)[0]} now")
    return found


def find_image(client: Any, pin: ImagePin) -> Mapping[str, Any] | None:
    """Return the daemon's description of the pinned image, None where it has not got it. Raises ImageError."""
    for name in (*_ids(pin), *_pulled_names(pin)):
        with daemon_words(f"the daemon did not answer about {name}"):
            try:
                found: Mapping[str, Any] = client.inspect_image(name)
            except docker.errors.ImageNotFound:
                continue
            _check(pin, name, found)
            return found
    return None


def _ids(pin: ImagePin) -> list[str]:
    """Return what the image's id may be: the classic store's is the config's digest, containerd's one of the others."""
    return [digest for digest in (pin.config, pin.manifest, pin.index) if digest is not None]


def _pulled_names(pin: ImagePin) -> list[str]:
    """Return the names that only a pull by digest gives; for a pin whose config's digest is still open."""
    return [f"{repository(pin.ref)}@{pin.digest}"] if pin.source == "registry" else []


def _check(pin: ImagePin, name: str, found: Mapping[str, Any]) -> None:
    if pin.config is not None and found["Id"] not in _ids(pin):
        raise ImageError(f"the daemon answers to {name} with image {found['Id']}")
    layers = tuple((found.get("RootFS") or {}).get("Layers") or ())
    if pin.diff_ids and layers != pin.diff_ids:
        raise ImageError(f"image {found['Id']} of the daemon has other layers than {pin.name} in the lock")


def _pull(client: Any, pin: ImagePin) -> None:
    name = repository(pin.ref)
    _follow(
        f"{name}@{pin.digest} cannot be pulled",
        lambda: client.pull(name, tag=pin.digest, platform=pin.platform, stream=True, decode=True),
    )


def _load(client: Any, images: Images, pin: ImagePin) -> None:
    _follow(f"the daemon does not load {pin.name}", lambda: client.load_image(images.archive(pin)))


def _follow(failed: str, begin: Any) -> None:
    """Read a daemon's progress to its end. Raises ImageError with its words."""
    try:
        for said in _messages(begin()):
            if "error" in said or "message" in said:
                raise ImageError(f"{failed}: {plain_text(str(said.get('error') or said.get('message')))}")
    except DAEMON_ERRORS as error:
        raise ImageError(f"{failed}: {words_of(error)}") from error


def _messages(stream: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    return (said for said in stream if isinstance(said, dict))
