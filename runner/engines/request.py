"""One container request, as plain data that every engine honours in full or refuses."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from runner.lock import ImagePin


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A host path at a place in the container; read-only all the way down unless it says otherwise."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the container may use at most."""

    memory_bytes: int
    pids: int
    shm_bytes: int
    tmp_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRequest:
    """Everything an engine needs to know. What is not here, no container gets.

    Always, so not a field: a user without privileges, no capabilities, no new privileges, a read-only root,
    a private /tmp and /dev/shm, host name `localhost`, an init process, no core files.
    """

    name: str
    """The run's id, unique in its store."""
    store: str = ""
    """The folder of runs that the run is in."""
    image: ImagePin
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    """The whole environment, sorted; nothing of the host's or the image's own is added."""
    mounts: tuple[Mount, ...]
    limits: Limits
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs the container sees."""
    workdir: str = "/"
    network: Literal["none", "host"] = "none"
    """none: loopback alone, a private one. host: the host's own interfaces, for the ranks of several nodes."""


OutcomeKind = Literal["exited", "killed", "out-of-memory", "lost", "unseen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a container ended. Only a completion manifest says that a run succeeded, never this alone."""

    kind: OutcomeKind
    """`unseen`: it has ended, and how is not ours to know."""
    exit_code: int
    """Of the container's first process; 128 + n when signal n ended it."""
    detail: str = ""


class Container(Protocol):
    """A started container."""

    def wait(self, timeout_s: float) -> Outcome | None:
        """Return how it ended, or None if it still runs after timeout_s."""

    def stop(self, grace_s: float) -> None:
        """Ask it to end (SIGTERM), and end it (SIGKILL) after grace_s. Returns when it has ended."""

    def pid(self) -> int | None:
        """Return the process id on this host of the container's first process, None where it is out of sight."""

    def remove(self) -> None:
        """Free what the engine keeps of an ended container. Its mounts stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is known of a container whose xrun is dead."""

    run: Path
    """Folder of the run; named as its container is."""
    out: Path
    """What the container may write."""
    log: Path


class Images(Protocol):
    """The images on this machine, as engines see them."""

    def has(self, image: ImagePin) -> bool:
        """Say whether exactly this image is here, whole."""

    def rootfs(self, image: ImagePin) -> Path:
        """Return the image's unpacked root folder, never to be written to. Raises ImageError."""

    def archive(self, image: ImagePin) -> Iterator[bytes]:
        """Yield a tar that `docker load` takes, without any tag. Every blob is verified on the way; ImageError."""


class Engine(Protocol):
    """What executes an image."""

    name: str

    def require(self, image: ImagePin) -> None:
        """Have exactly this image ready, by digest, or raise ImageError. Never a tag, never a look-alike."""

    def start(self, request: ContainerRequest, log: Path) -> Container:
        """Start a container whose output is appended to a file. Raises EngineError, ImageError."""

    def attach(self, remains: Remains) -> Container | None:
        """Take up the container of a dead xrun, also one that has ended; None where none is left. EngineError."""

    def is_running(self, remains: Remains) -> bool:
        """Say whether the container of a dead xrun still runs. Raises EngineError."""


def fit(limits: Limits, memory_bytes: int) -> Limits:
    """Return limits that a machine with memory_bytes can give: a limit is a ceiling, not a demand."""
    return Limits(
        memory_bytes=min(limits.memory_bytes, memory_bytes),
        pids=limits.pids,
        shm_bytes=min(limits.shm_bytes, memory_bytes),
        tmp_bytes=min(limits.tmp_bytes, memory_bytes),
    )


_ENDED_FROM_OUTSIDE = {128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGKILL, 128 + signal.SIGTERM}
_DETAILS = {
    126: "the program could not be executed",
    127: "the program was not found",
    128 + signal.SIGBUS: "SIGBUS: most often /dev/shm is full; raise hardware.shm_gib",
    128 + signal.SIGSEGV: "SIGSEGV: a crash in native code",
}


def ended(exit_code: int) -> Outcome:
    """Return the outcome that an exit code alone tells of."""
    kind: OutcomeKind = "killed" if exit_code in _ENDED_FROM_OUTSIDE else "exited"
    return Outcome(kind=kind, exit_code=exit_code, detail=_DETAILS.get(exit_code, ""))
