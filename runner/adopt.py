"""A run whose xrun is dead: what is left of it is taken up, and its record committed as the first xrun would have."""

import datetime as dt
import sys
import time
from dataclasses import replace
from pathlib import Path

from runner.engines.request import Engine
from runner.errors import StoreError
from runner.execute import Followed, Watcher, follow, record_of, unseen
from runner.leases import retake
from runner.placement import remains_of
from runner.progress import Progress
from runner.record import Record, Started, Tracked
from runner.run_folder import RunFolder
from runner.store import RunStore
from runner.terms import Terms, terms_of


def adopt(folder: RunFolder, *, engine: Engine, store: RunStore, watcher: Watcher, leases: Path) -> Record | None:
    """Follow what a dead xrun has started to its end, or collect what came of it, and commit the run's record.

    Returns None, and changes nothing, where neither a container nor a result is left. `engine` is the one that the run
    was started with; of the slots in `leases` those are held again that its container uses. Raises StoreError where
    its xrun lives or it has a record, EngineError where the engine cannot tell, KeyboardInterrupt after the record of
    a run that was then interrupted is committed.
    """
    started = what_was_started(folder, store)
    spec = store.load_spec(folder)
    if started.nonce is None or started.conducted is None:  # by an older xrun, which left nothing to take up
        return None
    owned = store.take(folder)
    try:
        return _taken_up(owned, terms_of(started, spec, age_s=_age_s(started)), engine, store, watcher, leases)
    finally:
        if not owned.record.exists():
            store.let_go(owned)


def what_was_started(folder: RunFolder, store: RunStore) -> Started:
    """Return what a run without a record started with. Raises StoreError."""
    run = store.look(folder)
    if run.facts is None:
        raise StoreError(run.problem)
    if isinstance(run.facts, Record):
        raise StoreError(f"{folder.id} has ended", hint=f"xrun show {folder.id}")
    return run.facts


def _age_s(started: Started) -> float:
    begun = dt.datetime.fromisoformat(started.started_at)
    return max(time.time() - begun.timestamp(), 0.0)


def _taken_up(  # noqa: PLR0913, PLR0917, as adopt
    owned: RunFolder, terms: Terms, engine: Engine, store: RunStore, watcher: Watcher, leases: Path
) -> Record | None:
    container = engine.attach(remains_of(owned))
    if container is not None:
        with retake(leases, owned.path) as lease:
            run = Followed(terms=terms, folder=owned, container=container, watcher=watcher, lease=lease)
            return follow(run, store)
    ending = unseen(owned.out, terms.nonce)
    if ending is None:
        return None
    record = watcher.end(record_of(terms, owned, ending))
    store.finish(owned, record)
    return record


def onlooker() -> Watcher:
    """Return who looks on at a run that is taken up: a line of progress. What tracked it died with its xrun."""
    progress = Progress(sys.stderr)

    def end(record: Record) -> Record:
        progress.close()
        is_off = record.conducted is not None and record.conducted.tracking.wandb == "off"
        message = "" if is_off else "what tracked the run ended with its xrun, which was killed"
        return replace(record, wandb=Tracked(mode="off", message=message))

    return Watcher(begin=lambda *_: None, event=progress.event, end=end, say=progress.say)
