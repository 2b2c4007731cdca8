"""The docker engine: any Docker daemon that the SDK can reach.

A container outlives xrun: it is named and labelled by its run, and only remove() removes it.
"""

import math
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO

import docker
import requests

from runner.engines.docker_image import require_image
from runner.engines.docker_payload import (
    UNPRIVILEGED,
    container_name,
    container_payload,
    differences,
    labels,
    outcome_of,
)
from runner.engines.dockerd import DAEMON_ERRORS, connect, daemon_words, words_of
from runner.engines.log import open_log, unlogged
from runner.engines.ownership import give
from runner.engines.request import Container, ContainerRequest, Images, Outcome, Remains, fit
from runner.errors import EngineError, ImageError
from runner.lock import ImagePin

_TIMEOUT_S = 120
_FIRST_POLL_S = 0.01
_POLL_S = 0.2
_INSPECT_S = 5.0
_LOG_END_TIMEOUT_S = 30
_LOST_AFTER_S = 60
_LOST_CODE = 255


class DockerEngine:
    """Runs containers by a Docker daemon."""

    name = "docker"

    def __init__(self, images: Images, *, connect_timeout_s: float = _TIMEOUT_S) -> None:
        self._images = images
        self._client = connect(connect_timeout_s)
        self._client.timeout = _TIMEOUT_S
        weakref.finalize(self, self._client.close)

    def require(self, image: ImagePin) -> None:
        """Have exactly this image in the daemon. Raises ImageError, EngineError."""
        require_image(self._client, self._images, image)

    def start(self, request: ContainerRequest, log: Path) -> Container:
        """Start a container whose output is appended to a file. Raises EngineError, ImageError."""
        image = require_image(self._client, self._images, request.image)
        with daemon_words("the Docker daemon did not describe itself"):
            machine = self._client.info()
            limits = fit(request.limits, int(machine["MemTotal"]))
        user = _user(machine.get("SecurityOptions") or ())
        payload = container_payload(request, limits, image, user=user)
        writable = [mount.source for mount in request.mounts if not mount.read_only]
        container_id = _create(self._client, container_name(request), payload)
        try:
            _check(self._client, container_id, payload)
            if os.geteuid() == 0:
                give(writable, *user)
            with daemon_words("the container does not start"):
                # Attached before it starts, so that its first words are not lost.
                output = self._client.attach(container_id, stdout=True, stderr=True, stream=True, logs=False)
                container = _DockerContainer(self._client, container_id, writable)
                container.write_log(output, iter(output), open_log(log))
                self._client.start(container_id)
        except BaseException:
            with suppress(*DAEMON_ERRORS):
                self._client.remove_container(container_id, v=True, force=True)
            if os.geteuid() == 0:
                give(writable, 0, 0)
            raise
        return container

    def attach(self, remains: Remains) -> Container | None:
        """Take up the container of a dead xrun, also one that has ended; None where none is left. EngineError.

        What its log misses is completed from the daemon's own.
        """
        for found in self._found(remains, all=True):
            container = _DockerContainer(self._client, found["Id"], [remains.out])
            if found["State"] == "created":  # its xrun died before it was started
                container.remove()
                continue
            with daemon_words("the container's log cannot be read"):
                output = self._client.logs(found["Id"], stdout=True, stderr=True, stream=True, follow=True)
            container.write_log(output, unlogged(iter(output), remains.log), open_log(remains.log))
            return container
        return None

    def is_running(self, remains: Remains) -> bool:
        """Say whether the container of a dead xrun still runs. Raises EngineError."""
        return bool(self._found(remains))

    def _found(self, remains: Remains, **options: bool) -> list[dict[str, Any]]:
        wanted = labels(remains.run.name, str(remains.run.parent)).items()
        filters = {"label": [f"{name}={value}" for name, value in wanted]}
        with daemon_words("the Docker daemon does not list its containers"):
            return list(self._client.containers(filters=filters, **options))


def _user(security_options: Iterable[str]) -> tuple[int, int]:
    """Return the uid and gid to run as: the caller's own, but never root's on this host."""
    if any(option.startswith("name=rootless") for option in security_options):
        return 0, 0  # a rootless daemon's root is the caller
    if os.geteuid() == 0:
        return UNPRIVILEGED, UNPRIVILEGED
    return os.geteuid(), os.getegid()


def _create(client: Any, name: str, payload: dict[str, Any]) -> str:
    with daemon_words(f"the Docker daemon does not create container {name}"):
        return str(client.create_container_from_config(payload, name)["Id"])


def _check(client: Any, container_id: str, payload: dict[str, Any]) -> None:
    """Refuse a container that the daemon made otherwise than it was told to."""
    with daemon_words("the Docker daemon does not describe the container it has made"):
        found = client.inspect_container(container_id)
    if found["Image"] != payload["Image"]:
        raise ImageError(f"the Docker daemon made a container of image {found['Image']}, not of {payload['Image']}")
    if wrong := differences(payload, found):
        raise EngineError("the Docker daemon did not take the request as it is: " + "; ".join(wrong))


def _write_whole(log: BinaryIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[log.write(rest) :]


class _DockerContainer:
    """A started container, whose output a thread of its own writes to the log."""

    def __init__(self, client: Any, container_id: str, writable: list[Path]) -> None:
        self._client = client
        self._id = container_id
        self._writable = writable
        self._inspected_s = -math.inf
        self._unreachable_since: float | None = None
        self._was_unreachable = False
        self._log_failure: OSError | None = None
        self._logging = threading.Thread()

    def write_log(self, output: Any, chunks: Iterator[bytes], log: BinaryIO) -> None:
        """Write what comes of the daemon's stream to the log, until it ends."""
        self._logging = threading.Thread(target=self._write_log, args=(output, chunks, log), daemon=True)
        self._logging.start()

    def _write_log(self, output: Any, chunks: Iterator[bytes], log: BinaryIO) -> None:
        with log, suppress(*DAEMON_ERRORS), closing(output._response):  # noqa: SLF001, its own close() leaves the socket
            for chunk in chunks:
                # Read on after a failure: a container whose output nobody takes stands still.
                if self._log_failure is None:
                    try:
                        _write_whole(log, chunk)
                    except OSError as error:
                        self._log_failure = error

    def wait(self, timeout_s: float) -> Outcome | None:
        """Return how it ended, or None if it still runs after timeout_s. Raises EngineError where its log is cut."""
        deadline = time.monotonic() + timeout_s
        self._logging.join(timeout_s)
        # The end of a container ends its output. It is asked for now and then all the same: a connection can be lost
        # unseen, a disk can take no more.
        if self._logging.is_alive() and time.monotonic() - self._inspected_s < _INSPECT_S:
            return None
        # Where the output has ended, the container does within milliseconds.
        poll_s = _FIRST_POLL_S
        while (outcome := self._outcome()) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            time.sleep(min(poll_s, left_s))
            poll_s = min(2 * poll_s, _POLL_S)
        self._logging.join(_LOG_END_TIMEOUT_S)
        if os.geteuid() == 0:
            give(self._writable, 0, 0)
        if self._log_failure is not None:
            raise EngineError(f"the container's log cannot be written: {self._log_failure}")
        return outcome

    def _outcome(self) -> Outcome | None:
        self._inspected_s = time.monotonic()
        try:
            state = self._client.inspect_container(self._id)["State"]
        except docker.errors.NotFound:
            return Outcome(kind="lost", exit_code=_LOST_CODE, detail="the daemon has this container no more")
        except DAEMON_ERRORS as error:
            return self._unreachable(error)
        self._unreachable_since = None
        outcome = outcome_of(state)
        if outcome is not None and outcome.exit_code == _LOST_CODE and self._was_unreachable:
            return Outcome(kind="lost", exit_code=_LOST_CODE, detail="the daemon stopped while the container ran")
        return outcome

    def _unreachable(self, error: BaseException) -> Outcome | None:
        """Give a daemon that restarts some time to come back."""
        now = time.monotonic()
        self._was_unreachable = True
        self._unreachable_since = self._unreachable_since or now
        if now - self._unreachable_since < _LOST_AFTER_S:
            return None
        return Outcome(kind="lost", exit_code=_LOST_CODE, detail=f"the daemon answers no more: {words_of(error)}")

    def stop(self, grace_s: float) -> None:
        """Ask the program to end, and end the container after grace_s. Raises EngineError if the daemon fails."""
        for signal_name, wait_s in (("SIGTERM", grace_s), ("SIGKILL", float(_LOST_AFTER_S))):
            with daemon_words(f"the container does not take {signal_name}"):
                try:
                    self._client.kill(self._id, signal_name)
                except docker.errors.APIError as error:
                    # 404: gone. 409: it has ended already.
                    if error.status_code not in {requests.codes.not_found, requests.codes.conflict}:
                        raise
            if self.wait(wait_s) is not None:
                return
        raise EngineError(f"container {self._id[:12]} does not end, even by SIGKILL")

    def pid(self) -> int | None:
        """Return the process id of the container's init, None where the daemon's processes are not this host's."""
        with suppress(*DAEMON_ERRORS):
            pid = int(self._client.inspect_container(self._id)["State"]["Pid"])
            # A daemon in a virtual machine or elsewhere has other numbers.
            if pid and self._id in Path(f"/proc/{pid}/cgroup").read_text():
                return pid
        return None

    def remove(self) -> None:
        """Remove the ended container and its anonymous volumes."""
        with daemon_words("the Docker daemon does not remove the container"), suppress(docker.errors.NotFound):
            self._client.remove_container(self._id, v=True)
