"""Where a run is placed on this machine: what it needs, waited for and held while it runs."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runner import machine
from runner.config import Scheduler
from runner.engines.request import Engine, Remains
from runner.engines.select import pick_recorded
from runner.errors import EngineError
from runner.execute import Job, Watcher, execute
from runner.leases import Lease, Need, Outlives, lease
from runner.machine import Machine
from runner.note import Note
from runner.prepare import Workshop
from runner.project import leases
from runner.record import Record, timestamp
from runner.run_folder import RunFolder
from runner.spec import RunSpec
from runner.store import RunStore

# A daemon is not asked more often about the same container.
_ASK_AGAIN_S = 2.0


def need_of(spec: RunSpec, ranks: int | None, here: Machine) -> Need:
    """Return what a run on so many processes (None: as many as its spec says) needs of a machine."""
    if spec.hardware.device == "cuda":
        gpus = tuple(gpu.uuid for gpu in machine.leasable(spec.hardware, here))
        return Need(gpus=gpus, gpu_count=ranks or spec.hardware.gpu_count)
    return Need(cpu_slots=spec.hardware.threads * (ranks or spec.ranks))


def cpu_slots(scheduler: Scheduler) -> int:
    """Return how many CPU slots this machine has."""
    return scheduler.slots or len(os.sched_getaffinity(0))


def _always() -> bool:
    return True


def place(  # noqa: PLR0913, a job, what executes it, where, and who looks on
    job: Job,
    engine: Engine,
    workshop: Workshop,
    watcher: Watcher,
    here: Machine,
    *,
    go_on: Callable[[], bool] = _always,
) -> Record | None:
    """Wait until a job has what it needs, execute it, and return its record; None where `go_on` ended the wait.

    Raises XrunError.
    """
    # Before the wait, for nobody else may have the slots meanwhile.
    engine.require(job.spec.image)
    store = RunStore(workshop.project.runs)
    assert job.started.conducted is not None, "only records of an older xrun lack it"
    need = need_of(job.spec, job.conduct.ranks, here)
    held = lease_for(need, job.started.conducted.scheduler, workshop, _told(watcher.say, go_on))
    if held is None:
        return None
    with held:
        if not go_on():
            return None
        return execute(placed(job, held.gpus), engine=engine, store=store, watcher=watcher, lease=held)


def lease_for(need: Need, scheduler: Scheduler, workshop: Workshop, waiting: Callable[[str], bool]) -> Lease | None:
    """Hold what a run needs, when it is its turn; None where `waiting` ended the wait. Raises StoreError."""
    slots = cpu_slots(scheduler)
    return lease(leases(os.environ), need, slots, waiting=waiting, outlives=outlives(workshop))


def placed(job: Job, gpus: tuple[str, ...]) -> Job:
    """Return a job that starts now, on the GPUs that are held for it."""
    started = replace(job.started, started_at=timestamp(time.time()))
    return replace(job, conduct=replace(job.conduct, gpus=gpus), started=started)


def _told(say: Callable[[str], None], go_on: Callable[[], bool]) -> Callable[[str], bool]:
    """Return what is called while a run waits: it says why, and once only until that changes."""
    said = [""]

    def waiting(why: str) -> bool:
        if why and said != [why]:
            said[:] = [why]
            say(f"waiting: {why}")
        return go_on()

    return waiting


def outlives(workshop: Workshop) -> Outlives:
    """Return who says whether a container lives whose xrun is dead, where only its engine can tell."""
    asked: dict[Note, tuple[float, bool]] = {}

    def lives(note: Note) -> bool:
        asked_s, answer = asked.get(note, (float("-inf"), True))
        if time.monotonic() - asked_s > _ASK_AGAIN_S:
            answer = _is_running(note, workshop)
            asked[note] = (time.monotonic(), answer)
        return answer

    return lives


def _is_running(note: Note, workshop: Workshop) -> bool:
    try:
        engine = pick_recorded(note.engine, workshop.images)
        return engine.is_running(remains_of(RunFolder(path=Path(note.run))))
    except EngineError:  # a daemon that cannot be asked may run it still
        return note.engine == "docker"


def remains_of(folder: RunFolder, node: int = 0) -> Remains:
    """Return where the container of a run, on one of several nodes, is looked for."""
    return Remains(run=folder.path.with_name(folder.container_of(node)), out=folder.out, log=folder.log_of(node))
