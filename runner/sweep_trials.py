"""The trials of a sweep on this machine: each holds its slots, runs as any other run does, and frees them."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from runner.adopt import adopt, onlooker
from runner.checkpoints import has_checkpoint
from runner.container import Stretch
from runner.engines.request import Engine
from runner.engines.select import pick, pick_recorded
from runner.execute import Watcher, execute
from runner.launch import Launch, job, newest_with_checkpoint
from runner.leases import Lease
from runner.levels import is_resumable
from runner.outputs import Event
from runner.pickers import Account, Grid, Trial
from runner.placement import lease_for, need_of, placed
from runner.plan import Plan, launch_of
from runner.prepare import Workshop, make_ready
from runner.project import leases
from runner.record import Record, Started
from runner.run_folder import RunFolder
from runner.search_picker import Search
from runner.sweep import Loop
from runner.sweeps import SweepFolder
from runner.terms import Halt
from runner.tracked import subject_of
from runner.tracking import Tracker

_STOPPED = Halt(status="interrupted", message="the sweep was stopped", with_checkpoint=True)


class TrialLease:
    """The lease of a trial; the sweep's log says which trial had which slots, from when to when."""

    def __init__(self, held: Lease, log: Path, released: Callable[[], None]) -> None:
        self.lease = held
        self.trial: int | None = None
        self.is_held = True
        self._log = log
        self._released = released
        self._from_s = time.monotonic()

    def release(self) -> None:
        """Let go of the slots, unless that is done. Times in the log are those of the machine's monotonic clock."""
        line = {"trial": self.trial, "slots": self.lease.label, "from_s": self._from_s, "to_s": time.monotonic()}
        if self.trial is not None and self.is_held and self.lease.label:
            # An account that cannot be written, on a full disk, is no reason to fail the trial.
            with suppress(OSError), self._log.open("a") as log:
                log.write(json.dumps(line) + "\n")
        self.is_held = False
        self.lease.release()
        self._released()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all trials of a sweep share."""

    workshop: Workshop
    account: Account
    sweep: SweepFolder
    picker: Grid | Search
    argv: tuple[str, ...]
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when every trial is to end, with a checkpoint."""
    engines: dict[str, Engine] = field(default_factory=dict)


def run_trials(stage: Stage, plans: Sequence[Plan], *, offline: bool) -> None:
    """Run a sweep's trials, as many side by side as there are slots for. Raises XrunError, KeyboardInterrupt."""
    _prepare(stage, plans, offline=offline)
    loop = Loop(stage.account.table.look, stage.account.table.say, jobs=plans[0].config.sweep.jobs)

    def hold(trial: Trial) -> TrialLease | None:
        def waiting(why: str) -> bool:
            loop.settle()
            return stage.account.table.wait(why)

        plan = trial.plan
        held = lease_for(need_of(plan.spec, None, plan.here), plan.config.scheduler, stage.workshop, waiting)
        return None if held is None else TrialLease(held, stage.sweep.leases, loop.look_again)

    try:
        loop.run(stage.picker, hold, partial(_run_trial, stage), partial(_adopt, stage))
    except KeyboardInterrupt:
        stage.account.table.say("stopping every trial after its step, with a checkpoint; Ctrl-C again stops at once")
        stage.stop.set()
        loop.wait()
        stage.account.table.say(f"stopped; to go on: xrun sweep resume {stage.sweep.id}")
        raise
    finally:
        stage.account.table.close()


def _prepare(stage: Stage, plans: Iterable[Plan], *, offline: bool) -> None:
    """Have every engine and image that the trials need, before the first of them starts."""
    ready = set()
    for plan in plans:
        if plan.config.engine not in stage.engines:
            stage.engines[plan.config.engine] = pick(plan.config.engine, stage.workshop.images)
        engine, image = stage.engines[plan.config.engine], plan.spec.image
        if engine.name != "host" and image.digest not in ready:
            make_ready(image, stage.workshop, plan.relock, offline=offline)
            ready.add(image.digest)


def _run_trial(stage: Stage, trial: Trial, held: TrialLease) -> Record:
    launch, engine = trial_launch(stage, trial), stage.engines[trial.plan.config.engine]
    held.trial = trial.number
    run = placed(job(launch, engine, stage.workshop), held.lease.gpus)
    watcher = _watcher(stage, trial, launch, run.started, held)
    return execute(run, engine=engine, store=stage.account.store, watcher=watcher, lease=held.lease)


def _adopt(stage: Stage, trial: Trial) -> Record | None:
    """Follow what a killed xrun has left of a trial; None where nothing is left."""
    assert trial.past is not None
    assert trial.past.facts is not None
    engine = pick_recorded(trial.past.facts.engine, stage.workshop.images)
    usual = onlooker()

    def begin(folder: RunFolder, _pid: int | None) -> None:
        stage.picker.taken_up(trial)
        stage.account.table.start(trial.number, trial.words, "taken up", folder.id)

    watcher = replace(
        usual,
        begin=begin,
        event=partial(stage.account.table.event, trial.number),
        say=stage.account.table.say,
        look=lambda: _STOPPED if stage.stop.is_set() else None,
    )
    return adopt(
        trial.past.folder, engine=engine, store=stage.account.store, watcher=watcher, leases=leases(os.environ)
    )


def trial_launch(stage: Stage, trial: Trial) -> Launch:
    """Return the launch of a trial: from its newest checkpoint, where it has one and its level allows it."""
    launch = replace(launch_of(trial.plan, stage.argv), sweep=stage.sweep.id, trial=trial.number)
    past = trial.past
    if past is None or past.facts is None or not is_resumable(trial.plan.spec.determinism.level):
        return launch
    out = newest_with_checkpoint(stage.account.store, past.folder, past.facts)
    if not has_checkpoint(out):
        return launch
    return replace(launch, continues=past.folder.id, stretch=Stretch(past=out))


def _watcher(stage: Stage, trial: Trial, launch: Launch, started: Started, held: TrialLease) -> Watcher:
    """Return who looks on at a trial: the table, Weights & Biases, and whoever may end it."""
    tracker = Tracker(launch.conducted.tracking, subject_of(launch.spec, started), os.environ, stage.account.table.say)
    halts: list[Halt] = []

    def begin(folder: RunFolder, pid: int | None) -> None:
        stage.account.table.start(trial.number, trial.words, held.lease.label, folder.id)
        tracker.begin(folder, pid)

    def event(happened: Event) -> None:
        stage.account.table.event(trial.number, happened)
        tracker.look()
        if (halt := stage.picker.see(trial, happened)) is not None:
            halts.append(halt)

    def look() -> Halt | None:
        return _STOPPED if stage.stop.is_set() else next(iter(halts), None)

    def gone() -> None:
        if not stage.picker.needs_results:
            held.release()

    return Watcher(begin=begin, event=event, end=tracker.end, say=stage.account.table.say, look=look, gone=gone)
