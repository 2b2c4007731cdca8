"""What became of a sweep's trials, read from their runs: a sweep keeps no other account."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runner.record import Record
from runner.run_folder import RunFolder
from runner.store import Run, RunStatus, RunStore
from runner.sweeps import SweepFacts, SweepFolder

TrialStatus = RunStatus | Literal["waiting"]
Seen = Callable[[Sequence[Run]], Sequence[Run]]
Trials = Mapping[int, Sequence[Run]]
"""The runs of each trial of a sweep, the oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialState:
    """A trial as its runs show it now."""

    number: int
    words: tuple[str, ...]
    status: TrialStatus
    run: Run | None
    """Its newest run; one of another sweep or of none where that had the same spec and is done."""
    runs: int
    """How many there were in this sweep."""

    @property
    def record(self) -> Record | None:
        """The record of a trial that has ended."""
        return self.run.facts if self.run and isinstance(self.run.facts, Record) else None


def values_of(run: Run | None, metrics: Sequence[str]) -> tuple[float, ...] | None:
    """Return a run's final metrics, None where it is not done or one is missing or no number."""
    if run is None or run.status != "done" or not isinstance(run.facts, Record):
        return None
    found = [run.facts.metrics.get(name) for name in metrics]
    numbers = [value for value in found if isinstance(value, int | float) and math.isfinite(value)]
    return tuple(numbers) if len(numbers) == len(metrics) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The runs of a store as sweeps need them, found in one pass."""

    store: RunStore
    sweeps: Mapping[str, Trials]
    alike: Mapping[str, Sequence[str]]
    """Run ids by their middle, eight digits of the spec's digest."""


def overview(store: RunStore, sweep: str = "") -> Overview:
    """Read the runs of a store that are some sweep's, or one sweep's alone."""
    mark = f'"sweep":"{sweep}'.encode()
    sweeps: dict[str, dict[int, list[Run]]] = {}
    alike: dict[str, list[str]] = {}
    for name in store.ids():
        alike.setdefault(name.split("-")[-2], []).append(name)
        folder = RunFolder(path=store.root / name)
        if mark not in _started(folder):
            continue
        run = store.look(folder)
        if run.facts is not None and run.facts.sweep is not None and run.facts.trial is not None:
            sweeps.setdefault(run.facts.sweep, {}).setdefault(run.facts.trial, []).append(run)
    for trials in sweeps.values():
        for runs in trials.values():
            runs.sort(key=lambda run: (run.facts.started_at if run.facts else "", run.folder.id))
    return Overview(store=store, sweeps=sweeps, alike=alike)


def runs_of(store: RunStore, sweep: str) -> Trials:
    """Return the runs of each trial of a sweep, the oldest first."""
    return overview(store, sweep).sweeps.get(sweep, {})


def _started(folder: RunFolder) -> bytes:
    try:
        return folder.started.read_bytes()
    except OSError:
        return b""


def same_spec(store: RunStore, spec_digest: str, stem: str) -> Run | None:
    """Return a run of a spec that is done, else one that runs on this machine now, whoever started it.

    A replay does not count: its verdict may be any.
    """
    return _of_spec(store, [name for name in store.ids() if name.rpartition("-")[0] == stem], spec_digest)


def _of_spec(store: RunStore, names: Sequence[str], spec_digest: str) -> Run | None:
    running = None
    for name in names:
        run = store.look(RunFolder(path=store.root / name))
        if run.facts is None or run.facts.spec_digest != spec_digest or run.facts.replay_of is not None:
            continue
        if run.status == "done":
            return run
        running = run if run.status == "running" else running
    return running


def states(found: Overview, sweep: SweepFolder, facts: SweepFacts, seen: Seen = list) -> list[TrialState]:
    """Return every trial of a sweep that is planned or was started, by number. `seen` asks a cluster of its runs."""
    runs = found.sweeps.get(sweep.id, {})
    newest = dict(zip(runs, seen([own[-1] for own in runs.values()]), strict=True))
    planned = {trial.number: trial for trial in facts.planned}
    trials = []
    for number in sorted({*planned, *runs}):
        run = newest.get(number)
        words = planned[number].words if number in planned else run.facts.overrides if run and run.facts else ()
        if (run is None or run.status != "done") and number in planned:
            digest = planned[number].spec_digest
            alike = found.alike.get(digest.removeprefix("sha256:")[:8], ())
            elsewhere = _of_spec(found.store, alike, digest)
            run = elsewhere if elsewhere and elsewhere.status == "done" else run
        trials.append(
            TrialState(
                number=number,
                words=own_words(facts, words),
                status=run.status if run else "waiting",
                run=run,
                runs=len(runs.get(number, ())),
            )
        )
    return trials


def own_words(facts: SweepFacts, words: Sequence[str]) -> tuple[str, ...]:
    """Return those of a trial's words that other trials have otherwise."""
    return tuple(words[place] for place in facts.swept if place < len(words))


def best(trials: Sequence[TrialState], facts: SweepFacts) -> list[TrialState]:
    """Return the best trial; of several metrics, those that no other trial beats in all."""
    scored = [(trial, _costs(values, facts)) for trial in trials if (values := values_of(trial.run, facts.metrics))]
    front = [trial for trial, costs in scored if not any(_beats(other, costs) for _, other in scored)]
    # Two trials may be equally good; the first of them is as good an answer as any.
    return front[:1] if len(facts.metrics) == 1 else front


def _costs(values: Sequence[float], facts: SweepFacts) -> tuple[float, ...]:
    return tuple(-v if way == "maximize" else v for v, way in zip(values, facts.directions, strict=True))


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
