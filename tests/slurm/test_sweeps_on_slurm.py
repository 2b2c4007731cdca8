"""Sweeps whose trials are SLURM jobs, on a real SLURM of two nodes."""

import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from host_project import make_bench

from slurm.cluster import Cluster, until
from slurm.conftest import SlurmBench

WORDS = ("-m", "experiment=curve", "engine=host", "image=none", "tracking=off", "hardware.threads=1", "scheduler=slurm")


@pytest.fixture
def bench(cluster: Cluster, tmp_path: Path) -> SlurmBench:
    return SlurmBench(make_bench(tmp_path / "project").folder, cluster)


def shown(bench: SlurmBench) -> "dict[str, Any]":
    return dict(json.loads(bench.xrun("sweep", "show", "last", "--json").stdout))


def statuses(bench: SlurmBench) -> "list[str]":
    return [trial["status"] for trial in shown(bench)["trials"]]


def is_stepping(bench: SlurmBench, trials: int) -> bool:
    return len(list((bench.folder / "runs").glob("curve-*/out/metrics.jsonl"))) == trials


def runs_of_trials(bench: SlurmBench) -> "Counter[int]":
    return Counter(run["trial"] for run in json.loads(bench.xrun("ls", "--json").stdout))


def test_eight_trials_are_an_array_and_the_best_is_named(bench: SlurmBench) -> None:
    ran = bench.xrun(*WORDS, "model.x=range(8)", "scheduler.array_parallelism=4")
    assert ran.returncode == 0, ran.stderr
    assert statuses(bench) == ["done"] * 8
    assert [trial["number"] for trial in shown(bench)["trials"] if trial["best"]] == [3]
    tasks = re.findall(r"on slurm (\d+)_(\d+): curve-", ran.stderr)
    assert len(tasks) == 8
    again = bench.xrun(*WORDS, "model.x=range(8)", "scheduler.array_parallelism=4")
    assert again.returncode == 0
    assert again.stderr.count("skipped: curve-") == 8


def test_a_sweep_whose_xrun_is_killed_finds_its_jobs_again(bench: SlurmBench) -> None:
    holds = [bench.folder / f"hold-{x}" for x in (1, 2)]
    for hold in holds:
        hold.touch()
    started = bench.start(*WORDS, "model.x=1,2,3")
    until(lambda: is_stepping(bench, 3), "three trials run", 120)
    started.kill()
    started.communicate()
    assert statuses(bench)[:2] == ["running", "running"]
    again = bench.start(*WORDS, "model.x=1,2,3")
    for hold in holds:
        hold.unlink()
    _, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    assert runs_of_trials(bench) == {0: 1, 1: 1, 2: 1}


def test_ctrl_c_leaves_the_trials_to_slurm_and_a_stopped_sweep_ends_them(bench: SlurmBench) -> None:
    (bench.folder / "hold-1").touch()
    started = bench.start(*WORDS, "model.x=1,2")
    until(lambda: is_stepping(bench, 2), "two trials run", 120)
    started.send_signal(signal.SIGINT)
    _, stderr = started.communicate(timeout=120)
    assert started.returncode == 130
    sweep_id = shown(bench)["id"]
    assert f"xrun sweep stop {sweep_id} ends them" in stderr
    assert statuses(bench)[0] == "running"
    stopped = bench.xrun("sweep", "stop", sweep_id)
    assert stopped.returncode == 0, stopped.stderr
    assert statuses(bench)[0] == "interrupted"
    (bench.folder / "hold-1").unlink()
    assert bench.xrun("sweep", "resume", sweep_id).returncode == 0
    assert statuses(bench) == ["done", "done"]


def test_a_search_gives_up_the_jobs_of_trials_that_do_worse(bench: SlurmBench) -> None:
    (bench.folder / "hold-0").touch()
    words = ("sweep=optuna", "sweep.sampler=bruteforce", "model.x=0,3", "sweep.pruner=threshold", "sweep.trials=2")
    ran = bench.xrun(*WORDS, *words, "+sweep.pruner_options.upper=5")
    assert ran.returncode == 0, ran.stderr
    found = {trial["words"][0]: trial for trial in shown(bench)["trials"]}
    assert (found["model.x=3"]["status"], found["model.x=0"]["status"]) == ("done", "pruned")
    record = bench.record(found["model.x=0"]["run"])
    assert record["message"] == "loss 10 at step 1 is worse than others were then"


def test_a_search_whose_xrun_is_killed_finds_its_jobs_and_picks_on_beside_them(bench: SlurmBench) -> None:
    hold = bench.folder / "hold-1"
    hold.touch()
    words = ("sweep=optuna", "sweep.sampler=bruteforce", "model.x=1,2,3", "sweep.trials=3", "sweep.jobs=2")
    started = bench.start(*WORDS, *words)
    until(lambda: is_stepping(bench, 3), "the trial that waits and both others", 120)
    started.kill()
    started.communicate()
    again = bench.start(*WORDS, *words)
    until(lambda: statuses(bench).count("done") == 2, "the others are done", 120)
    hold.unlink()
    _, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    assert runs_of_trials(bench) == {0: 1, 1: 1, 2: 1}


def test_a_search_picks_on_past_what_is_done_already(bench: SlurmBench) -> None:
    alone = [word for word in WORDS if word not in {"-m", "scheduler=slurm"}]
    for x in (1, 2):
        assert bench.xrun(*alone, f"model.x={x}").returncode == 0
    words = ("sweep=optuna", "sweep.sampler=bruteforce", "model.x=1,2,3", "sweep.trials=3", "sweep.jobs=1")
    ran = bench.xrun(*WORDS, *words)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("skipped: curve-") == 2
    assert statuses(bench) == ["done"]
    assert len(json.loads(bench.xrun("ls", "--json").stdout)) == 3


def test_an_engine_that_fails_on_the_nodes_is_not_tried_for_ever(bench: SlurmBench) -> None:
    ran = bench.xrun(*WORDS, "model.x=1,2", "sweep.retries=1", XRUN_HOST_PYTHON="/no/python")
    assert ran.returncode == 1
    sweep_id = shown(bench)["id"]
    assert ran.stderr.endswith(
        f"error: {sweep_id}: trials that are not done: 0, 1\n\nhint: xrun sweep show {sweep_id}\n"
    )
    assert runs_of_trials(bench) == {0: 1, 1: 1}
    assert bench.xrun(*WORDS, "model.x=1,2", "sweep.retries=1").returncode == 0
    assert runs_of_trials(bench) == {0: 2, 1: 2}


def test_a_runtime_that_was_never_run_runs_no_trial(bench: SlurmBench) -> None:
    ran = bench.xrun(*WORDS, "model.x=1,2", "scheduler.container=pyxis")
    assert ran.returncode == 2
    assert "scheduler.container=pyxis: its command is known (--dry-run prints it), but was never run" in ran.stderr
    assert json.loads(bench.xrun("ls", "--json").stdout) == []
