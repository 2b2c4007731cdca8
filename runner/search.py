"""A search by Optuna, asked for trials and told what came of them: all of it in one journal, in the sweep's folder."""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from runner.errors import ConfigError
from runner.journal import Journal
from runner.parse import plain
from runner.samplers import pruner, refuse_what_cannot_be_searched, sampler
from runner.space import Dimension, SearchSettings, word

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial, Trial

_RETRY_OF = "retry_of"
_BEGUN = "xrun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A trial that a search wants to be run."""

    number: int
    words: tuple[str, ...]
    """What it lays over the words that every trial has."""


class Study:
    """A search in a folder, for one process at a time. Opened again, it is where it was, whatever ended the last one.

    What it answers depends on its settings and its journal alone: each trial is picked by a sampler that is new and
    seeded by the seed and the trial's number.
    """

    def __init__(self, folder: Path, space: Sequence[Dimension], asked: SearchSettings, name: str) -> None:
        self._optuna = _optuna()
        refuse_what_cannot_be_searched(space, asked)
        # Made once before anything is written, so that a wrong option leaves no study behind.
        with _quiet():
            sampler(self._optuna, asked, 0)
            pruner(self._optuna, asked)
        self._space = tuple(space)
        self._asked = asked
        self._distributions = {dimension.name: _distribution(self._optuna, dimension) for dimension in space}
        self._journal = Journal(folder / "study.log")
        with _quiet(), self._journal.in_one_piece():
            self._study = self._opened(name)

    def _opened(self, name: str) -> "OptunaStudy":
        optuna, asked = self._optuna, self._asked
        storage = optuna.storages.JournalStorage(self._journal)
        exists = name in optuna.get_all_study_names(storage)
        study: OptunaStudy = (
            optuna.load_study(storage=storage, study_name=name)
            if exists
            else optuna.create_study(storage=storage, study_name=name, directions=asked.directions)
        )
        now = {"space": plain(self._space), "directions": list(asked.directions)}
        if not exists:
            study.set_user_attr(_BEGUN, now)
        for key, then in study.user_attrs[_BEGUN].items():
            if json.loads(json.dumps(now[key])) != then:
                raise ConfigError(f"study {name} was begun with another {key}\n  then: {then}\n  now:  {now[key]}")
        return study

    def ask(self) -> Asked:
        """Return the next trial to run: one that is to be run again first."""
        trials = self._trials()
        waiting = self._optuna.trial.TrialState.WAITING
        number = next((trial.number for trial in trials if trial.state is waiting), len(trials))
        with _quiet(), self._journal.in_one_piece():
            self._study.sampler = sampler(self._optuna, self._asked, number)
            trial = self._study.ask(self._distributions)
        assert trial.number == number
        return self._asked_for(self._trials()[number])

    def open_trials(self) -> list[Asked]:
        """Return the trials that were asked for and of which nothing was told yet."""
        running = self._optuna.trial.TrialState.RUNNING
        return [self._asked_for(trial) for trial in self._trials() if trial.state is running]

    def report(self, number: int, step: int, value: float) -> bool:
        """Say how a trial does after a step; True where it is to be given up. The first report of a step counts."""
        trial = self._trials()[number]
        if self._asked.pruner == "none" or trial.state.is_finished():
            return False
        # A number that is none is a loss like any other to a pruner only if it is NaN; -inf would be the best one.
        value = value if math.isfinite(value) else math.nan
        with _quiet(), self._journal.in_one_piece(durable=False):
            self._study.pruner = pruner(self._optuna, self._asked)
            adopted = self._adopted(trial.number)
            if step not in trial.intermediate_values:
                adopted.report(value, step)
            return adopted.should_prune()

    def tell(self, number: int, values: Sequence[float] | None, state: Literal["done", "failed", "pruned"]) -> None:
        """Say what came of a trial: a value for each objective. The first word on a trial counts.

        Done without a finite value for each objective is failed.
        """
        if self._trials()[number].state.is_finished():
            return
        states = self._optuna.trial.TrialState
        told = {"done": states.COMPLETE, "failed": states.FAIL, "pruned": states.PRUNED}[state]
        is_whole = values is not None and len(values) == len(self._asked.directions)
        if state == "done" and not (is_whole and all(map(math.isfinite, values or ()))):
            told = states.FAIL
        with _quiet(), self._journal.in_one_piece():
            # Samplers pick and no more: bruteforce, told of its last point, would stop a loop that is not there.
            self._study.sampler = self._optuna.samplers.RandomSampler()
            self._study.tell(number, values if told is states.COMPLETE else None, told)

    def retry(self, number: int) -> None:
        """Have a failed trial's values asked for once more, as a trial of its own."""
        trials = self._trials()
        if number in _retried(trials):
            return
        with _quiet(), self._journal.in_one_piece():
            self._study.enqueue_trial(trials[number].params, {_RETRY_OF: number})

    def tries(self, number: int) -> int:
        """Return how often a trial's values were run by now: by itself, and before it by those that failed."""
        trials, tries = self._trials(), 1
        while (earlier := trials[number].user_attrs.get(_RETRY_OF)) is not None:
            number, tries = earlier, tries + 1
        return tries

    def counted(self) -> int:
        """Return how many trials there are; one that is run again counts once."""
        trials = self._trials()
        waiting = self._optuna.trial.TrialState.WAITING
        retried = _retried(trials)
        return sum(trial.state is not waiting and trial.number not in retried for trial in trials)

    def is_exhausted(self) -> bool:
        """Say whether every point of a space that can be counted has been asked for, and none waits for a retry."""
        sizes = [dimension.size for dimension in self._space]
        waiting = self._optuna.trial.TrialState.WAITING
        if None in sizes or any(trial.state is waiting for trial in self._trials()):
            return False
        points = {self._asked_for(trial).words for trial in self._trials() if trial.params}
        return len(points) >= math.prod(size for size in sizes if size is not None)

    def _trials(self) -> list["FrozenTrial"]:
        with _quiet():
            return self._study.get_trials(deepcopy=False)

    def _adopted(self, number: int) -> "Trial":
        """Return a trial that goes on, whichever process asked for it. Optuna has no public way to it."""
        trial: Trial = self._optuna.trial.Trial(self._study, self._trials()[number]._trial_id)  # noqa: SLF001
        return trial

    def _asked_for(self, trial: "FrozenTrial") -> Asked:
        words = tuple(word(dimension, trial.params[dimension.name]) for dimension in self._space)
        return Asked(number=trial.number, words=words)


def _retried(trials: Sequence["FrozenTrial"]) -> set[int]:
    return {trial.user_attrs[_RETRY_OF] for trial in trials if _RETRY_OF in trial.user_attrs}


def _optuna() -> ModuleType:
    try:
        import optuna  # noqa: PLC0415, an extra, and half a second
    except ModuleNotFoundError as error:
        raise ConfigError("sweep=optuna needs the package optuna", hint="pip install 'optuna>=4.9,<6'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Optuna calls experimental to itself: which of it is used is ours to choose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _distribution(optuna: ModuleType, dimension: Dimension) -> Any:
    kinds, log = optuna.distributions, dimension.log
    if dimension.kind == "choice":
        return kinds.CategoricalDistribution(dimension.choices)
    if dimension.kind == "int":
        return kinds.IntDistribution(int(dimension.low), int(dimension.high), log=log, step=int(dimension.step or 1))
    if dimension.step is None or dimension.size is None:
        return kinds.FloatDistribution(dimension.low, dimension.high, log=log)
    # Optuna counts in decimals as they are written, and cuts off an end that is a rounding short of the last step.
    step = abs(dimension.step)
    high = float(Decimal(repr(dimension.low)) + (dimension.size - 1) * Decimal(repr(step)))
    return kinds.FloatDistribution(dimension.low, high, step=step)
