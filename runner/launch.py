"""What every execution of a spec shares: its job on this machine, who looks on, and what is printed at its end."""

import importlib.metadata
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from runner import machine
from runner.checkpoints import has_checkpoint
from runner.container import WHOLE, Conduct, Stretch
from runner.engines.request import Engine, Limits
from runner.errors import RunFailed, StoreError
from runner.execute import Job, Watcher
from runner.machine import Machine
from runner.outputs import Event
from runner.parse import Scalar
from runner.prepare import Workshop, data_folder
from runner.progress import Progress
from runner.record import Conducted, Record, Started, timestamp
from runner.run_folder import RunFolder
from runner.source import Source, stored
from runner.spec import RunSpec
from runner.store import RunStore
from runner.tracked import subject_of
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
    sweep: str | None = None
    trial: int | None = None
    stretch: Stretch = WHOLE
    ranks: int | None = None
    """Processes, where these are not as many as the spec says."""
    allow_hardware: bool = False
    self_test_steps: int = 0
    operators_step: int | None = None


def again(past: Started, spec: RunSpec, store: RunStore, here: Machine, argv: tuple[str, ...]) -> Launch:
    """Return the launch of a spec that was run before, from its stored source, conducted alike, on this machine alone.

    Raises StoreError.
    """
    if past.conducted is None:
        raise StoreError(f"{spec.run_stem} was recorded by an older xrun, which does not say how it was conducted")
    return Launch(
        spec=spec,
        source=stored(store.root, spec.source),
        conducted=_on_one_node(past.conducted),
        here=here,
        argv=argv,
        overrides=past.overrides,
        lock_digest=past.lock_digest,
    )


def newest_with_checkpoint(store: RunStore, folder: RunFolder, facts: Started) -> Path:
    """Return the newest `out` of the run, or of those before it, with a checkpoint: it may have ended before one."""
    while not any(map(has_checkpoint, folder.outs)) and facts.continues is not None:
        earlier = store.look(store.find(facts.continues))
        if earlier.facts is None:
            raise StoreError(earlier.problem)
        folder, facts = earlier.folder, earlier.facts
    return next(filter(has_checkpoint, folder.outs), folder.out)


def _on_one_node(past: Conducted) -> Conducted:
    """Return how a run is conducted where one node has all its ranks: within the limits of all nodes together."""
    limits, nodes = past.limits, past.nodes
    together = Limits(
        memory_bytes=limits.memory_bytes * nodes,
        pids=limits.pids * nodes,
        shm_bytes=limits.shm_bytes * nodes,
        tmp_bytes=limits.tmp_bytes * nodes,
    )
    return replace(past, limits=together, nodes=1)


def job(launch: Launch, engine: Engine, workshop: Workshop) -> Job:
    """Return what is executed, once it holds what it needs.

    Raises ImageError where data that is to be mounted is not what is pinned.
    """
    how = conduct(launch)
    return Job(
        spec=launch.spec,
        started=started(launch, engine.name, how.nonce),
        source=launch.source.folder,
        data=data_of(launch, engine.name, workshop),
        conduct=how,
    )


def conduct(launch: Launch, gpus: tuple[str, ...] = ()) -> Conduct:
    """Return how a launch is conducted on the GPUs (by UUID) that it has, with a nonce of its own."""
    conducted = launch.conducted
    return Conduct(
        nonce=secrets.token_hex(16),
        log_every_steps=conducted.tracking.log_every_steps,
        hang_timeout_s=conducted.scheduler.hang_timeout_s,
        limits=conducted.limits,
        gpus=gpus,
        stretch=launch.stretch,
        ranks=launch.ranks,
        allow_numerics=launch.allow_hardware or launch.replay_of is not None,
        self_test_steps=launch.self_test_steps,
        operators_step=launch.operators_step,
    )


def data_of(launch: Launch, engine: str, workshop: Workshop) -> Path | None:
    """Return the folder of data sets that is mounted, None where the image holds them. Raises ImageError."""
    spec, recipe = launch.spec, launch.conducted.data_recipe
    if not spec.data or (recipe is None and engine != "host"):
        return None
    return data_folder(recipe or spec.image.ref, spec.data, workshop)


def started(launch: Launch, engine: str, nonce: str | None = None) -> Started:
    """Return what is known of an execution before its container exists."""
    spec = launch.spec
    return Started(
        xrun=importlib.metadata.version("xrun"),
        engine=engine,
        level=spec.determinism.level,
        spec_digest=spec.digest,
        lock_digest=launch.lock_digest,
        image_digest=spec.image.digest,
        source=spec.source,
        overrides=launch.overrides,
        argv=("xrun", *launch.argv),
        started_at=timestamp(time.time()),
        host=host_facts(launch.here, engine),
        conducted=launch.conducted,
        nonce=nonce,
        replay_of=launch.replay_of,
        continues=launch.continues,
        sweep=launch.sweep,
        trial=launch.trial,
    )


def host_facts(here: Machine, engine: str) -> dict[str, Scalar]:
    """Return what is recorded of the machine that a run is on."""
    facts: dict[str, Scalar] = {**machine.recorded(here), "name": socket.gethostname(), "uid": os.getuid()}
    return facts | ({"environment": "not pinned by an image"} if engine == "host" else {})


def watcher(launch: Launch, started: Started) -> Watcher:
    """Return who looks on: a line of progress, and Weights & Biases."""
    progress = Progress(sys.stderr)
    tracker = Tracker(launch.conducted.tracking, subject_of(launch.spec, started), os.environ, progress.say)

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
