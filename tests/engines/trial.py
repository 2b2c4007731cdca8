"""One container from request to outcome, in this process or in another user's."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines.tiny_image import TinyImage, TinyImages
from runner.engines.embedded import EmbeddedEngine
from runner.engines.request import Container, ContainerRequest, Engine, Limits, Mount, Outcome
from runner.lock import ImagePin

MIB = 1 << 20
LIMITS = Limits(memory_bytes=256 * MIB, pids=64, shm_bytes=32 * MIB, tmp_bytes=16 * MIB)
ENVIRONMENT = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "PATH": "/bin"}
_PATIENCE_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a test wants to happen."""

    script: str
    """For the image's sh."""
    limits: Limits = LIMITS
    mounts: tuple[Mount, ...] = ()
    """Besides /out."""
    stop_at: str | None = None
    """Word in the log at which the container is stopped."""
    grace_s: float = 5.0
    network: Literal["none", "host"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened."""

    outcome: Outcome
    log: str
    out: Path


def request_of(trial: Trial, pin: ImagePin, out: Path, name: str = "trial") -> ContainerRequest:
    return ContainerRequest(
        name=name,
        image=pin,
        argv=("/bin/sh", "-c", trial.script),
        environment=tuple(sorted(ENVIRONMENT.items())),
        mounts=(Mount(source=out, target="/out", read_only=False), *trial.mounts),
        limits=trial.limits,
        network=trial.network,
    )


def perform(engine: Engine, trial: Trial, pin: ImagePin, folder: Path, name: str = "trial") -> Report:
    """Run a trial in a folder of its own."""
    out = folder / "out"
    out.mkdir()
    log = folder / "log"
    container = engine.start(request_of(trial, pin, out, name), log)
    if (word := trial.stop_at) is not None:
        until(lambda: word in log.read_text())
        container.stop(trial.grace_s)
    outcome = outcome_of(container)
    container.remove()
    return Report(outcome=outcome, log=log.read_text(), out=out)


def outcome_of(container: Container) -> Outcome:
    outcome = container.wait(_PATIENCE_S)
    if outcome is None:
        container.stop(0)
    assert outcome is not None, "the container did not end in time"
    return outcome


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def plain(trial: Trial) -> dict[str, Any]:
    plain_trial: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(trial), default=str))
    return plain_trial


def _main() -> None:
    """Run the trial on stdin with the embedded engine, as whoever this process is; the outcome goes to stdout."""
    asked = json.load(sys.stdin)
    mounts = tuple(Mount(**mount | {"source": Path(mount["source"])}) for mount in asked["trial"].pop("mounts"))
    trial = Trial(**asked["trial"] | {"mounts": mounts, "limits": Limits(**asked["trial"]["limits"])})
    pin = ImagePin(**asked["pin"])
    engine = EmbeddedEngine(TinyImages(TinyImage(pin=pin, root=Path(asked["root"]), blobs={})))
    engine.require(pin)
    report = perform(engine, trial, pin, Path(asked["folder"]))
    json.dump(dataclasses.asdict(report.outcome), sys.stdout)


if __name__ == "__main__":
    _main()
