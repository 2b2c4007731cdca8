"""The main path: a RunSpec becomes a container, the container's outputs become a record."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.container import Conduct, Places, container_request
from runner.engines.request import Container, Engine, Outcome
from runner.errors import XrunError
from runner.inside.refusal import EXIT_STOPPED
from runner.outputs import Completion, EventReader, collect, fact_of, failure
from runner.record import Record, Started, Status, timestamp
from runner.run_folder import RunFolder
from runner.spec import RunSpec
from runner.store import RunStore

_POLL_S = 0.2
_GRACE_S = 10.0
# The ranks' own watch fires first and says where they hang; this one is for ranks that cannot (SIGSTOP, no CPU).
_HOST_HANG_FACTOR = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One execution: what is run, and how."""

    spec: RunSpec
    started: Started
    source: Path
    data: Path | None
    conduct: Conduct
    timeout_s: int
    """0 never stops the run."""
    grace_s: int
    """For a run that is asked to end: time to finish its step and write a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Why a run is ended before its end."""

    status: Status
    message: str
    with_checkpoint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Watcher:
    """What looks on while a run runs. Nothing here may fail it, and nothing but `look` end it."""

    begin: Callable[[RunFolder, int | None], None]
    """Called with the run's folder and its first process when the container has started."""
    event: Callable[[dict[str, object]], None]
    """Called with each event that the container wrote."""
    end: Callable[[Record], Record]
    """Called with the record before it is committed; may add where the run was tracked, and a replay's verdict."""
    say: Callable[[str], None]
    """Called with a line for the user."""
    look: Callable[[], Halt | None] = lambda: None
    """Called several times a second; returns why the run should be ended, or nothing."""
    gone: Callable[[], None] = lambda: None
    """Called when the container is gone: what it held is free, though the record is still to be written."""


def execute(job: Job, *, engine: Engine, store: RunStore, watcher: Watcher) -> Record:
    """Run a spec in exactly its image and commit its record, however it ends.

    Raises what the engine raises before the container exists, and KeyboardInterrupt after the record of an
    interrupted run is committed.
    """
    engine.require(job.spec.image)
    folder = store.start(job.spec, job.started)
    begun_s = time.monotonic()
    try:
        container = start(job, folder, engine)
    except BaseException as error:
        store.finish(folder, record_of(job, folder, not_started(error), begun_s))
        raise
    ending, interrupt = supervise(job, folder, container, watcher)
    record = watcher.end(record_of(job, folder, ending, begun_s))
    store.finish(folder, record)
    if interrupt is not None:
        if ending.exit_code == EXIT_STOPPED:
            watcher.say(f"stopped, with a checkpoint; to go on: xrun resume {folder.id}")
        raise interrupt
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a container ended, or why there was none."""

    status: Status
    exit_code: int | None
    """EXIT_STOPPED: asked to, with a checkpoint."""
    message: str = ""
    completion: Completion | None = None


def start(job: Job, folder: RunFolder, engine: Engine) -> Container:
    """Start a job's container, on one of several nodes if the job says so. Raises EngineError, ImageError."""
    node = job.conduct.node.number if job.conduct.node else 0
    name = f"{folder.id}-node{node}" if node else folder.id
    places = Places(source=job.source, spec=folder.spec, out=folder.out, control=folder.control, data=job.data)
    return engine.start(container_request(name, job.spec, places, job.conduct), folder.log_of(node))


def supervise(
    job: Job, folder: RunFolder, container: Container, watcher: Watcher
) -> tuple[Ending, KeyboardInterrupt | None]:
    """Follow a container until it is gone. Returns how it ended, and the signal that ended it, if one did."""
    events = EventReader(folder.out)
    try:
        return _follow(job, folder, container, events, watcher), None
    except KeyboardInterrupt as interrupt:
        return _end_by_signal(job, folder, container, events, watcher), interrupt
    except XrunError as error:  # the engine can no longer say how the container is, or cannot write its log
        _stop(container)
        return Ending(status="lost", exit_code=None, message=error.message), None
    finally:
        with suppress(XrunError):  # how the engine tidies up must not decide how the run ended
            container.remove()
        watcher.gone()


def not_started(error: BaseException) -> Ending:
    """Return the ending of a run whose container could not be started."""
    status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    message = error.message.splitlines()[0] if isinstance(error, XrunError) else type(error).__name__
    return Ending(status=status, exit_code=None, message=message)


def _follow(job: Job, folder: RunFolder, container: Container, events: EventReader, watcher: Watcher) -> Ending:
    """Follow a container to its end, or end it when its time is over, it is silent, or enough was seen."""
    watcher.begin(folder, container.pid())
    begun_s = last_event_s = time.monotonic()
    asked_s = math.inf
    outcome = halt = None
    while outcome is None and halt is None:
        outcome = container.wait(_POLL_S)
        for event in events.read():
            last_event_s = time.monotonic()
            watcher.event(event)
        now_s = time.monotonic()
        asked_s = min(asked_s, now_s) if folder.is_asked_to_stop else asked_s
        halt = watcher.look() or _unheeded(job, now_s - asked_s)
        halt = halt or _too_silent(job, now_s - last_event_s) or _too_late(job, now_s - begun_s)
    if outcome is not None and outcome.exit_code == EXIT_STOPPED and folder.is_asked_to_stop:
        return Ending(status="interrupted", exit_code=EXIT_STOPPED, message="asked to stop, with a checkpoint")
    if outcome is not None:
        return judge(outcome, folder.out, job.conduct.nonce)
    assert halt is not None
    return _halted(job, folder, container, watcher, halt)


def _halted(job: Job, folder: RunFolder, container: Container, watcher: Watcher, halt: Halt) -> Ending:
    """End a container, with a checkpoint where that is wanted and can be had."""
    outcome = None
    if halt.with_checkpoint and not job.spec.is_command:
        outcome = _ask_to_stop(job, folder, container, watcher)
    if outcome is None:
        container.stop(_GRACE_S)
    elif outcome.exit_code == EXIT_STOPPED:
        message = f"{halt.message}, with a checkpoint"
        return Ending(status=halt.status, exit_code=EXIT_STOPPED, message=message)
    elif outcome.exit_code == 0 and halt.status == "interrupted":
        return judge(outcome, folder.out, job.conduct.nonce)
    return Ending(status=halt.status, exit_code=None, message=halt.message)


def _too_late(job: Job, age_s: float) -> Halt | None:
    if not job.timeout_s or age_s <= job.timeout_s:
        return None
    message = f"took longer than scheduler.timeout_s={job.timeout_s}"
    return Halt(status="timeout", message=message, with_checkpoint=True)


def _unheeded(job: Job, waited_s: float) -> Halt | None:
    """Say that a run which was asked to stop from elsewhere is to be ended: a command at once."""
    if waited_s < (0 if job.spec.is_command else job.grace_s):
        return None
    late = "" if job.spec.is_command else f", and did not in scheduler.grace_s={job.grace_s}"
    return Halt(status="interrupted", message=f"asked to stop{late}")


def _too_silent(job: Job, silence_s: float) -> Halt | None:
    limit_s = job.conduct.hang_timeout_s
    # A training says something at least every limit_s; of a program nobody knows how often it should.
    if job.spec.is_command or silence_s <= limit_s * _HOST_HANG_FACTOR:
        return None
    message = f"no sign of life for {silence_s:.0f} s (scheduler.hang_timeout_s={limit_s})"
    return Halt(status="timeout", message=message)


def _end_by_signal(job: Job, folder: RunFolder, container: Container, events: EventReader, watcher: Watcher) -> Ending:
    """End a container in order: a training with a checkpoint, a command at once."""
    outcome = None if job.spec.is_command else _ask_to_stop(job, folder, container, watcher)
    if outcome is None:
        _stop(container)
    for event in events.read():
        watcher.event(event)
    if outcome is not None and outcome.exit_code == EXIT_STOPPED:
        return Ending(status="interrupted", exit_code=EXIT_STOPPED, message="stopped by a signal, with a checkpoint")
    if outcome is not None and outcome.exit_code == 0:
        return judge(outcome, folder.out, job.conduct.nonce)
    return Ending(status="interrupted", exit_code=None, message="stopped by a signal")


def _ask_to_stop(job: Job, folder: RunFolder, container: Container, watcher: Watcher) -> Outcome | None:
    """Return how a training ended that was to end after its step; None where it did not in time."""
    try:
        folder.ask_to_stop()
        watcher.say("stopping after this step, with a checkpoint; Ctrl-C again stops at once")
        return container.wait(job.grace_s)
    except (KeyboardInterrupt, OSError, XrunError):
        return None


def judge(outcome: Outcome, out: Path, nonce: str) -> Ending:
    """Say how a run ended. Exit code 0 is no success: only a completion manifest that holds is."""
    if outcome.kind == "out-of-memory":
        return Ending(status="out-of-memory", exit_code=outcome.exit_code, message=outcome.detail or "out of memory")
    if outcome.kind == "lost":
        return Ending(status="lost", exit_code=None, message=outcome.detail or "the engine lost the container")
    if outcome.exit_code != 0:
        message = failure(out) or outcome.detail or f"exit code {outcome.exit_code}"
        return Ending(status="failed", exit_code=outcome.exit_code, message=message)
    try:
        completion = collect(out, nonce)
    except XrunError as error:
        return Ending(status="failed", exit_code=0, message=error.message)
    return Ending(status="done", exit_code=0, completion=completion)


def _stop(container: Container) -> None:
    try:
        container.stop(_GRACE_S)
    except KeyboardInterrupt:  # a second Ctrl-C does not wait
        container.stop(0)


def record_of(job: Job, folder: RunFolder, ending: Ending, begun_s: float) -> Record:
    """Return the record of a run that has ended."""
    completion = ending.completion
    log = {folder.log.name: fact_of(folder.log)} if folder.log.exists() else {}
    return Record(
        **job.started.facts(),
        id=folder.id,
        status=ending.status,
        exit_code=ending.exit_code,
        message=ending.message,
        fingerprint=completion.fingerprint if completion else None,
        metrics=completion.metrics if completion else {},
        files=(completion.files if completion else {}) | log,
        finished_at=timestamp(time.time()),
        duration_s=round(time.monotonic() - begun_s, 3),
    )
