"""The trials of a sweep on SLURM: submitted as arrays, followed through one call of squeue, taken up again by id."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from runner.errors import SchedulerError
from runner.outputs import EventReader
from runner.pickers import Trial
from runner.plan import Plan
from runner.run_folder import RunFolder
from runner.slurm.arrays import submit_array
from runner.slurm.client import Slurm, runtime
from runner.slurm.order import SlurmFiles
from runner.slurm.placement import cancel, prepare, settled, states, submit
from runner.slurm.states import JobState
from runner.slurm_command import engine_on_nodes, make_ready_on_nodes, placement_of
from runner.sweep_trials import Stage, trial_launch

_LOOK_S = 0.3
# A search that has all its trials in the queue at once learns nothing from any of them.
_SEARCH_JOBS = 8
# A record may be on its way through a shared file system when the job has ended already.
_RECORD_S = 5.0
# What SLURM took no more of is offered again when a job has ended, or now and then: others' jobs end, too.
_OFFER_AGAIN_S = 30.0


@dataclass(slots=True, kw_only=True)
class _Placed:
    """A trial that SLURM has, or is to have."""

    trial: Trial
    folder: RunFolder
    events: EventReader
    outs: int
    """Attempts so far; each has events of its own."""
    is_shown: bool = False
    ended_s: float | None = None
    """When SLURM first said that its job has ended."""


def run_jobs(stage: Stage, plans: Sequence[Plan], *, offline: bool) -> None:
    """Run a sweep's trials as SLURM jobs, until none is left. Ctrl-C leaves them to SLURM. Raises XrunError."""
    _prepare(stage, plans, offline=offline)
    jobs = plans[0].config.sweep.jobs or (None if plans[0].config.sweep.kind == "grid" else _SEARCH_JOBS)
    slurm = Slurm()
    slurm.queue()  # before anything is made of trials that could not be submitted
    live = [_taken_up(stage, trial) for trial in stage.picker.orphans()]
    offered_s = -math.inf
    try:
        while True:
            picked = _picked(stage, jobs, len(live))
            live += picked
            if not live and not stage.picker.has_more():
                return
            if picked or time.monotonic() - offered_s > _OFFER_AGAIN_S:
                _submit(stage, slurm, live)
                offered_s = time.monotonic()
            going = _followed(stage, slurm, live)
            offered_s = -math.inf if len(going) < len(live) else offered_s
            live = going
            stage.account.table.look()
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        stage.account.table.say(
            f"{len(live)} trials go on as SLURM jobs; xrun sweep resume {stage.sweep.id} follows them,"
        )
        stage.account.table.say(f"xrun sweep stop {stage.sweep.id} ends them")
        raise
    finally:
        stage.account.table.close()


def _prepare(stage: Stage, plans: Sequence[Plan], *, offline: bool) -> None:
    """Have every image that the trials need, as what executes it on the nodes needs it."""
    for (engine, _), plan in {(engine_on_nodes(plan.config), plan.spec.image.digest): plan for plan in plans}.items():
        make_ready_on_nodes(plan.spec.image, engine, stage.workshop, plan.relock, offline=offline)


def _taken_up(stage: Stage, trial: Trial) -> _Placed:
    """Follow a trial that an earlier start of the sweep has submitted, or was about to."""
    assert trial.past is not None
    stage.picker.taken_up(trial)
    folder = trial.past.folder
    return _Placed(trial=trial, folder=folder, events=EventReader(folder.out), outs=len(folder.outs))


def _picked(stage: Stage, jobs: int | None, running: int) -> list[_Placed]:
    """Make the folders of the trials that may be submitted now."""
    found: list[_Placed] = []
    while jobs is None or running + len(found) < jobs:
        if stage.picker.peek() is None:
            break
        if (trial := stage.picker.take()) is None:
            continue
        launch = trial_launch(stage, trial)
        placement = placement_of(launch, engine_on_nodes(trial.plan.config), stage.workshop)
        if launch.stretch.past is not None and trial.past is not None and trial.past.facts is not None:
            placement = replace(placement, machine=trial.past.facts.host)
        folder = prepare(placement, stage.account.store, runtime(stage.workshop.home))
        found.append(_Placed(trial=trial, folder=folder, events=EventReader(folder.out), outs=1))
    return found


def _submit(stage: Stage, slurm: Slurm, live: Sequence[_Placed]) -> None:
    """Submit what is not submitted yet, also what a killed xrun had only prepared. What finds no room waits."""
    waiting = [placed for placed in live if not placed.is_shown]
    if not waiting:
        return
    unclaimed = [placed.folder for placed in waiting if SlurmFiles(placed.folder).job() is None]
    given: dict[str, str] = {}
    if len(unclaimed) == 1:
        given[unclaimed[0].id] = submit(unclaimed[0], slurm)
    elif unclaimed:
        given = submit_array(unclaimed, stage.account.store, slurm, runtime(stage.workshop.home))
    for placed in waiting:
        job = given.get(placed.folder.id) or SlurmFiles(placed.folder).job()
        if job is not None:
            placed.is_shown = True
            stage.account.table.start(placed.trial.number, placed.trial.words, f"slurm {job}", placed.folder.id)


def _followed(stage: Stage, slurm: Slurm, live: Sequence[_Placed]) -> list[_Placed]:
    """Show how the trials get on; returns those that have not ended."""
    submitted = [placed for placed in live if placed.is_shown]
    try:
        known = states([placed.folder for placed in submitted], slurm) if submitted else {}
    except SchedulerError as error:  # it may come back, and the trials go on meanwhile
        stage.account.table.wait(f"SLURM does not answer: {error.message}")
        return list(live)
    for placed in submitted:
        _look(stage, slurm, placed, known.get(placed.folder.id))
    ended = [placed for placed in live if placed.folder.record.exists()]
    for placed in ended:
        stage.picker.end(placed.trial, stage.account.store.load(placed.folder))
    return [placed for placed in live if placed not in ended]


def _look(stage: Stage, slurm: Slurm, placed: _Placed, state: JobState | None) -> None:
    folder = placed.folder
    if (outs := len(folder.outs)) != placed.outs:
        placed.outs, placed.events = outs, EventReader(folder.out)
    for event in placed.events.read():
        stage.account.table.event(placed.trial.number, event)
        halt = stage.picker.see(placed.trial, event)
        if halt is not None and not SlurmFiles(folder).is_cancelled.exists():
            cancel([folder], slurm, halt.message, status="pruned")
    if state is not None and not state.has_ended:
        placed.ended_s = None
        return
    placed.ended_s = placed.ended_s or time.monotonic()
    if time.monotonic() - placed.ended_s > _RECORD_S:
        settled([stage.account.store.look(folder)], stage.account.store, slurm)
