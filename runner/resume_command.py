"""`xrun resume <run-id>`: a run that was stopped goes on from its newest checkpoint that verifies."""

from dataclasses import replace

from runner import machine
from runner.arguments import ResumeArguments
from runner.container import Stretch
from runner.engines.select import pick
from runner.errors import ConfigError, HardwareError, StoreError
from runner.execute import execute
from runner.launch import again, job, newest_with_checkpoint, report, watcher
from runner.levels import is_resumable
from runner.prepare import Workshop, make_ready
from runner.record import Started
from runner.replay import identity_reasons
from runner.slurm.client import Slurm
from runner.slurm.placement import settled
from runner.slurm_command import place, placement_of
from runner.spec import RunSpec
from runner.store import Run, RunStore


def resume_run(workshop: Workshop, words: ResumeArguments, argv: tuple[str, ...]) -> int:
    """Go on with a run, as a run of its own, and return xrun's exit code. Raises XrunError."""
    store = RunStore(workshop.project.runs)
    run = settled(store.look(store.find(words.run)), store, Slurm())
    spec = store.load_spec(run.folder)
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
        return place(placement, workshop, detach=words.detach, offline=words.offline, hint=hint)
    engine = pick(words.engine, workshop.images)
    if engine.name != "host":
        make_ready(spec.image, workshop, hint, offline=words.offline)
    going_on = job(launch, engine, workshop)
    workshop.say(f"going on with {run.folder.id}: engine {engine.name}, level {spec.determinism.level}")
    return report(
        execute(going_on, engine=engine, store=store, watcher=watcher(launch, going_on.started)), workshop.say
    )


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
