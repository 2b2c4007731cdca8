from dataclasses import replace
from pathlib import Path

import pytest
from sample_runs import make_record, make_started

from runner.run_folder import RunFolder
from runner.space import Direction
from runner.store import Run
from runner.sweeps import SweepFacts
from runner.trials import TrialState, best


def facts(*directions: Direction) -> SweepFacts:
    return SweepFacts(
        xrun="0.1.0",
        kind="grid",
        words=(),
        swept=(),
        metrics=("loss", "speed")[: len(directions)],
        directions=directions,
        trials=4,
        retries=0,
        source="",
        started_at="",
        planned=(),
    )


def trial(number: int, loss: "float | str", speed: float = 0.0) -> TrialState:
    record = replace(make_record("tiny-00000000-1", make_started()), metrics={"loss": loss, "speed": speed})
    run = Run(folder=RunFolder(path=Path("tiny-00000000-1")), status="done", facts=record)
    return TrialState(number=number, words=(), status="done", run=run, runs=1)


def best_numbers(trials: list[TrialState], *directions: Direction) -> list[int]:
    return [trial.number for trial in best(trials, facts(*directions))]


@pytest.mark.parametrize(("direction", "number"), [("minimize", 2), ("maximize", 1)])
def test_the_best_is_the_first_of_equally_good_ones(direction: Direction, number: int) -> None:
    trials = [trial(0, 1.5), trial(1, 2.0), trial(2, 1.0), trial(3, 2.0), trial(4, 1.0)]
    assert best_numbers(trials, direction) == [number]


def test_of_several_metrics_the_best_are_those_that_no_other_trial_beats() -> None:
    trials = [trial(0, 1.0, 1.0), trial(1, 2.0, 3.0), trial(2, 2.0, 2.0), trial(3, 0.5, 0.0)]
    assert best_numbers(trials, "minimize", "maximize") == [0, 1, 3]


def test_a_trial_that_is_not_done_or_has_no_number_is_never_the_best() -> None:
    stopped = trial(0, 0.1)
    assert stopped.run is not None
    stopped = replace(stopped, run=replace(stopped.run, status="interrupted"))
    assert best_numbers([stopped, trial(1, "nan"), trial(2, float("nan")), trial(3, 9.0)], "minimize") == [3]
    assert best_numbers([stopped], "minimize") == []
