"""What became of a sweep's trials, read from their runs: a sweep keeps no other account."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from runner.parse import plain
from runner.record import Record
from runner.run_folder import RunFolder
from runner.store import Run, RunStatus, RunStore
from runner.sweeps import SweepFacts, SweepFolder, SweepStore
from runner.terminal import clipped, printable

TrialStatus = RunStatus | Literal["waiting"]
_WORDS_CAP = 100
_SWEEPS_SHOWN = 50
_LOOK_S = 0.2


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


def runs_of(store: RunStore, sweep: str) -> dict[int, list[Run]]:
    """Return the runs of each trial of a sweep, the oldest first."""
    mark = f'"sweep":"{sweep}"'.encode()
    trials: dict[int, list[Run]] = {}
    for name in store.ids():
        folder = RunFolder(path=store.root / name)
        if mark not in _started(folder):
            continue
        run = store.look(folder)
        if run.facts is not None and run.facts.sweep == sweep and run.facts.trial is not None:
            trials.setdefault(run.facts.trial, []).append(run)
    for runs in trials.values():
        runs.sort(key=lambda run: (run.facts.started_at if run.facts else "", run.folder.id))
    return trials


def _started(folder: RunFolder) -> bytes:
    try:
        return folder.started.read_bytes()
    except OSError:
        return b""


def same_spec(store: RunStore, spec_digest: str, stem: str) -> Run | None:
    """Return a run of a spec that is done, else one that runs now, whoever started it.

    A replay does not count: its verdict may be any.
    """
    running = None
    for name in store.ids():
        if name.rpartition("-")[0] != stem:
            continue
        run = store.look(RunFolder(path=store.root / name))
        if run.facts is None or run.facts.spec_digest != spec_digest or run.facts.replay_of is not None:
            continue
        if run.status == "done":
            return run
        running = run if run.status == "running" else running
    return running


def states(store: RunStore, sweep: SweepFolder, facts: SweepFacts) -> list[TrialState]:
    """Return every trial of a sweep that is planned or was started, by number."""
    runs = runs_of(store, sweep.id)
    planned = {trial.number: trial for trial in facts.planned}
    stems = _stems(store)
    found = []
    for number in sorted({*planned, *runs}):
        own = runs.get(number, [])
        run = own[-1] if own else None
        words = planned[number].words if number in planned else run.facts.overrides if run and run.facts else ()
        if (run is None or run.status != "done") and number in planned:
            digest = planned[number].spec_digest
            elsewhere = same_spec(store, digest, stems.get(digest.removeprefix("sha256:")[:8], ""))
            run = elsewhere if elsewhere and elsewhere.status == "done" else run
        status: TrialStatus = run.status if run else "waiting"
        found.append(TrialState(number=number, words=own_words(facts, words), status=status, run=run, runs=len(own)))
    return found


def _stems(store: RunStore) -> dict[str, str]:
    """Return the first two parts of every run's id by the second, eight digits of the spec's digest."""
    return {name.split("-")[-2]: name.rpartition("-")[0] for name in store.ids()}


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


def show_sweep(store: RunStore, sweeps: SweepStore, text: str, *, as_json: bool) -> str:
    """Return one sweep and each of its trials. Raises StoreError."""
    sweep = sweeps.find(text)
    facts = sweeps.load(sweep)
    trials = states(store, sweep, facts)
    leading = {trial.number for trial in best(trials, facts)}
    running = sweeps.is_running(sweep)
    if as_json:
        return json.dumps(_mapping(sweep, facts, trials, leading, running=running), indent=2) + "\n"
    rows = [("TRIAL", "STATUS", *map(str.upper, facts.metrics), "RUN", "WORDS")]
    rows += [_row(trial, facts, is_best=trial.number in leading) for trial in trials]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{sweep.id}  {'running' if running else 'not running'}  {counted(trials, facts)}"]
    lines += [f"xrun -m {' '.join(map(printable, facts.words))}", ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def counted(trials: Sequence[TrialState], facts: SweepFacts) -> str:
    """Say how many trials are in which state: `64 trials: 60 done, 3 failed, 1 waiting`."""
    statuses = [trial.status for trial in trials]
    parts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(sorted(statuses))]
    return f"{facts.trials} trials: {', '.join(parts) or 'none yet'}"


def _row(trial: TrialState, facts: SweepFacts, *, is_best: bool) -> tuple[str, ...]:
    metrics = trial.record.metrics if trial.record else {}
    values = [f"{metrics[name]:.6g}" if isinstance(metrics.get(name), float) else "" for name in facts.metrics]
    words = clipped(printable(" ".join(trial.words)), _WORDS_CAP)
    run = trial.run.folder.id if trial.run else ""
    return (f"{trial.number}{' best' if is_best else ''}", trial.status, *values, run, words)


def _mapping(
    sweep: SweepFolder, facts: SweepFacts, trials: Sequence[TrialState], leading: set[int], *, running: bool
) -> dict[str, object]:
    def mapped(trial: TrialState) -> dict[str, object]:
        return {
            "number": trial.number,
            "words": list(trial.words),
            "status": trial.status,
            "run": trial.run.folder.id if trial.run else None,
            "runs": trial.runs,
            "metrics": trial.record.metrics if trial.record else {},
            "best": trial.number in leading,
        }

    asked = {key: value for key, value in plain(facts).items() if key != "planned"}
    return {"id": sweep.id, "running": running, "asked": asked, "trials": [mapped(trial) for trial in trials]}


def list_sweeps(store: RunStore, sweeps: SweepStore) -> str:
    """Return the sweeps as a table, the newest first."""
    rows = [("SWEEP", "STATUS", "STARTED (UTC)", "TRIALS", "WORDS"), *_rows(store, sweeps)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines if len(rows) > 1 else ["no sweeps yet"]) + "\n"


def _rows(store: RunStore, sweeps: SweepStore) -> Iterator[tuple[str, ...]]:
    for sweep in sweeps.folders()[:_SWEEPS_SHOWN]:
        facts = sweeps.load(sweep)
        status = "running" if sweeps.is_running(sweep) else "not running"
        said = counted(states(store, sweep, facts), facts)
        words = clipped(printable(" ".join(facts.words)), _WORDS_CAP)
        yield sweep.id, status, facts.started_at[:16].replace("T", " "), said, words


def stop_sweep(sweeps: SweepStore, text: str, say: Callable[[str], None]) -> None:
    """Ask whoever runs a sweep to end it, each trial with a checkpoint, and wait until that is done."""
    sweep = sweeps.find(text)
    pid = sweeps.owner(sweep)
    if pid is None:
        say(f"{sweep.id} does not run")
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    say(f"{sweep.id}: asked process {pid} to end it")
    while sweeps.owner(sweep) == pid:
        time.sleep(_LOOK_S)
    say(f"stopped; to go on: xrun sweep resume {sweep.id}")
