"""`xrun -m …` and `xrun sweep …`: a sweep from its words to the last of its trials."""

import importlib.metadata
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from runner.arguments import RunArguments, SweepArguments
from runner.conf.grid import example, grid, swept
from runner.conf.space import dimensions
from runner.config import Sweep, Tracking
from runner.errors import RunFailed
from runner.pickers import Account, Grid, Search, Trial
from runner.plan import Plan, Planner, use_of
from runner.prepare import Workshop
from runner.project import Project
from runner.record import timestamp
from runner.run_folder import RunFolder
from runner.search import Study
from runner.source import snapshot, stored
from runner.space import SearchSettings
from runner.store import Run, RunStore
from runner.sweep_table import SweepTable
from runner.sweep_trials import Stage, run_trials
from runner.sweeps import Planned, SweepFacts, SweepFolder, SweepStore, sweep_id
from runner.tracked import Ending, Subject
from runner.tracking import Tracker
from runner.trials import TrialState, best, runs_of, same_spec, show_sweep, states, values_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """A start of a sweep, the first or a later one."""

    folder: SweepFolder
    facts: SweepFacts
    planner: Planner
    argv: tuple[str, ...]
    force: bool
    offline: bool


def run_sweep(workshop: Workshop, words: RunArguments, argv: tuple[str, ...]) -> int:
    """Run every trial of a command line's words, or go on with those that are left. Raises XrunError."""
    project = workshop.project
    planner = Planner(workshop, project, use_of(words), partial(snapshot, project.experiments, project.runs))
    groups = planner.composer.groups
    asked = planner.plan(example(words.overrides, groups)).config.sweep
    is_grid = asked.kind == "grid"
    trials = _planned(planner, grid(words.overrides, groups), swept(words.overrides, groups)) if is_grid else ()
    if words.dry_run:
        sys.stdout.write(_described(trials, RunStore(project.runs), force=words.force))
        return 0
    locks = sorted({project.root / project.lockfile(t.plan.lock.experiment, t.plan.lock.hardware_name) for t in trials})
    sweeps = SweepStore(project.sweeps)
    folder = sweeps.make(sweep_id(words.overrides, project.conf, locks, planner.source().digest), project.conf, locks)
    facts = SweepFacts(
        xrun=importlib.metadata.version("xrun"),
        kind=asked.kind,
        words=words.overrides,
        swept=swept(words.overrides, groups),
        metrics=asked.metrics,
        directions=asked.directions,
        trials=len(trials) if is_grid else asked.trials,
        retries=asked.retries,
        source=planner.source().digest,
        started_at=timestamp(time.time()),
        planned=tuple(
            Planned(number=trial.number, words=trial.plan.overrides, spec_digest=trial.plan.spec.digest)
            for trial in trials
        ),
    )
    start = _Start(folder=folder, facts=facts, planner=planner, argv=argv, force=words.force, offline=words.offline)
    return _run(workshop, sweeps, start)


def resume_sweep(workshop: Workshop, words: SweepArguments, argv: tuple[str, ...]) -> int:
    """Go on with a sweep from what it began with: its own copies of conf/ and locks, its source. Raises XrunError."""
    sweeps = SweepStore(workshop.project.sweeps)
    folder = sweeps.find(words.sweep or "last")
    facts = sweeps.load(folder)
    taken = partial(stored, workshop.project.runs, facts.source)
    planner = Planner(workshop, Project(root=folder.path), "frozen", taken)
    start = _Start(folder=folder, facts=facts, planner=planner, argv=argv, force=words.force, offline=words.offline)
    return _run(workshop, sweeps, start)


def _planned(planner: Planner, words: Sequence[tuple[str, ...]], places: Sequence[int]) -> tuple[Trial, ...]:
    return tuple(
        Trial(number=number, words=tuple(own[place] for place in places), plan=planner.plan(own))
        for number, own in enumerate(words)
    )


def _run(workshop: Workshop, sweeps: SweepStore, start: _Start) -> int:
    """Run what is left of a sweep, and print what came of it."""
    folder = start.folder
    held = sweeps.hold(folder)
    try:
        facts = _saved(sweeps, folder, start.facts)
        store = RunStore(workshop.project.runs)
        table = SweepTable(sys.stderr, facts.trials, facts.metrics, facts.directions)
        account = Account(facts=facts, store=store, table=table)
        picker, plans = _picker(start, account, runs_of(store, folder.id))
        table.say(f"{folder.id}: {facts.trials} trials")
        stage = Stage(
            workshop=workshop,
            store=store,
            sweep=folder,
            table=table,
            picker=picker,
            argv=start.argv,
            offline=start.offline,
        )
        try:
            run_trials(stage, plans)
        finally:
            _summarise(folder, facts, states(store, folder, facts), plans[0].config.tracking, workshop.say)
    finally:
        os.close(held)
    sys.stdout.write(show_sweep(store, sweeps, folder.id, as_json=False))
    return _end(picker.failed, folder, workshop)


def _summarise(
    folder: SweepFolder, facts: SweepFacts, trials: Sequence[TrialState], tracking: Tracking, say: Callable[[str], None]
) -> None:
    """Tell W&B of the sweep as a whole, in a run of its own beside those of the trials."""
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


def _picker(start: _Start, account: Account, runs: Mapping[int, Sequence[Run]]) -> tuple[Grid | Search, list[Plan]]:
    """Return who picks the trials, and the plans that show what these will need."""
    planner, facts = start.planner, account.facts
    if facts.kind == "grid":
        trials = _planned(planner, [trial.words for trial in facts.planned], facts.swept)
        return Grid(trials, runs, account, force=start.force), [trial.plan for trial in trials]
    like = example(facts.words, planner.composer.groups)
    config = planner.plan(like).config
    _, space = dimensions(facts.words, planner.composer.groups)
    study = Study(start.folder.path, space, _settings(config.sweep), start.folder.id)

    def plan(words: tuple[str, ...]) -> Plan:
        trial = list(like)
        for place, word in zip(facts.swept, words, strict=False):
            trial[place] = word
        return planner.plan(trial)

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


def _end(failed: list[int], folder: SweepFolder, workshop: Workshop) -> int:
    if failed:
        which = ", ".join(map(str, sorted(failed)))
        raise RunFailed(f"{folder.id}: trials that failed: {which}", hint=f"xrun sweep show {folder.id}")
    workshop.say(f"\nnext:\n  xrun sweep show {folder.id}\n  xrun replay <run-id>")
    return 0


def _described(trials: Sequence[Trial], store: RunStore, *, force: bool) -> str:
    """Return what would run, and what would not because it is done."""
    lines = [f"{len(trials)} trials"]
    for trial in trials:
        spec = trial.plan.spec
        found = None if force else same_spec(store, spec.digest, spec.run_stem)
        why = f"{found.folder.id} is {found.status}" if found else f"runs as {spec.run_stem}"
        lines.append(f"{trial.number:>5}  {' '.join(trial.words)}  {why}")
    return "\n".join(lines) + "\n"
