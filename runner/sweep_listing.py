"""Sweeps for people and for scripts: `sweep ls`, `sweep show`."""

import json
from collections.abc import Sequence

from runner.errors import StoreError
from runner.parse import plain
from runner.store import RunStore
from runner.sweeps import SweepFacts, SweepFolder, SweepStore
from runner.terminal import clipped, printable
from runner.trials import Overview, Seen, TrialState, best, overview, states

_HEAD = ("SWEEP", "STATUS", "STARTED (UTC)", "TRIALS", "WORDS")
_WORDS_CAP = 100
_SWEEPS_SHOWN = 50


def show_sweep(store: RunStore, sweeps: SweepStore, text: str, *, as_json: bool, seen: Seen = list) -> str:
    """Return one sweep and each of its trials. Raises StoreError."""
    sweep = sweeps.find(text)
    facts = sweeps.load(sweep)
    trials = states(overview(store, sweep.id), sweep, facts, seen)
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


def list_sweeps(store: RunStore, sweeps: SweepStore, *, as_json: bool, seen: Seen = list) -> str:
    """Return the sweeps, the newest first: a table of the last fifty, or a JSON list of all."""
    found, folders = overview(store), sweeps.folders()
    if as_json:
        return json.dumps([_listed(found, sweeps, folder, seen) for folder in folders], indent=2) + "\n"
    rows = [_HEAD, *(_sweep_row(found, sweeps, folder, seen) for folder in folders[:_SWEEPS_SHOWN])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(folders) > _SWEEPS_SHOWN:
        lines.append(f"and {len(folders) - _SWEEPS_SHOWN} older: xrun sweep ls --json lists all")
    return "\n".join(lines if len(rows) > 1 else ["no sweeps yet"]) + "\n"


def _listed(found: Overview, sweeps: SweepStore, sweep: SweepFolder, seen: Seen) -> dict[str, object]:
    try:
        facts = sweeps.load(sweep)
    except StoreError as error:  # one bad file must not hide the others
        return {"id": sweep.id, "running": sweeps.is_running(sweep), "problem": error.message}
    trials = states(found, sweep, facts, seen)
    leading = {trial.number for trial in best(trials, facts)}
    return _mapping(sweep, facts, trials, leading, running=sweeps.is_running(sweep))


def _sweep_row(found: Overview, sweeps: SweepStore, sweep: SweepFolder, seen: Seen) -> tuple[str, ...]:
    try:
        facts = sweeps.load(sweep)
    except StoreError as error:
        return sweep.id, "damaged", "", "", clipped(printable(error.message), _WORDS_CAP)
    status = "running" if sweeps.is_running(sweep) else "not running"
    said = counted(states(found, sweep, facts, seen), facts)
    words = clipped(printable(" ".join(facts.words)), _WORDS_CAP)
    return sweep.id, status, facts.started_at[:16].replace("T", " "), said, words
