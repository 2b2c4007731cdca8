"""`xrun -m …` and `xrun sweep …`: a sweep from its words to the last of its trials."""

import importlib.metadata
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from runner.arguments import RunArguments, SweepArguments
from runner.conf.grid import example, grid, swept
from runner.conf.space import dimensions
from runner.config import Sweep, Tracking
from runner.errors import ConfigError, RunFailed
from runner.pickers import Account, Grid, Trial
from runner.plan import Plan, Planner, use_of
from runner.prepare import Workshop
from runner.project import Project
from runner.record import timestamp
from runner.run_folder import RunFolder
from runner.search import Study
from runner.search_picker import Search
from runner.source import snapshot, stored
from runner.space import SearchSettings
from runner.store import RunStore
from runner.sweep_jobs import run_jobs
from runner.sweep_listing import show_sweep
from runner.sweep_table import SweepTable
from runner.sweep_trials import Stage, run_trials
from runner.sweeps import Planned, SweepFacts, SweepFolder, SweepStore, sweep_id
from runner.tracked import Ending, Subject
from runner.tracking import Tracker
from runner.trials import best, overview, runs_of, same_spec, states, values_of

# What a search cannot vary: the lock is pinned when it begins.
_PINNED = ("experiment", "hardware", "image")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """A start of a sweep, the first or a later one."""

    folder: SweepFolder
    facts: SweepFacts
    argv: tuple[str, ...]
    force: bool
    offline: bool
    trials: tuple[Trial, ...] = ()
    """A grid's, where they are planned already."""


def run_sweep(workshop: Workshop, words: RunArguments, argv: tuple[str, ...]) -> int:
    """Run every trial of a command line's words, or go on with those that are left. Raises XrunError."""
    project, texts = workshop.project, words.overrides
    planner = Planner(workshop, project, use_of(words), partial(snapshot, project.experiments, project.runs))
    groups = planner.composer.groups
    like = planner.plan(example(texts, groups))
    _require_sweepable(like, texts, swept(texts, groups))
    is_grid = like.config.sweep.kind == "grid"
    trials = _planned(planner, grid(texts, groups), swept(texts, groups)) if is_grid else ()
    if words.dry_run:
        sys.stdout.write(_described(trials, like, RunStore(project.runs), force=words.force))
        return 0
    locks = sorted({_lockfile(project, plan) for plan in (like, *(trial.plan for trial in trials))})
    name = sweep_id(texts, project.conf, locks, planner.source().digest)
    folder = SweepStore(project.sweeps).make(name, project.conf, locks)
    facts = _facts(like, trials, texts, swept(texts, groups))
    start = _Start(folder=folder, facts=facts, argv=argv, force=words.force, offline=words.offline, trials=trials)
    return _run(workshop, start)


def resume_sweep(workshop: Workshop, words: SweepArguments, argv: tuple[str, ...]) -> int:
    """Go on with a sweep that has begun. Raises XrunError."""
    sweeps = SweepStore(workshop.project.sweeps)
    folder = sweeps.find(words.sweep)
    start = _Start(folder=folder, facts=sweeps.load(folder), argv=argv, force=words.force, offline=words.offline)
    return _run(workshop, start)


def _require_sweepable(like: Plan, texts: Sequence[str], places: Sequence[int]) -> None:
    if like.config.scheduler.kind == "k8s":
        hint = f"xrun {shlex.join(like.overrides)} --dry-run"
        raise ConfigError("scheduler=k8s: a manifest is printed of one run", hint=hint)
    is_search = like.config.sweep.kind == "optuna"
    if whole := [place for place in places if _is_the_sweeps(_key(texts[place]))]:
        once = [like.overrides[place] if place in whole else text for place, text in enumerate(texts)]
        keys = ", ".join(_key(texts[place]) for place in whole)
        raise ConfigError(f"{keys}: has one value for all trials of a sweep", hint=f"xrun -m {shlex.join(once)}")
    if is_search and (pinned := [_key(texts[place]) for place in places if _key(texts[place]) in _PINNED]):
        of_grid = shlex.join(text for text in texts if _key(text).partition(".")[0] != "sweep")
        what = f"{', '.join(pinned)}: a search does not vary what its lock is made of; a grid does"
        raise ConfigError(what, hint=f"xrun -m {of_grid}")
    if is_search and not places:
        hint = f"xrun -m {shlex.join([*texts, 'optim.lr=tag(log,interval(1e-4,1e-1))'])}"
        raise ConfigError("sweep=optuna: no word gives several values", hint=hint)


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+")


def _is_the_sweeps(key: str) -> bool:
    return key in {"scheduler", "scheduler.kind"} or key.partition(".")[0] == "sweep"


def _lockfile(project: Project, plan: Plan) -> Path:
    return project.root / project.lockfile(plan.lock.experiment, plan.lock.hardware_name)


def _planned(planner: Planner, words: Sequence[tuple[str, ...]], places: Sequence[int]) -> tuple[Trial, ...]:
    return tuple(
        Trial(number=number, words=tuple(own[place] for place in places), plan=planner.plan(own))
        for number, own in enumerate(words)
    )


def _facts(like: Plan, trials: Sequence[Trial], texts: tuple[str, ...], places: tuple[int, ...]) -> SweepFacts:
    asked = like.config.sweep
    return SweepFacts(
        xrun=importlib.metadata.version("xrun"),
        kind=asked.kind,
        words=texts,
        swept=places,
        metrics=asked.metrics,
        directions=asked.directions,
        trials=len(trials) if asked.kind == "grid" else asked.trials,
        retries=asked.retries,
        source=like.source.digest,
        started_at=timestamp(time.time()),
        planned=tuple(
            Planned(number=trial.number, words=trial.plan.overrides, spec_digest=trial.plan.spec.digest)
            for trial in trials
        ),
    )


def _run(workshop: Workshop, start: _Start) -> int:
    """Run what is left of a sweep, from its own copies of conf/ and locks, and print what came of it."""
    folder, sweeps = start.folder, SweepStore(workshop.project.sweeps)
    held = sweeps.hold(folder)
    try:
        facts = _saved(sweeps, folder, start.facts)
        store = RunStore(workshop.project.runs)
        table = SweepTable(sys.stderr, facts.trials, facts.metrics, facts.directions)
        account = Account(facts=facts, store=store, table=table)
        planner = Planner(workshop, Project(root=folder.path), "frozen", partial(stored, store.root, facts.source))
        picker, plans = _picker(start, planner, account)
        table.say(f"{folder.id}: {facts.trials} trials")
        stage = Stage(workshop=workshop, account=account, sweep=folder, picker=picker, argv=start.argv)
        try:
            _run_all(stage, plans, offline=start.offline)
        finally:
            if picker.ran:
                _summarise(folder, account, plans[0].config.tracking, workshop.say)
    finally:
        os.close(held)
    sys.stdout.write(show_sweep(store, sweeps, folder.id, as_json=False))
    return _end(picker.undone, folder, workshop)


def _run_all(stage: Stage, plans: Sequence[Plan], *, offline: bool) -> None:
    if plans[0].config.scheduler.kind == "slurm":
        run_jobs(stage, plans, offline=offline)
    else:
        run_trials(stage, plans, offline=offline)


def _summarise(folder: SweepFolder, account: Account, tracking: Tracking, say: Callable[[str], None]) -> None:
    """Tell W&B of the sweep as a whole, in a run of its own beside those of the trials."""
    facts = account.facts
    trials = states(overview(account.store, folder.id), folder, facts)
    statuses = Counter(f"trials_{trial.status}" for trial in trials)
    summary: dict[str, float | str] = {name: float(count) for name, count in statuses.items()}
    for trial in best(trials, facts)[:1]:
        values = values_of(trial.run, facts.metrics) or ()
        summary |= {f"best_{name}": value for name, value in zip(facts.metrics, values, strict=True)}
        summary |= {"best_trial": float(trial.number)}
    about = {"words": list(facts.words), "kind": facts.kind, "trials": facts.trials, "source": facts.source}
    subject = Subject(job_type="sweep", group=folder.id, config={}, facts={"sweep": folder.id, **about})
    tracker = Tracker(tracking, subject, os.environ, say)
    tracker.begin(RunFolder(path=folder.path), None)
    tracker.close(Ending(status="done", exit_code=0, fingerprint=None, metrics=summary))


def _picker(start: _Start, planner: Planner, account: Account) -> tuple[Grid | Search, list[Plan]]:
    """Return who picks the trials, and the plans that show what these will need."""
    facts, runs = account.facts, runs_of(account.store, start.folder.id)
    if facts.kind == "grid":
        words = [trial.words for trial in facts.planned]
        is_planned = words == [trial.plan.overrides for trial in start.trials]
        trials = start.trials if is_planned else _planned(planner, words, facts.swept)
        return Grid(trials, runs, account, force=start.force), [trial.plan for trial in trials]
    like = example(facts.words, planner.composer.groups)
    _, space = dimensions(facts.words, planner.composer.groups)

    def plan(words: tuple[str, ...]) -> Plan:
        trial = list(like)
        for place, word in zip(facts.swept, words, strict=False):
            trial[place] = word
        return planner.plan(trial)

    study = Study(start.folder.path, space, _settings(plan(()).config.sweep), start.folder.id)
    return Search(study, plan, runs, account, force=start.force), [plan(())]


def _settings(sweep: Sweep) -> SearchSettings:
    return SearchSettings(
        sampler=sweep.sampler,
        sampler_options=sweep.sampler_options,
        pruner=sweep.pruner,
        pruner_options=sweep.pruner_options,
        directions=sweep.directions,
        seed=sweep.seed,
    )


def _saved(sweeps: SweepStore, folder: SweepFolder, facts: SweepFacts) -> SweepFacts:
    """Keep what is asked for. Of a sweep that began before, what was planned stays, in its order."""
    if folder.facts.exists():
        facts = replace(sweeps.load(folder), trials=facts.trials, retries=facts.retries)
    sweeps.save(folder, facts)
    return facts


def _end(undone: list[int], folder: SweepFolder, workshop: Workshop) -> int:
    if undone:
        which = ", ".join(map(str, sorted(undone)))
        raise RunFailed(f"{folder.id}: trials that are not done: {which}", hint=f"xrun sweep show {folder.id}")
    workshop.say(f"\nnext:\n  xrun sweep show {folder.id}\n  xrun replay <run-id>")
    return 0


def _described(trials: Sequence[Trial], like: Plan, store: RunStore, *, force: bool) -> str:
    """Return what would run, and what would not because it is done."""
    if not trials:
        sweep = like.config.sweep
        return f"{sweep.trials} trials, picked by {sweep.sampler}; one of them could run as {like.spec.run_stem}\n"
    lines = [f"{len(trials)} trials"]
    for trial in trials:
        found = None if force else same_spec(store, *trial.spec)
        why = f"{found.folder.id} is {found.status}" if found else f"runs as {trial.plan.spec.run_stem}"
        lines.append(f"{trial.number:>5}  {' '.join(trial.words)}  {why}")
    return "\n".join(lines) + "\n"
