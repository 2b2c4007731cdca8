"""The connection to a Docker daemon, and its errors in xrun's words."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import docker
import requests
from docker.context import ContextAPI

from runner.errors import EngineError

# The SDK raises KeyError where a daemon's answer misses a field, ValueError where it is no JSON.
DAEMON_ERRORS = (docker.errors.DockerException, requests.RequestException, KeyError, ValueError, OSError)

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+"
)


def connect(timeout_s: float) -> Any:
    """Return an API client for the daemon of DOCKER_HOST, else of the current context. Raises EngineError."""
    with daemon_words("no Docker daemon answers", hint="start it, or use engine=embedded"):
        address = docker.utils.kwargs_from_env()
        if "base_url" not in address:
            address = ContextAPI.kwargs_from_context() | address
        _reach(str(address.get("base_url", "")))
        client = docker.APIClient(version="auto", timeout=timeout_s, **address)
        client.ping()
        return client


def _reach(address: str) -> None:
    """Raise OSError where a local socket has no daemon; the SDK would say so in many words, and leave a socket open."""
    scheme, _, path = address.partition("://")
    if scheme in {"unix", "http+unix"}:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError as error:
                raise OSError(f"{path}: {error.strerror}") from None


@contextmanager
def daemon_words(failed: str, *, hint: str | None = None) -> Iterator[None]:
    """Turn whatever the SDK raises into an EngineError: what failed, and why in the daemon's words."""
    try:
        yield
    except DAEMON_ERRORS as error:
        raise EngineError(f"{failed}: {words_of(error)}", hint=hint) from error


def words_of(error: BaseException) -> str:
    """Return what an error says, in one line that cannot drive a terminal."""
    explanation = getattr(error, "explanation", None)
    said = explanation if isinstance(explanation, str) else str(error)
    return plain_text(said) or type(error).__name__


def plain_text(text: str) -> str:
    """Return text without control characters and escape sequences, in one line."""
    return " ".join(_ESCAPES.sub(" ", text).split())
