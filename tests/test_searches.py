"""Searches of whole trials on this host: Optuna picks, xrun runs, and a second start goes on."""

import json
from collections import Counter

import pytest
from host_project import Bench, make_bench
from test_sweeps import Started, is_stepping, runs, shown, sweep

SEARCH = ("sweep=optuna", "model.x=interval(0,6)", "+model.hue=red,blue")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("search"))


def values(bench: Bench) -> "list[list[str]]":
    return [trial["words"] for trial in shown(bench)["trials"]]


def test_a_search_runs_as_many_trials_as_asked_and_a_second_start_adds_none(bench: Bench) -> None:
    ran = sweep(bench, *SEARCH, "sweep.trials=4", "sweep.sampler=random")
    assert ran.returncode == 0, ran.stderr
    first = values(bench)
    assert len(first) == 4
    assert all(0 <= float(x.partition("=")[2]) <= 6 for x, _ in first)
    assert {hue for _, hue in first} <= {"+model.hue=red", "+model.hue=blue"}
    again = sweep(bench, *SEARCH, "sweep.trials=4", "sweep.sampler=random")
    assert again.returncode == 0
    assert values(bench) == first


def test_a_search_is_made_longer_by_asking_for_more_trials(bench: Bench) -> None:
    before = values(bench)
    assert sweep(bench, *SEARCH, "sweep.trials=6", "sweep.sampler=random").returncode == 0
    assert values(bench)[:4] == before
    assert len(values(bench)) == 6


def test_the_best_trial_of_a_search_is_the_one_with_the_best_metric(bench: Bench) -> None:
    found = shown(bench)["trials"]
    best = min(found, key=lambda trial: trial["metrics"]["loss"])
    assert [trial["number"] for trial in found if trial["best"]] == [best["number"]]


def test_a_search_that_is_killed_goes_on_with_the_trials_it_had_begun(bench: Bench) -> None:
    words = (*SEARCH, "sweep.trials=5", "sweep.seed=7", "sweep.jobs=1")
    started = Started(bench, *words)
    known = len(runs(bench))
    started.until(lambda: len(runs(bench)) > known + 1 and is_stepping(bench))
    started.kill()
    assert sweep(bench, *words).returncode == 0
    found = shown(bench)["trials"]
    assert [trial["status"] for trial in found] == ["done"] * 5
    # Nothing was run twice, and the same seed picks the same values where nobody kills it.
    done = Counter(
        run["trial"] for run in runs(bench) if run["sweep"] == shown(bench)["id"] and run["status"] == "done"
    )
    assert done == dict.fromkeys(range(5), 1)


PICKED, ENDED = 4, 6  # Optuna's numbers of what a line of its journal says


def picks_and_ends(bench: Bench) -> "list[int]":
    journal = bench.folder / "runs" / "sweeps" / shown(bench)["id"] / "study.log"
    said = [json.loads(line)["op_code"] for line in journal.read_text().splitlines()]
    return [code for code in said if code in (PICKED, ENDED)]


def test_on_one_slot_a_trial_is_picked_only_when_it_is_known_how_the_last_one_ended(bench: Bench) -> None:
    words = ("model.x=interval(0,5)", "sweep=optuna", "sweep.sampler=random", "sweep.trials=5", "scheduler.slots=1")
    assert sweep(bench, *words).returncode == 0
    assert picks_and_ends(bench) == [PICKED, ENDED] * 5


def test_a_search_on_one_slot_that_was_killed_picks_when_the_trial_is_done_that_it_had_begun(bench: Bench) -> None:
    words = ("model.x=interval(1,5)", "sweep=optuna", "sweep.sampler=random", "sweep.trials=5", "scheduler.slots=1")
    started = Started(bench, *words)
    known = len(runs(bench))
    started.until(lambda: len(runs(bench)) > known + 1)
    started.kill()
    assert sweep(bench, *words).returncode == 0
    assert picks_and_ends(bench) == [PICKED, ENDED] * 5


def test_a_trial_that_does_worse_than_others_did_is_ended_and_marked(bench: Bench) -> None:
    # The first trials set the mark; a threshold ends what is above it at its first step.
    (bench.folder / "hold-0").touch()
    words = ("sweep=optuna", "sweep.sampler=bruteforce", "model.x=0,3", "sweep.pruner=threshold", "sweep.trials=2")
    ran = sweep(bench, *words, "+sweep.pruner_options.upper=5")
    assert ran.returncode == 0, ran.stderr
    found = {tuple(trial["words"]): trial for trial in shown(bench)["trials"]}
    assert found["model.x=3",]["status"] == "done"
    assert found["model.x=0",]["status"] == "pruned"
    record = bench.record(found["model.x=0",]["run"])
    assert record["message"] == "loss 10 at step 1 is worse than others were then"


def test_several_metrics_have_several_best_trials(bench: Bench) -> None:
    words = ("sweep=optuna", "sweep.sampler=nsga2", "model.x=choice(2,3)", "model.steps=choice(1,4)", "sweep.trials=6")
    ran = sweep(bench, *words, "sweep.metrics=[loss,step]", "sweep.directions=[minimize,minimize]")
    assert ran.returncode == 0, ran.stderr
    best = [trial for trial in shown(bench)["trials"] if trial["best"]]
    assert all(trial["status"] == "done" for trial in best)
    costs = {(trial["metrics"]["loss"], trial["metrics"]["step"]) for trial in best}
    assert not any(a != b and a[0] <= b[0] and a[1] <= b[1] for a in costs for b in costs)


def test_a_failed_trial_of_a_search_is_tried_again_with_the_same_values(bench: Bench) -> None:
    (bench.folder / "fail-5").touch()
    words = ("sweep=optuna", "sweep.sampler=bruteforce", "model.x=4,5", "sweep.trials=2", "sweep.retries=1")
    ran = sweep(bench, *words)
    assert ran.returncode == 1
    found = Counter((*trial["words"], trial["status"]) for trial in shown(bench)["trials"])
    assert found == {("model.x=4", "done"): 1, ("model.x=5", "failed"): 2}


def test_a_wrong_option_is_one_message(bench: Bench) -> None:
    refused = sweep(bench, *SEARCH, "sweep.trials=2", "+sweep.sampler_options.startup=3")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[0].startswith("error: sweep.sampler_options.startup: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("precision=fp32,bf16", "hardware=cpu,h200"),
            "hardware: a search does not vary what its lock is made of; a grid does",
        ),
        ((), "sweep=optuna: no word gives several values"),
    ],
)
def test_what_cannot_be_searched_is_refused(bench: Bench, words: tuple[str, ...], message: str) -> None:
    refused = sweep(bench, "sweep=optuna", *words)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (2, f"error: {message}")


def test_what_a_search_would_do_is_said_and_nothing_is_run(bench: Bench) -> None:
    known = len(runs(bench))
    said = sweep(bench, *SEARCH, "sweep.trials=7", "--dry-run")
    assert said.stdout.startswith("7 trials, picked by tpe; one of them could run as curve-")
    assert len(runs(bench)) == known
