"""`xrun resume <run-id>`: a run that was stopped goes on from its newest checkpoint that verifies."""

import os
from dataclasses import replace

from runner import machine
from runner.adopt import adopt, onlooker, what_was_started
from runner.arguments import ResumeArguments
from runner.container import Stretch
from runner.engines.select import pick, pick_recorded
from runner.errors import ConfigError, EngineError, HardwareError, StoreError
from runner.launch import again, job, newest_with_checkpoint, report, watcher
from runner.levels import is_resumable
from runner.placement import place
from runner.prepare import Workshop, make_ready
from runner.project import leases
from runner.record import Record, Started
from runner.replay import identity_reasons
from runner.run_folder import RunFolder
from runner.slurm.client import Slurm
from runner.slurm.placement import settled
from runner.slurm_command import placement_of, submit_run
from runner.spec import RunSpec
from runner.store import Run, RunStore


def resume_run(workshop: Workshop, words: ResumeArguments, argv: tuple[str, ...]) -> int:
    """Go on with a run, as a run of its own, and return xrun's exit code. Raises XrunError."""
    store = RunStore(workshop.project.runs)
    (run,) = settled([store.look(store.find(words.run))], store, Slurm())
    spec = store.load_spec(run.folder)
    if run.status == "interrupted" and not isinstance(run.facts, Record):
        taken_up = _taken_up(workshop, words, run.folder, store)
        if taken_up is not None:
            return report(taken_up, workshop.say)
    past = _resumable(run, spec)
    here = machine.probe()
    is_placed = past.conducted is not None and past.conducted.scheduler.kind == "slurm"
    if reasons := [] if is_placed else identity_reasons(past, spec, here):
        raise HardwareError(
            f"{run.folder.id} cannot go on here with the bits it promises:\n" + "\n".join(f"  {why}" for why in reasons)
        )
    hint = f"git log --oneline -- images/{spec.image.ref}"
    launch = replace(
        again(past, spec, store, here, ("resume", *argv)),
        continues=run.folder.id,
        stretch=Stretch(past=newest_with_checkpoint(store, run.folder, past)),
    )
    if is_placed and past.conducted is not None:
        launch = replace(launch, conducted=past.conducted)
        engine_name = past.engine if words.engine == "auto" else words.engine
        placement = replace(placement_of(launch, engine_name, workshop), machine=past.host)
        return submit_run(placement, workshop, detach=words.detach, offline=words.offline, hint=hint)
    engine = pick(words.engine, workshop.images)
    if engine.name != "host":
        make_ready(spec.image, workshop, hint, offline=words.offline)
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


def _resumable(run: Run, spec: RunSpec) -> Started:
    """Return what a run started with. Raises XrunError unless it can go on."""
    name, level = run.folder.id, spec.determinism.level
    if run.problem or run.facts is None:
        raise StoreError(run.problem)
    if run.status == "done":
        raise ConfigError(f"{name} is done: there is nothing left to run", hint=f"xrun replay {name}")
    if run.status in {"running", "queued", "requeued"}:
        raise ConfigError(f"{name} still runs", hint=f"xrun logs {name} -f")
    if spec.is_command:
        raise ConfigError(f"{name} is a command's run, which has no checkpoints", hint=f"xrun show {name}")
    if not is_resumable(level):
        raise ConfigError(
            f"{name} cannot go on: level {level} promises nothing of runs that were stopped",
            hint=f"xrun experiment={spec.experiment} determinism=resume",
        )
    return run.facts
