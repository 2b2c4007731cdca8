"""`xrun experiment=…`: from the words on the command line to a run's record, and what is printed of it."""

import sys
from dataclasses import dataclass
from functools import partial

from runner import machine
from runner.arguments import RunArguments
from runner.conf.compose import compose
from runner.conf.words import show_config, show_info
from runner.config import Config, self_test_steps
from runner.container import DATA, OUT, SOURCE, SPEC, limits_of
from runner.engines.select import pick
from runner.launch import Launch, job, report, watcher
from runner.levels import PRICES
from runner.lock import Lock
from runner.locking import Use, changes, load, lock_for_run, recorded, relock, save
from runner.machine import Machine
from runner.placement import place
from runner.prepare import Workshop, make_ready, pin_image
from runner.record import Conducted
from runner.resolve import run_spec
from runner.source import Source, snapshot
from runner.spec import RunSpec

_SELECTIONS = ("experiment", "hardware", "image")


def run_experiment(workshop: Workshop, words: RunArguments, argv: tuple[str, ...]) -> int:
    """Run an experiment and return xrun's exit code. Raises XrunError."""
    conf = workshop.project.conf
    if words.cfg is not None:
        shown = show_config(conf, words.overrides, words.cfg, package=words.package, resolve=words.resolve)
        sys.stdout.write(shown)
        return 0
    if words.info is not None:
        sys.stdout.write(show_info(conf, words.overrides, words.info))
        return 0
    plan = _plan(workshop, words)
    if words.dry_run:
        sys.stdout.write(_described(plan))
        return 0
    engine = pick(plan.config.engine, workshop.images)
    if engine.name != "host":
        make_ready(plan.spec.image, workshop, _relock(plan.lock), offline=words.offline)
    launch = _launch(plan, argv)
    run = job(launch, engine, workshop)
    image = "no image" if engine.name == "host" else f"image {plan.spec.image.name} {plan.spec.image.digest}"
    level = plan.spec.determinism.level
    price = f" ({PRICES[level]})" if level in PRICES else ""
    workshop.say(f"{image}, engine {engine.name}, level {level}{price}")
    record = place(run, engine, workshop, watcher(launch, run.started), plan.here)
    assert record is not None, "nobody ends this wait"
    return report(record, workshop.say)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """All that a run is decided by."""

    config: Config
    lock: Lock
    spec: RunSpec
    source: Source
    here: Machine
    overrides: tuple[str, ...]


def _plan(workshop: Workshop, words: RunArguments) -> _Plan:
    project = workshop.project
    config = compose(project.conf, words.overrides)
    selections = [word for word in words.overrides if word.partition("=")[0].partition(".")[0] in _SELECTIONS]
    base = compose(project.conf, selections)
    lock = _lock(workshop, words, base, config)
    here = machine.probe()
    machine.require(lock.hardware, here, str(project.lockfile(lock.experiment, lock.hardware_name)))
    source = snapshot(project.experiments, project.runs)
    spec = run_spec(lock, base, config, source.digest)
    return _Plan(config=config, lock=lock, spec=spec, source=source, here=here, overrides=words.overrides)


def _lock(workshop: Workshop, words: RunArguments, base: Config, config: Config) -> Lock:
    """Return the lock of a run, and keep what a plain run adds to it."""
    root, say = workshop.project.root, workshop.say
    path = workshop.project.lockfile(config.experiment.name, config.hardware.name)
    use: Use = "locked" if words.locked else "frozen" if words.frozen else "plain"
    old = load(root, path)
    lock = lock_for_run(path, old, base, config, use)
    if lock is None:
        pin = partial(pin_image, config.image, workshop, upgrade=False)
        lock = relock(base, None, pin, recorded(base, machine.probe()))
    if lock != old:
        for change in changes(old, lock) if old else ["is new; commit it"]:
            say(f"{path}: {change}")
        save(root, path, lock)
    return lock


def _launch(plan: _Plan, argv: tuple[str, ...]) -> Launch:
    config = plan.config
    conducted = Conducted(
        limits=limits_of(config.hardware),
        tracking=config.tracking,
        scheduler=config.scheduler,
        data_recipe=config.image.data_recipe,
    )
    return Launch(
        spec=plan.spec,
        source=plan.source,
        conducted=conducted,
        here=plan.here,
        argv=argv,
        overrides=plan.overrides,
        lock_digest=plan.lock.digest,
        self_test_steps=self_test_steps(config),
    )


def _relock(lock: Lock) -> str:
    return f"xrun lock experiment={lock.experiment} hardware={lock.hardware_name}"


def _described(plan: _Plan) -> str:
    """Return what would run, in the words of the container."""
    spec = plan.spec
    lines = [
        f"run     {spec.run_stem}",
        f"image   {spec.image.name} {spec.image.digest}",
        f"level   {spec.determinism.level}",
        f"ranks   {spec.ranks}",
        f"source  {spec.source} at {SOURCE}, read-only",
        f"spec    {spec.digest} at {SPEC}, read-only",
        *(f"data    {name} at {DATA}/{name}, {len(files)} files" for name, files in sorted(spec.data.items())),
        f"output  {OUT}, the one folder that can be written",
        "network none",
        *(f"env     {name}={value}" for name, value in sorted(spec.determinism.environment.items())),
    ]
    return "\n".join(lines) + "\n"
