import contextlib
import math
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from search_settings import SPACE, settings

from runner.errors import ConfigError, StoreError
from runner.journal import Journal
from runner.search import Asked, Study
from runner.space import Dimension, Pruner, Sampler, SearchSettings


def study(folder: Path, asked: SearchSettings | None = None, space: Sequence[Dimension] = SPACE) -> Study:
    folder.mkdir(exist_ok=True)
    return Study(folder, space, asked or settings(), "s")


def loss(asked: Asked) -> float:
    """A loss with a best place, by the words alone."""
    given = dict(word.split("=") for word in asked.words)
    return (
        (math.log10(float(given.get("optim.lr", 1))) + 2) ** 2
        + (int(given["+model.layers"]) - 5) ** 2
        + float(given["model.dropout"])
        + (given["precision"] == "bf16")
    )


def run(opened: Study, count: int) -> list[Asked]:
    trials = []
    for _ in range(count):
        trials.append(opened.ask())
        opened.tell(trials[-1].number, [loss(trials[-1])], "done")
    return trials


def told(opened: Study) -> list[tuple[int, tuple[float, ...]]]:
    """Return the trials of which values were told."""
    return [(trial.number, tuple(trial.values)) for trial in opened._trials() if trial.state.name == "COMPLETE"]


def test_a_trial_is_asked_for_in_words_of_the_command_line(tmp_path: Path) -> None:
    opened = study(tmp_path)
    trials = [opened.ask() for _ in range(20)]
    assert [trial.number for trial in trials] == list(range(20))
    keys = {tuple(word.partition("=")[0] for word in trial.words) for trial in trials}
    assert keys == {("optim.lr", "+model.layers", "model.dropout", "precision")}
    assert len({trial.words for trial in trials}) == 20
    dropouts = {float(trial.words[2].partition("=")[2]) for trial in trials}
    assert dropouts <= {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}


SAMPLERS: list[tuple[Sampler, dict[str, Any], int]] = [
    ("tpe", {}, 25),
    ("gp", {"n_startup_trials": 3}, 6),
    ("cmaes", {}, 30),
    ("qmc", {"scramble": True}, 12),
    ("random", {}, 8),
    ("nsga2", {"population_size": 4}, 25),
    ("nsga3", {"population_size": 4}, 25),
    ("bruteforce", {}, 12),
]
NEEDS = {"gp": ("scipy", "torch"), "cmaes": ("cmaes",), "qmc": ("scipy",)}


@pytest.mark.parametrize(("sampler", "options", "count"), SAMPLERS, ids=[name for name, *_ in SAMPLERS])
def test_a_search_stopped_after_every_word_picks_what_one_that_runs_on_picks(
    sampler: Sampler, options: dict[str, Any], count: int, tmp_path: Path
) -> None:
    for package in NEEDS.get(sampler, ()):
        pytest.importorskip(package)
    space, asked = SPACE[1:] if sampler == "bruteforce" else SPACE, settings(sampler, options=options)
    straight = run(study(tmp_path / "straight", asked, space), count)
    stopped = []
    for _ in range(count):
        trial = study(tmp_path / "stopped", asked, space).ask()
        assert study(tmp_path / "stopped", asked, space).open_trials() == [trial]
        study(tmp_path / "stopped", asked, space).tell(trial.number, [loss(trial)], "done")
        stopped.append(trial)
    assert stopped == straight
    assert len({trial.words for trial in straight}) > count / 2


def test_another_seed_is_another_search(tmp_path: Path) -> None:
    one, other = (run(study(tmp_path / str(seed), replace(settings(), seed=seed)), 3) for seed in (1, 2))
    assert not {trial.words for trial in one} & {trial.words for trial in other}


def search_on(folder: Path, told: Connection) -> None:
    opened = study(folder, settings("tpe", pruner="median"))
    while True:
        for trial in opened.open_trials() or [opened.ask()]:
            for step in range(3):
                opened.report(trial.number, step, loss(trial))
            opened.tell(trial.number, [loss(trial)], "done")
            told.send(trial)


def received(told: Connection) -> Iterator[Asked]:
    with contextlib.suppress(EOFError):
        while True:
            yield told.recv()


def test_a_search_that_is_killed_again_and_again_loses_nothing_and_picks_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["optuna", "runner.search"])
    folder, told, kills = tmp_path / "killed", list[Asked](), 0
    log = folder / "study.log"
    study(folder, settings("tpe", pruner="median"))
    while len(told) < 15:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=search_on, args=(folder, there))
        process.start()
        there.close()
        # Each time in another place: after so many bytes more.
        enough = log.stat().st_size + 997 * (kills % 7) + 1
        while log.stat().st_size < enough:
            assert process.is_alive()
            time.sleep(0.0003)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        told += received(here)
        here.close()
        kills += 1
        assert study(folder, settings("tpe", pruner="median")).counted() >= len(told)
    assert kills > 3
    straight = run(study(tmp_path / "straight", settings("tpe")), told[-1].number + 1)
    assert told == [straight[trial.number] for trial in told]


def pieces(opened: Study) -> None:
    """One of each thing that is written."""
    trial = opened.ask()
    opened.report(trial.number, 1, 3.0)
    opened.tell(trial.number, None, "failed")
    opened.retry(trial.number)
    again = opened.ask()
    opened.tell(again.number, [1.0], "done")


def test_a_journal_cut_at_any_byte_is_the_journal_after_a_whole_number_of_words(tmp_path: Path) -> None:
    asked = settings("tpe", pruner="median")
    opened = study(tmp_path, asked)
    log = tmp_path / "study.log"
    append, ends = opened._journal._append, [log.stat().st_size]

    def noted(texts: list[str], *, durable: bool) -> None:
        append(texts, durable=durable)
        ends.append(log.stat().st_size)

    opened._journal._append = noted  # type: ignore[method-assign]
    pieces(opened)
    assert len(ends) == 7
    content = log.read_bytes()
    for length in range(ends[0], len(content) + 1):
        log.write_bytes(content[:length])
        Journal(log)
        assert log.read_bytes() == content[: max(end for end in ends if end <= length)]
    states = []
    for end in ends:
        log.write_bytes(content[:end])
        found = study(tmp_path, asked)
        states.append((found.counted(), len(found.open_trials()), len(told(found))))
    assert states == [(0, 0, 0), (1, 1, 0), (1, 1, 0), (1, 0, 0), (0, 0, 0), (1, 1, 0), (1, 0, 1)]


def test_optuna_reads_the_journal_by_itself(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    opened = study(tmp_path, settings(pruner="median"))
    pieces(opened)
    run(opened, 3)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    read = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in read.trials] == ["FAIL", *["COMPLETE"] * 4]
    assert read.trials[0].intermediate_values == {1: 3.0}
    assert read.trials[1].params == read.trials[0].params
    assert set(read.trials[0].params) == {"optim.lr", "model.layers", "model.dropout", "precision"}


def test_notes_that_others_write_into_the_journal_meanwhile_change_nothing(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    opened = study(tmp_path)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    storage = optuna.storages.JournalStorage(backend)
    trials = []
    for number in range(4):
        trials += run(opened, 1)
        storage.set_study_user_attr(0, "note", number)
    assert optuna.load_study(study_name="s", storage=storage).user_attrs["note"] == 3
    assert [*trials, *run(study(tmp_path), 2)] == run(study(tmp_path / "straight"), 6)


def test_a_journal_that_holds_something_else_is_not_read_on(tmp_path: Path) -> None:
    run(study(tmp_path), 1)
    log = tmp_path / "study.log"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], b"\0\0\n", *lines[2:]]))
    with pytest.raises(StoreError) as refusal:
        study(tmp_path)
    assert str(refusal.value) == f"{log}:3: not a line of JSON"


def test_the_first_word_on_a_trial_counts(tmp_path: Path) -> None:
    opened = study(tmp_path)
    trial = opened.ask()
    opened.tell(trial.number, [1.0], "done")
    study(tmp_path).tell(trial.number, [0.5], "done")
    study(tmp_path).tell(trial.number, None, "failed")
    assert told(study(tmp_path)) == [(0, (1.0,))]


@pytest.mark.parametrize("values", [None, [math.nan], [math.inf], [-math.inf], [], [1.0, 2.0]])
def test_a_trial_without_a_number_for_each_objective_has_failed(values: list[float] | None, tmp_path: Path) -> None:
    opened = study(tmp_path)
    opened.tell(opened.ask().number, values, "done")
    assert told(opened) == []
    assert opened.open_trials() == []
    assert opened.counted() == 1


def test_a_failed_trial_is_asked_for_again_and_both_count_once(tmp_path: Path) -> None:
    opened = study(tmp_path)
    first = opened.ask()
    opened.tell(first.number, None, "failed")
    assert opened.counted() == 1
    opened.retry(first.number)
    opened.retry(first.number)
    assert opened.counted() == 0
    again = study(tmp_path).ask()
    assert again == Asked(number=1, words=first.words)
    assert study(tmp_path).tries(1) == 2
    opened = study(tmp_path)
    assert opened.counted() == 1
    opened.tell(again.number, [1.0], "done")
    opened.retry(first.number)
    assert opened.ask().words != first.words
    assert opened.counted() == 2


def test_a_trial_worse_than_most_is_pruned_and_a_step_is_reported_once(tmp_path: Path) -> None:
    asked = settings(pruner="median", pruner_options={"n_startup_trials": 3, "n_warmup_steps": 1})
    opened = study(tmp_path, asked)
    for number in range(3):
        opened.ask()
        assert not any(opened.report(number, step, 1.0) for step in range(3))
        opened.tell(number, [1.0], "done")
    bad = opened.ask().number
    assert [opened.report(bad, step, 9.0) for step in range(3)] == [False, True, True]
    again = study(tmp_path, asked)
    assert again.report(bad, 2, 0.0), "the same step again, with another value"
    again.tell(bad, None, "pruned")
    assert not again.report(bad, 3, 9.0)
    assert [number for number, _ in told(again)] == [0, 1, 2]
    assert again.counted() == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_trial_that_reports_no_number_is_pruned(value: float, tmp_path: Path) -> None:
    opened = study(tmp_path, settings(pruner="median", pruner_options={"n_startup_trials": 1}))
    opened.report(opened.ask().number, 1, 1.0)
    opened.tell(0, [1.0], "done")
    assert opened.report(opened.ask().number, 1, value)
    opened.tell(1, None, "pruned")
    assert told(study(tmp_path, settings())) == [(0, (1.0,))]


def test_nothing_is_pruned_where_no_pruner_was_asked_for(tmp_path: Path) -> None:
    opened = study(tmp_path)
    opened.ask()
    before = (tmp_path / "study.log").read_bytes()
    assert not any(opened.report(0, step, math.nan) for step in range(5))
    assert (tmp_path / "study.log").read_bytes() == before


PRUNERS: list[tuple[Pruner, dict[str, Any]]] = [
    ("percentile", {"percentile": 25, "n_startup_trials": 1}),
    ("hyperband", {"max_resource": 9}),
    ("successive-halving", {"min_resource": 1, "reduction_factor": 2}),
    ("patient", {"patience": 1}),
    ("patient", {"patience": 1, "wrapped_pruner": "percentile", "percentile": 25.0, "n_startup_trials": 1}),
    ("threshold", {"upper": 5}),
]


@pytest.mark.parametrize(("pruner", "options"), PRUNERS, ids=[name for name, _ in PRUNERS])
def test_each_pruner_gives_a_hopeless_trial_up(pruner: Pruner, options: dict[str, Any], tmp_path: Path) -> None:
    asked = settings(pruner=pruner, pruner_options=options)
    opened = study(tmp_path, asked)
    for number in range(4):
        opened.ask()
        assert not any(opened.report(number, step, 1.0 / step) for step in range(1, 10))
        opened.tell(number, [0.1], "done")
    opened.ask()
    assert any(study(tmp_path, asked).report(4, step, 9.0 + step) for step in range(1, 10))


def test_a_trial_of_several_objectives_is_never_pruned(tmp_path: Path) -> None:
    opened = study(tmp_path, settings("nsga2", directions=("minimize", "maximize")))
    opened.tell(opened.ask().number, [1.0, 1.0], "done")
    assert told(opened) == [(0, (1.0, 1.0))]
    assert opened.report(opened.ask().number, 1, 1.0) is False


def test_bruteforce_goes_through_a_space_once(tmp_path: Path) -> None:
    space = SPACE[2:]
    opened = study(tmp_path, settings("bruteforce"), space)
    words = []
    while not opened.is_exhausted():
        trial = opened.ask()
        words.append(trial.words)
        opened.tell(trial.number, [1.0], "done")
    values = [(f"model.dropout={step / 10}", f"precision={name}") for step in range(6) for name in ("bf16", "fp32")]
    assert sorted(words) == values


def test_a_space_with_a_dimension_that_cannot_be_counted_is_never_exhausted(tmp_path: Path) -> None:
    opened = study(tmp_path)
    run(opened, 3)
    assert not opened.is_exhausted()


def test_a_study_is_not_gone_on_with_in_another_space(tmp_path: Path) -> None:
    study(tmp_path, settings(), SPACE[3:])
    other = Dimension(key="precision", kind="choice", choices=("fp32", "fp16"))
    with pytest.raises(ConfigError) as refusal:
        study(tmp_path, settings(), [other])
    message, then, now = str(refusal.value).splitlines()
    assert message == "study s was begun with another space"
    assert "['fp32', 'bf16']" in then
    assert "['fp32', 'fp16']" in now


def test_a_search_says_nothing_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    opened = study(tmp_path, settings("tpe", pruner="hyperband"))
    run(opened, 12)
    opened.report(opened.ask().number, 1, 1.0)
    assert capfd.readouterr() == ("", "")
