"""`xrun experiment=…`: from the words on the command line to a run's record, and what is printed of it."""

import shlex
import sys
from functools import partial

from runner.arguments import RunArguments
from runner.conf.words import show_config, show_info
from runner.container import DATA, OUT, SOURCE, SPEC
from runner.engines.select import pick
from runner.errors import ConfigError
from runner.k8s_command import manifest, require_dry_run
from runner.launch import job, report, watcher
from runner.levels import PRICES
from runner.placement import place
from runner.plan import Plan, Planner, launch_of, use_of
from runner.prepare import Workshop, make_ready
from runner.slurm_command import described, engine_on_nodes, placement_of, submit_run
from runner.source import snapshot


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
    project = workshop.project
    take = partial(snapshot, project.experiments, project.runs)
    planner = Planner(workshop, project, use_of(words), take)
    if (config := planner.composer.compose(words.overrides)).scheduler.kind == "k8s":
        require_dry_run(config, words.overrides, is_dry=words.dry_run)
    plan = planner.plan(words.overrides)
    if plan.config.scheduler.kind == "slurm":
        return _on_slurm(plan, workshop, words, argv)
    if words.detach:
        elsewhere = [word for word in words.overrides if not word.startswith("scheduler=")]
        hint = f"xrun {shlex.join([*elsewhere, 'scheduler=slurm', '--detach'])}"
        raise ConfigError("--detach: a run on this machine ends with its xrun", hint=hint)
    if words.dry_run:
        sys.stdout.write(_manifest(plan) if plan.config.scheduler.kind == "k8s" else _described(plan))
        return 0
    engine = pick(plan.config.engine, workshop.images)
    if engine.name != "host":
        make_ready(plan.spec.image, workshop, plan.relock, offline=words.offline)
    launch = launch_of(plan, argv)
    run = job(launch, engine, workshop)
    image = "no image" if engine.name == "host" else f"image {plan.spec.image.name} {plan.spec.image.digest}"
    level = plan.spec.determinism.level
    price = f" ({PRICES[level]})" if level in PRICES else ""
    workshop.say(f"{image}, engine {engine.name}, level {level}{price}")
    record = place(run, engine, workshop, watcher(launch, run.started), plan.here)
    assert record is not None, "nobody ends this wait"
    return report(record, workshop.say)


def _on_slurm(plan: Plan, workshop: Workshop, words: RunArguments, argv: tuple[str, ...]) -> int:
    """Submit the run, or print the script that would be submitted."""
    placement = placement_of(launch_of(plan, argv), engine_on_nodes(plan.config), workshop)
    if words.dry_run:
        sys.stdout.write(described(placement, workshop))
        return 0
    return submit_run(placement, workshop, detach=words.detach, offline=words.offline, hint=plan.relock)


def _manifest(plan: Plan) -> str:
    launch = launch_of(plan, ())
    return manifest(plan.spec, launch.conducted, plan.source, launch.self_test_steps)


def _described(plan: Plan) -> str:
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
