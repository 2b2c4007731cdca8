"""What every execution of a spec shares: its job on this machine, who looks on, and what is printed at its end."""

import importlib.metadata
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runner import machine
from runner.container import WHOLE, Conduct, Stretch
from runner.engines.request import Engine
from runner.errors import RunFailed, StoreError
from runner.execute import Job, Watcher
from runner.machine import Machine
from runner.outputs import Event
from runner.parse import Scalar
from runner.prepare import Workshop, data_folder
from runner.progress import Progress
from runner.record import Conducted, Record, Started, timestamp
from runner.source import Source, stored
from runner.spec import RunSpec
from runner.store import RunStore
from runner.tracking import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One execution of a spec, before there is an engine's container for it."""

    spec: RunSpec
    source: Source
    conducted: Conducted
    here: Machine
    argv: tuple[str, ...]
    overrides: tuple[str, ...]
    lock_digest: str | None
    replay_of: str | None = None
    continues: str | None = None
    stretch: Stretch = WHOLE
    ranks: int | None = None
    """Processes, where these are not as many as the spec says."""
    allow_hardware: bool = False
    self_test_steps: int = 0
    operators_step: int | None = None


def again(past: Started, spec: RunSpec, store: RunStore, here: Machine, argv: tuple[str, ...]) -> Launch:
    """Return the launch of a spec that was run before, from its stored source, conducted alike. Raises StoreError."""
    if past.conducted is None:
        raise StoreError(f"{spec.run_stem} was recorded by an older xrun, which does not say how it was conducted")
    return Launch(
        spec=spec,
        source=stored(store.root, spec.source),
        conducted=past.conducted,
        here=here,
        argv=argv,
        overrides=past.overrides,
        lock_digest=past.lock_digest,
    )


def job(launch: Launch, engine: Engine, workshop: Workshop) -> Job:
    """Return what is executed, once it holds what it needs.

    Raises ImageError where data that is to be mounted is not what is pinned.
    """
    spec, conducted = launch.spec, launch.conducted
    nonce = secrets.token_hex(16)
    conduct = Conduct(
        nonce=nonce,
        log_every_steps=conducted.tracking.log_every_steps,
        hang_timeout_s=conducted.scheduler.hang_timeout_s,
        limits=conducted.limits,
        stretch=launch.stretch,
        ranks=launch.ranks,
        allow_numerics=launch.allow_hardware or launch.replay_of is not None,
        self_test_steps=launch.self_test_steps,
        operators_step=launch.operators_step,
    )
    return Job(
        spec=spec,
        started=_started(launch, engine, nonce),
        source=launch.source.folder,
        data=_data(launch, engine, workshop),
        conduct=conduct,
    )


def _data(launch: Launch, engine: Engine, workshop: Workshop) -> Path | None:
    """Return the folder of data sets that is mounted, None where the image holds them."""
    spec, recipe = launch.spec, launch.conducted.data_recipe
    if not spec.data or (recipe is None and engine.name != "host"):
        return None
    return data_folder(recipe or spec.image.ref, spec.data, workshop)


def _started(launch: Launch, engine: Engine, nonce: str) -> Started:
    spec = launch.spec
    host: dict[str, Scalar] = {**machine.recorded(launch.here), "name": socket.gethostname(), "uid": os.getuid()}
    if engine.name == "host":
        host["environment"] = "not pinned by an image"
    return Started(
        xrun=importlib.metadata.version("xrun"),
        engine=engine.name,
        level=spec.determinism.level,
        spec_digest=spec.digest,
        lock_digest=launch.lock_digest,
        image_digest=spec.image.digest,
        source=spec.source,
        overrides=launch.overrides,
        argv=("xrun", *launch.argv),
        started_at=timestamp(time.time()),
        host=host,
        conducted=launch.conducted,
        nonce=nonce,
        replay_of=launch.replay_of,
        continues=launch.continues,
    )


def watcher(launch: Launch, started: Started) -> Watcher:
    """Return who looks on: a line of progress, and Weights & Biases."""
    progress = Progress(sys.stderr)
    tracker = Tracker(launch.conducted.tracking, launch.spec, started, os.environ, progress.say)

    def event(happened: Event) -> None:
        progress.event(happened)
        tracker.look()

    def end(record: Record) -> Record:
        progress.close()
        return tracker.end(record)

    return Watcher(begin=tracker.begin, event=event, end=end, say=progress.say)


def report(record: Record, say: Callable[[str], None]) -> int:
    """Print how a run ended and what to type next. Raises RunFailed unless it is done."""
    if record.status != "done":
        raise RunFailed(f"{record.id}: {record.status}: {record.message}", hint=f"xrun logs {record.id}")
    lines = [f"run          {record.id}"]
    lines += [f"{name:<12} {value:.4f}" for name, value in sorted(record.metrics.items()) if isinstance(value, float)]
    lines += [f"fingerprint  {record.fingerprint}"]
    sys.stdout.write("\n".join(lines) + "\n")
    engine = " --engine host" if record.engine == "host" else ""
    say(f"\nnext:\n  xrun replay {record.id}{engine}\n  xrun show {record.id}\n  xrun logs {record.id}\n  xrun ls")
    return 0
