"""Sweeps that are killed at random moments and started again: each trial is done once, and all is as it was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.sweep_project import ROOT, SHORT_WORDS, SweepProject

GRID = ("model.seconds=0.4", "optim.x=-4,-3,-2,-1,0,1", "optim.y=0,0.5,0.9,1.5")
STUDY = (
    *("sweep=optuna", "sweep.trials=24", "sweep.seed=3", "+sweep.sampler_options.n_startup_trials=5"),
    *("model.seconds=0.4", "optim.x=interval(-5,1)", "optim.y=interval(0,1.5)"),
)
# Of which a start takes one before its first trial.
LIVES_AT_MOST_S = 4.0
Account = dict[str, Any]


def killed_sweeps(folder: Path, kills: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill a grid on two slots and a search on one, so often each. Returns the counts, and `failures` in words."""
    cases = {"grid": (GRID, 2), "search": (STUDY, 1)}
    found = {
        name: _case(folder / name, words, slots, kills, lambda said, name=name: say(f"sweeps: {name}: {said}"))
        for name, (words, slots) in cases.items()
    }
    failures = [f"{name}: {failure}" for name, one in found.items() for failure in one.pop("failures")]
    return {**found, "failures": failures}


def _case(folder: Path, words: tuple[str, ...], slots: int, kills: int, say: Callable[[str], None]) -> dict[str, Any]:
    whole = _project(folder / "whole", slots)
    whole.run("-m", *SHORT_WORDS, *words)
    undisturbed = _account(whole)
    draw = random.Random(" ".join(words))
    killed = sweeps = 0
    with_trials_done: list[int] = []
    failures: list[str] = []
    while killed < kills:
        project = _project(folder / f"killed-{sweeps}", slots)
        sweeps += 1
        while killed < kills and _killed(project, words, draw.uniform(0.0, LIVES_AT_MOST_S)):
            killed += 1
            with_trials_done.append(sum(run.status == "done" for run in project.store.runs()))
            say(f"{killed} of {kills} kills, {with_trials_done[-1]} trials done")
        project.run("-m", *SHORT_WORDS, *words)
        failures += _differences(_account(project), undisturbed)
        shutil.rmtree(project.folder)
    trials = len(undisturbed["trials"])
    return {
        "kills": killed,
        "trials_done_at_each_kill": with_trials_done,
        "sweeps": sweeps,
        "trials": trials,
        "different": len(failures),
        "failures": failures,
    }


def _project(folder: Path, slots: int) -> SweepProject:
    project = SweepProject(folder, "embedded", slots)
    project.lay_out()
    return project


def _killed(project: SweepProject, words: tuple[str, ...], after_s: float) -> bool:
    """Start a sweep and kill it after so long. False where it was done before."""
    process = project.start("-m", *SHORT_WORDS, *words)
    try:
        code = process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    assert code == 0, project.said.read_text()
    return False


def _account(project: SweepProject) -> Account:
    """Return what a sweep that is over came to, as xrun tells of it, and how often each of its trials was done."""
    argv = [sys.executable, "-m", "runner", "sweep", "show", "last", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(argv, cwd=project.folder, env=environment, capture_output=True, check=True)
    shown = json.loads(answer.stdout)
    done = Counter(run.facts.trial for run in project.store.runs() if run.facts and run.status == "done")
    return {
        "id": shown["id"],
        "best": [trial["number"] for trial in shown["trials"] if trial["best"]],
        "trials": [(one["number"], one["status"], one["words"], one["metrics"]) for one in shown["trials"]],
        "done": dict(sorted(done.items())),
    }


def _differences(found: Account, undisturbed: Account) -> list[str]:
    return [
        f"{key} is {found[key]}, undisturbed {undisturbed[key]}"
        for key in undisturbed
        if found[key] != undisturbed[key]
    ]
