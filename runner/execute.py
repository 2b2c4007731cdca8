"""The main path: a RunSpec becomes a container, the container's outputs become a record."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.container import Conduct, Places, container_request
from runner.engines.request import Container, Engine, Outcome
from runner.errors import XrunError
from runner.inside.refusal import EXIT_STOPPED
from runner.leases import Lease
from runner.outputs import Completion, EventReader, collect, fact_of, failure, tells_of
from runner.record import Record, Started, Status, timestamp
from runner.run_folder import RunFolder
from runner.spec import RunSpec
from runner.store import RunStore
from runner.terms import Halt, Terms, terms_of

_POLL_S = 0.2
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One execution: what is run, and how."""

    spec: RunSpec
    started: Started
    source: Path
    data: Path | None
    conduct: Conduct


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
    """Called when the container has ended, before its files are digested, and again when nothing is left of it."""


def execute(job: Job, *, engine: Engine, store: RunStore, watcher: Watcher, lease: Lease | None = None) -> Record:
    """Run a spec in exactly its image and commit its record, however it ends.

    `lease` is what the run holds meanwhile. Raises what the engine raises before the container exists, and
    KeyboardInterrupt after the record of an interrupted run is committed.
    """
    engine.require(job.spec.image)
    folder = store.start(job.spec, job.started)
    terms = terms_of(job.started, job.spec)
    try:
        if lease is not None:
            lease.note(folder.path, engine.name, None)
        container = start(job, folder, engine)
    except BaseException as error:
        store.finish(folder, record_of(terms, folder, not_started(error)))
        raise
    return follow(Followed(terms=terms, folder=folder, container=container, watcher=watcher, lease=lease), store)


def start(job: Job, folder: RunFolder, engine: Engine) -> Container:
    """Start a job's container, on one of several nodes if the job says so. Raises EngineError, ImageError."""
    node = job.conduct.node.number if job.conduct.node else 0
    places = Places(
        store=folder.store, source=job.source, spec=folder.spec, out=folder.out, control=folder.control, data=job.data
    )
    request = container_request(folder.container_of(node), job.spec, places, job.conduct)
    return engine.start(request, folder.log_of(node))


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A run whose container has started, and who looks on."""

    terms: Terms
    folder: RunFolder
    container: Container
    watcher: Watcher
    lease: Lease | None = None


def follow(run: Followed, store: RunStore) -> Record:
    """Follow a run to its end and commit its record. A signal that ended it is raised only then."""
    ending, interrupt = supervise(run)
    record = run.watcher.end(record_of(run.terms, run.folder, ending))
    store.finish(run.folder, record)
    if interrupt is not None:
        if ending.exit_code == EXIT_STOPPED:
            run.watcher.say(f"stopped, with a checkpoint; to go on: xrun resume {run.folder.id}")
        raise interrupt
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended."""

    status: Status
    exit_code: int | None
    message: str = ""
    completion: Completion | None = None


def supervise(run: Followed) -> tuple[Ending, KeyboardInterrupt | None]:
    """Follow a container until it is gone. Returns how it ended, and the signal that ended it, if one did."""
    events = EventReader(run.folder.out)
    try:
        pid = run.container.pid()
        if run.lease is not None:
            run.lease.note(run.folder.path, run.terms.started.engine, pid)
        run.watcher.begin(run.folder, pid)
        return _supervise(run, events), None
    except KeyboardInterrupt as interrupt:
        return _end_in_order(run, events, None, "stopped by a signal"), interrupt
    except XrunError as error:  # the engine can no longer say how the container is, or cannot write its log
        _stop(run.container)
        return Ending(status="lost", exit_code=None, message=error.message), None
    finally:
        with suppress(XrunError):  # how the engine tidies up must not decide how the run ended
            run.container.remove()
        run.watcher.gone()


def not_started(error: BaseException) -> Ending:
    """Return the ending of a run whose container could not be started."""
    status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    message = error.message.splitlines()[0] if isinstance(error, XrunError) else type(error).__name__
    return Ending(status=status, exit_code=None, message=message)


def _supervise(run: Followed, events: EventReader) -> Ending:
    """Follow a container to its end, or end it when its time is over, it is silent, or that is asked for."""
    terms, folder, container, watcher = run.terms, run.folder, run.container, run.watcher
    last_event_s = time.monotonic()
    outcome, halt, is_asked = None, None, False
    while outcome is None and halt is None and not is_asked:
        outcome = container.wait(_POLL_S)
        for event in events.read():
            last_event_s = time.monotonic()
            watcher.event(event)
        halt = watcher.look() or terms.too_silent(time.monotonic() - last_event_s) or terms.too_late()
        is_asked = folder.is_asked_to_stop
    if is_asked and (outcome is None or outcome.exit_code != 0):
        return _end_in_order(run, events, outcome, "asked to stop")
    if outcome is not None:
        watcher.gone()  # the digests of large files take long, and another run may wait for what this one holds
        return judge(outcome, folder.out, terms.nonce)
    assert halt is not None
    if halt.with_checkpoint:
        return _end_in_order(run, events, None, halt.message, halt.status)
    container.stop(_GRACE_S)
    return Ending(status=halt.status, exit_code=None, message=halt.message)


def _end_in_order(
    run: Followed, events: EventReader, outcome: Outcome | None, why: str, status: Status = "interrupted"
) -> Ending:
    """End a container in order, unless it has ended: a training with a checkpoint, a command at once."""
    if outcome is None and not run.terms.is_command:
        outcome = _ask_to_stop(run)
    if outcome is None:
        _stop(run.container)
    for event in events.read():
        run.watcher.event(event)
    if _has_stopped(outcome, run.folder.out):
        return Ending(status=status, exit_code=EXIT_STOPPED, message=f"{why}, with a checkpoint")
    if outcome is not None and outcome.exit_code == 0:
        return judge(outcome, run.folder.out, run.terms.nonce)
    done = unseen(run.folder.out, run.terms.nonce) if outcome is not None and outcome.kind == "unseen" else None
    return done or Ending(status=status, exit_code=None, message=why)


def _has_stopped(outcome: Outcome | None, out: Path) -> bool:
    """Say whether a container ended because it was asked to, with a checkpoint."""
    if outcome is not None and outcome.kind == "unseen":
        return tells_of(out, "stopped")
    return outcome is not None and outcome.exit_code == EXIT_STOPPED


def _ask_to_stop(run: Followed) -> Outcome | None:
    """Return how a training ended that was to end after its step; None where it did not in time."""
    try:
        run.folder.ask_to_stop()
        run.watcher.say("stopping after this step, with a checkpoint; Ctrl-C again stops at once")
        return run.container.wait(run.terms.grace_s)
    except (KeyboardInterrupt, OSError, XrunError):
        return None


def judge(outcome: Outcome, out: Path, nonce: str) -> Ending:
    """Say how a run ended. Exit code 0 is no success: only a completion manifest that holds is."""
    if outcome.kind == "out-of-memory":
        return Ending(status="out-of-memory", exit_code=outcome.exit_code, message=outcome.detail or "out of memory")
    if outcome.kind == "lost":
        return Ending(status="lost", exit_code=None, message=outcome.detail or "the engine lost the container")
    if outcome.kind == "unseen":
        why = failure(out) or "ended while no xrun lived, without a result"
        return unseen(out, nonce) or Ending(status="failed", exit_code=None, message=why)
    if outcome.exit_code != 0:
        message = failure(out) or outcome.detail or f"exit code {outcome.exit_code}"
        return Ending(status="failed", exit_code=outcome.exit_code, message=message)
    try:
        completion = collect(out, nonce)
    except XrunError as error:
        return Ending(status="failed", exit_code=0, message=error.message)
    return Ending(status="done", exit_code=0, completion=completion)


def unseen(out: Path, nonce: str) -> Ending | None:
    """Return that a run is done whose end nobody saw, as far as its completion manifest proves it; else None."""
    try:
        return Ending(status="done", exit_code=None, completion=collect(out, nonce))
    except XrunError:
        return None


def _stop(container: Container) -> None:
    try:
        container.stop(_GRACE_S)
    except KeyboardInterrupt:  # a second Ctrl-C does not wait
        container.stop(0)


def record_of(terms: Terms, folder: RunFolder, ending: Ending) -> Record:
    """Return the record of a run that has ended."""
    completion = ending.completion
    log = {folder.log.name: fact_of(folder.log)} if folder.log.exists() else {}
    return Record(
        **terms.started.facts(),
        id=folder.id,
        status=ending.status,
        exit_code=ending.exit_code,
        message=ending.message,
        fingerprint=completion.fingerprint if completion else None,
        metrics=completion.metrics if completion else {},
        files=(completion.files if completion else {}) | log,
        finished_at=timestamp(time.time()),
        duration_s=round(time.monotonic() - terms.begun_s, 3),
    )
