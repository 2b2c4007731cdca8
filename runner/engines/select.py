"""Which engine runs a request on this machine."""

import os
from typing import Literal

from runner.engines.request import Engine, Images
from runner.errors import EngineError

_AUTO_TIMEOUT_S = 5


def pick(name: Literal["auto", "docker", "embedded", "host"], images: Images) -> Engine:
    """Return the engine of that name. `auto` is docker where a daemon answers, else embedded. Raises EngineError.

    The host engine pins no environment, so nothing but its name leads to it. Its Python is XRUN_HOST_PYTHON's or ours.
    """
    # Each engine brings what the others do not need, the Docker SDK above all.
    if name == "host":
        from runner.engines.host import HostEngine  # noqa: PLC0415

        return HostEngine(os.environ.get("XRUN_HOST_PYTHON"))
    if name == "embedded":
        return _embedded(images)
    from runner.engines.docker import DockerEngine  # noqa: PLC0415

    if name == "docker":
        return DockerEngine(images)
    try:
        return DockerEngine(images, connect_timeout_s=_AUTO_TIMEOUT_S)
    except EngineError:
        return _embedded(images)


def pick_recorded(name: str, images: Images) -> Engine:
    """Return the engine that a run says it had. Raises EngineError."""
    names: tuple[Literal["docker", "embedded", "host"], ...] = ("docker", "embedded", "host")
    for known in names:
        if known == name:
            return pick(known, images)
    raise EngineError(f"this xrun has no engine {name!r}", hint="xrun --version")


def _embedded(images: Images) -> Engine:
    from runner.engines.embedded import EmbeddedEngine  # noqa: PLC0415

    return EmbeddedEngine(images)
