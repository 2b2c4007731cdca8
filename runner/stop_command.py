"""`xrun stop <run-id>`: a run is asked to end after its step, with a checkpoint, whoever started it and however."""

import os
import sys
import time

from runner.adopt import adopt, onlooker, what_was_started
from runner.engines.select import pick_recorded
from runner.errors import StoreError
from runner.prepare import Workshop
from runner.project import leases
from runner.record import Record
from runner.run_folder import RunFolder
from runner.slurm.client import Slurm
from runner.slurm_stop import stop_placed
from runner.store import Run, RunStore

_LOOK_S = 0.1


def stop_run(workshop: Workshop, text: str) -> int:
    """End a run, wait until its record is there, and print it. Returns xrun's exit code; raises XrunError."""
    store = RunStore(workshop.project.runs)
    folder = store.find(text)
    run = store.look(folder)
    if run.problem:
        raise StoreError(run.problem)
    if run.status == "submitted":
        (stopped,) = stop_placed([run], store, Slurm(), workshop.say)
        return _say(f"{stopped.folder.id}: {stopped.status}")
    if isinstance(run.facts, Record):
        return _say(f"{folder.id} has ended: {run.status}")
    _ask(folder)
    if run.status == "running":
        workshop.say(f"{folder.id} is asked to end; Ctrl-C leaves it to itself")
        run = _awaited(store, folder)
    if not isinstance(run.facts, Record):
        return _end_what_is_left(workshop, store, folder)
    return _say(f"{folder.id}: {run.status}{f': {run.facts.message}' if run.facts.message else ''}")


def _ask(folder: RunFolder) -> None:
    try:
        folder.ask_to_stop()
    except OSError as error:
        raise StoreError(f"{folder.id} cannot be stopped: {folder.control}: {error.strerror}") from error


def _awaited(store: RunStore, folder: RunFolder) -> Run:
    while (run := store.look(folder)).status == "running":
        time.sleep(_LOOK_S)
    return run


def _end_what_is_left(workshop: Workshop, store: RunStore, folder: RunFolder) -> int:
    engine = pick_recorded(what_was_started(folder, store).engine, workshop.images)
    record = adopt(folder, engine=engine, store=store, watcher=onlooker(), leases=leases(os.environ))
    if record is None:
        return _say(f"{folder.id} has ended: its xrun was killed, and nothing of it runs any more")
    return _say(f"{folder.id}: {record.status}{f': {record.message}' if record.message else ''}")


def _say(line: str) -> int:
    sys.stdout.write(line + "\n")
    return 0
