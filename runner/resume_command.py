"""`xrun resume <run-id>`: a run that was stopped goes on from its newest checkpoint that verifies."""

import os
from dataclasses import replace

from runner import machine
from runner.adopt import adopt, onlooker, what_was_started
from runner.arguments import ResumeArguments
from runner.checkpoints import has_checkpoint
from runner.container import Stretch
from runner.engines.select import pick, pick_recorded
from runner.errors import ConfigError, EngineError, HardwareError, StoreError
from runner.launch import again, job, report, watcher
from runner.levels import is_resumable
from runner.placement import place
from runner.prepare import Workshop, make_ready
from runner.project import leases
from runner.record import Record, Started
from runner.replay import identity_reasons
from runner.spec import RunSpec
from runner.store import Run, RunFolder, RunStore


def resume_run(workshop: Workshop, words: ResumeArguments, argv: tuple[str, ...]) -> int:
    """Go on with a run, as a run of its own, and return xrun's exit code. Raises XrunError."""
    store = RunStore(workshop.project.runs)
    run = store.look(store.find(words.run))
    spec = store.load_spec(run.folder)
    if run.status == "interrupted" and not isinstance(run.facts, Record):
        taken_up = _taken_up(workshop, words, run.folder, store)
        if taken_up is not None:
            return report(taken_up, workshop.say)
    past = _resumable(run, spec)
    here = machine.probe()
    if reasons := identity_reasons(past, spec, here):
        raise HardwareError(
            f"{run.folder.id} cannot go on here with the bits it promises:\n" + "\n".join(f"  {why}" for why in reasons)
        )
    launch = replace(
        again(past, spec, store, here, ("resume", *argv)),
        continues=run.folder.id,
        stretch=Stretch(past=_newest_with_checkpoint(store, run.folder, past).out),
    )
    engine = pick(words.engine, workshop.images)
    if engine.name != "host":
        make_ready(spec.image, workshop, f"git log --oneline -- images/{spec.image.ref}", offline=words.offline)
    going_on = job(launch, engine, workshop)
    workshop.say(f"going on with {run.folder.id}: engine {engine.name}, level {spec.determinism.level}")
    record = place(going_on, engine, workshop, watcher(launch, going_on.started), here)
    assert record is not None, "nobody ends this wait"
    return report(record, workshop.say)


def _taken_up(workshop: Workshop, words: ResumeArguments, folder: RunFolder, store: RunStore) -> Record | None:
    """Return the record of a run whose xrun was killed, if its container or a result of it is left."""
    name = what_was_started(folder, store).engine
    try:
        engine = pick_recorded(name, workshop.images)
    except EngineError:
        if words.engine in {"auto", name}:
            raise
        return None  # it is to go on by another engine, perhaps on another machine
    workshop.say(f"{folder.id}: its xrun was killed; looking for what it left, engine {name}")
    record = adopt(folder, engine=engine, store=store, watcher=onlooker(), leases=leases(os.environ))
    if record is not None and record.replay_of is not None:
        workshop.say(f"what compared it with {record.replay_of} ended with its xrun; xrun replay {record.replay_of}")
    return record


def _newest_with_checkpoint(store: RunStore, folder: RunFolder, facts: Started) -> RunFolder:
    """Return the run itself, or the newest before it that holds a checkpoint: it may have ended before it had one."""
    while not has_checkpoint(folder.out) and facts.continues is not None:
        earlier = store.look(store.find(facts.continues))
        if earlier.facts is None:
            raise StoreError(earlier.problem)
        folder, facts = earlier.folder, earlier.facts
    return folder


def _resumable(run: Run, spec: RunSpec) -> Started:
    """Return what a run started with. Raises XrunError unless it can go on."""
    name, level = run.folder.id, spec.determinism.level
    if run.problem or run.facts is None:
        raise StoreError(run.problem)
    if run.status == "done":
        raise ConfigError(f"{name} is done: there is nothing left to run", hint=f"xrun replay {name}")
    if run.status == "running":
        raise ConfigError(f"{name} still runs", hint=f"xrun logs {name} -f")
    if spec.is_command:
        raise ConfigError(f"{name} is a command's run, which has no checkpoints", hint=f"xrun show {name}")
    if not is_resumable(level):
        raise ConfigError(
            f"{name} cannot go on: level {level} promises nothing of runs that were stopped",
            hint=f"xrun experiment={spec.experiment} determinism=resume",
        )
    return run.facts
