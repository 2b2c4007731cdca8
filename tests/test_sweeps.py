"""Sweeps of whole trials on this host: what is run, what is not, and what is left when something ends it."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host_project import ROOT, Bench, make_bench

WORDS = ("experiment=curve", "engine=host", "image=none", "tracking=off", "hardware.threads=1")
LIMIT_S = 120.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def sweep(bench: Bench, *words: str) -> "subprocess.CompletedProcess[str]":
    return bench.xrun("-m", *WORDS, *words)


def shown(bench: Bench, sweep_id: str = "last") -> "dict[str, Any]":
    return dict(json.loads(bench.xrun("sweep", "show", sweep_id, "--json").stdout))


def trials(bench: Bench) -> "list[tuple[int, str, list[str]]]":
    return [(trial["number"], trial["status"], trial["words"]) for trial in shown(bench)["trials"]]


def runs(bench: Bench) -> "list[dict[str, Any]]":
    return list(json.loads(bench.xrun("ls", "--json").stdout))


class Started:
    """A sweep in the background."""

    def __init__(self, bench: Bench, *words: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XRUN_HOME": str(bench.folder / "home")}
        self.bench = bench
        self.said = bench.folder / f"said-{time.monotonic_ns()}"
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runner", "-m", *WORDS, *words],
                cwd=bench.folder,
                env=environment,
                stderr=said,
                stdout=said,
                start_new_session=True,
            )

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline_s, "it never came"
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill xrun alone, as a crash would; a container of the host engine lives on, and is ended too."""
        self.process.kill()
        self.process.wait()
        for status in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"XRUN_OUT={self.bench.folder}/".encode() in status.read_bytes():
                    os.kill(int(status.parent.name), signal.SIGKILL)
            except OSError:
                continue


def holding(bench: Bench, x: str) -> Path:
    """Let the trial of one x go on only when the file is gone."""
    path = bench.folder / f"hold-{x}"
    path.touch()
    return path


def is_stepping(bench: Bench) -> bool:
    return any((bench.folder / "runs").glob("curve-*/out/metrics.jsonl"))


def test_every_combination_is_run_once_and_the_best_is_named(bench: Bench) -> None:
    ran = sweep(bench, "model.x=1,2,3", "seed=range(2)")
    assert ran.returncode == 0, ran.stderr
    assert trials(bench) == [
        (0, "done", ["model.x=1", "seed=0"]),
        (1, "done", ["model.x=1", "seed=1"]),
        (2, "done", ["model.x=2", "seed=0"]),
        (3, "done", ["model.x=2", "seed=1"]),
        (4, "done", ["model.x=3", "seed=0"]),
        (5, "done", ["model.x=3", "seed=1"]),
    ]
    assert [trial["number"] for trial in shown(bench)["trials"] if trial["best"]] == [4]
    assert "4 best  done    0.5" in ran.stdout
    assert len(runs(bench)) == 6


def test_the_log_says_once_of_each_trial_which_slot_it_had_and_none_had_two(bench: Bench) -> None:
    sweep_id = sweep(bench, "model.x=1,2,3,4", "scheduler.slots=2").stdout.split()[0]
    log = (bench.folder / "runs" / "sweeps" / sweep_id / "leases.jsonl").read_text()
    uses = sorted((use["slots"], use["from_s"], use["to_s"], use["trial"]) for use in map(json.loads, log.splitlines()))
    assert sorted(trial for *_, trial in uses) == [0, 1, 2, 3]
    assert {slot for slot, *_ in uses} == {"cpu 0", "cpu 1"}
    for (slot, _, ended_s, _), (next_slot, begun_s, *_) in itertools.pairwise(uses):
        assert slot != next_slot or ended_s <= begun_s


def test_a_trial_is_a_run_like_any_other(bench: Bench) -> None:
    sweep_id = sweep(bench, "model.x=1,2").stdout.split()[0]
    first = next(run for run in runs(bench) if run["trial"] == 0)
    assert (first["sweep"], first["overrides"][-1]) == (sweep_id, "model.x=1")
    replayed = bench.replay(first["id"])
    assert replayed.returncode == 0, replayed.stderr
    assert "identical" in replayed.stdout
    alone = bench.run("experiment=curve", "model.x=1")
    assert alone.rpartition("-")[0] == first["id"].rpartition("-")[0]


def test_what_is_done_is_skipped_and_named_unless_forced(bench: Bench) -> None:
    alone = bench.run("experiment=curve", "model.x=2")
    first = sweep(bench, "model.x=1,2")
    assert f"trial 1  skipped: {alone} is done" in first.stderr
    again = sweep(bench, "model.x=1,2")
    assert again.returncode == 0
    assert len(re.findall(r"trial [01]  skipped: curve-[0-9a-f]{8}-1 is done", again.stderr)) == 2
    assert "waiting" not in again.stderr
    assert len(runs(bench)) == 2
    assert sweep(bench, "model.x=1,2", "--force").returncode == 0
    assert len(runs(bench)) == 4


def test_a_failed_trial_ends_nothing_but_itself(bench: Bench) -> None:
    (bench.folder / "fail-2").touch()
    ran = sweep(bench, "model.x=1,2,3")
    sweep_id = ran.stdout.split()[0]
    assert ran.returncode == 1
    assert ran.stderr.endswith(f"error: {sweep_id}: trials that are not done: 1\n\nhint: xrun sweep show {sweep_id}\n")
    assert [status for _, status, _ in trials(bench)] == ["done", "failed", "done"]


def test_a_failed_trial_is_run_again_as_often_as_asked(bench: Bench) -> None:
    (bench.folder / "fail-2").touch()
    assert sweep(bench, "model.x=1,2", "sweep.retries=2").returncode == 1
    assert Counter(run["trial"] for run in runs(bench)) == {0: 1, 1: 3}
    (bench.folder / "fail-2").unlink()
    # Started again, there is one try more where one more is allowed, and none where it is not.
    assert sweep(bench, "model.x=1,2", "sweep.retries=2").returncode == 1
    assert sweep(bench, "model.x=1,2", "sweep.retries=3").returncode == 0
    assert Counter(run["trial"] for run in runs(bench)) == {0: 1, 1: 4}


def test_a_trial_that_somebody_stops_is_named_and_the_next_start_goes_on_with_it(bench: Bench) -> None:
    words = ("experiment=tiny", "training.steps=400", "optim.lr=0.01", "sweep.metrics=[train_loss]")
    started = Started(bench, *words)
    started.until(lambda: any(_steps(path) > 3 for path in (bench.folder / "runs").glob("tiny-*/out/events.jsonl")))
    (run,) = runs(bench)
    assert bench.xrun("stop", run["id"]).returncode == 0
    assert started.process.wait() == 1
    sweep_id = shown(bench)["id"]
    said = started.said.read_text()
    assert said.endswith(f"error: {sweep_id}: trials that are not done: 0\n\nhint: xrun sweep show {sweep_id}\n")
    assert sweep(bench, *words).returncode == 0
    assert [run["continues"] for run in runs(bench) if run["status"] == "done"] == [run["id"]]


def test_sweeps_are_listed_and_a_damaged_one_does_not_hide_the_others(bench: Bench) -> None:
    ids = [sweep(bench, word).stdout.split()[0] for word in ("model.x=1,2", "model.x=4,5,6")]
    (bench.folder / "runs" / "sweeps" / ids[0] / "sweep.json").write_text("{")
    rows = dict(line.split(maxsplit=1) for line in bench.xrun("sweep", "ls").stdout.splitlines()[1:])
    assert rows[ids[0]].startswith("damaged")
    assert rows[ids[1]].startswith("not running")
    assert "3 trials: 3 done" in rows[ids[1]]
    listed = {found["id"]: found for found in json.loads(bench.xrun("sweep", "ls", "--json").stdout)}
    assert "cannot be read" in listed[ids[0]]["problem"]
    assert listed[ids[1]] == shown(bench, ids[1])


def test_files_edited_after_the_start_change_no_trial(bench: Bench) -> None:
    hold = holding(bench, "1")
    started = Started(bench, "model.x=1,2", "sweep.jobs=1")
    started.until(lambda: is_stepping(bench))
    (bench.folder / "experiments" / "tiny.py").write_text("raise SystemExit")
    conf = bench.folder / "conf" / "experiment" / "curve.yaml"
    conf.write_text(conf.read_text().replace("steps: 2", "steps: 3"))
    started.kill()
    hold.unlink()
    sweep_id = shown(bench)["id"]
    assert bench.xrun("sweep", "resume", sweep_id).returncode == 0
    assert {run["source"] for run in runs(bench)} == {shown(bench)["asked"]["source"]}
    done = [run for run in runs(bench) if run["status"] == "done"]
    assert {run["metrics"]["step"] for run in done} == {2.0}


def test_a_sweep_that_is_killed_at_any_moment_is_finished_by_the_next_start(bench: Bench) -> None:
    words = ("model.x=range(1,7)", "model.steps=3")
    moments = random.Random(4)
    for _ in range(3):
        started = Started(bench, *words)
        time.sleep(moments.uniform(0.5, 6.0))
        started.kill()
    assert sweep(bench, *words).returncode == 0
    done = Counter(run["trial"] for run in runs(bench) if run["status"] == "done")
    assert done == dict.fromkeys(range(6), 1)
    assert [trial["number"] for trial in shown(bench)["trials"] if trial["best"]] == [2]


def test_two_starts_of_one_sweep_exclude_each_other(bench: Bench) -> None:
    hold = holding(bench, "1")
    started = Started(bench, "model.x=1,2")
    started.until(lambda: is_stepping(bench))
    second = sweep(bench, "model.x=1,2")
    sweep_id = shown(bench)["id"]
    assert (second.returncode, shown(bench)["running"]) == (7, True)
    assert second.stderr == f"error: {sweep_id} runs already\n\nhint: xrun sweep show {sweep_id}\n"
    hold.unlink()
    assert started.process.wait() == 0


def test_a_trial_that_another_xrun_runs_is_waited_for_and_not_run_twice(bench: Bench) -> None:
    hold = holding(bench, "1")
    other = Started(bench, "model.x=1,5")
    other.until(lambda: is_stepping(bench))
    started = Started(bench, "model.x=1,2")
    started.until(lambda: any(trial["status"] == "done" for trial in shown(bench)["trials"]))
    hold.unlink()
    assert (other.process.wait(), started.process.wait()) == (0, 0)
    assert Counter(run["overrides"][-1] for run in runs(bench)) == {"model.x=1": 1, "model.x=2": 1, "model.x=5": 1}


def test_a_stopped_sweep_goes_on_from_the_checkpoints_of_its_trials(bench: Bench) -> None:
    words = ("experiment=tiny", "training.steps=400", "optim.lr=0.01,0.02", "sweep.metrics=[train_loss]")
    started = Started(bench, *words)
    started.until(lambda: len([run for run in runs(bench) if run["status"] == "running"]) == 2)
    started.until(lambda: all(_steps(path) > 3 for path in (bench.folder / "runs").glob("tiny-*/out/events.jsonl")))
    sweep_id = shown(bench)["id"]
    stopped = bench.xrun("sweep", "stop", sweep_id)
    assert stopped.returncode == 0
    assert stopped.stderr.endswith(f"stopped; to go on: xrun sweep resume {sweep_id}\n")
    assert started.process.wait() == 143
    assert [status for _, status, _ in trials(bench)] == ["interrupted", "interrupted"]
    assert bench.xrun("sweep", "resume", sweep_id).returncode == 0
    done = [run for run in runs(bench) if run["status"] == "done"]
    assert all(run["continues"] for run in done)
    whole = bench.run("experiment=tiny", "training.steps=400", "optim.lr=0.01")
    same = next(run for run in done if run["id"].rpartition("-")[0] == whole.rpartition("-")[0])
    assert same["fingerprint"] == bench.record(whole)["fingerprint"]


def _steps(events: Path) -> int:
    return sum('"kind": "step"' in line for line in events.read_text().splitlines())


def test_what_would_run_is_said_and_nothing_is_run(bench: Bench) -> None:
    alone = bench.run("experiment=curve", "model.x=2")
    said = sweep(bench, "model.x=1,2", "--dry-run").stdout.splitlines()
    assert said[0] == "2 trials"
    assert re.fullmatch(r"    0  model\.x=1  runs as curve-[0-9a-f]{8}", said[1])
    assert said[2] == f"    1  model.x=2  {alone} is done"
    assert len(runs(bench)) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "hydra/launcher=joblib",
            "hydra/launcher: hydra's own settings are not read; where runs are placed is said by scheduler=local|slurm",
        ),
        (
            "model.y=1,2",
            "model.y: unknown key in conf/experiment/curve.yaml; known keys: steps, x; to add a new key: +model.y=1",
        ),
        ("model.x=1,z", "model.x: expected float, found str 'z' (conf/experiment/curve.yaml has 1.0)"),
        ("sweep.directions=[up]", "sweep.directions[0]: expected one of minimize, maximize, found 'up'"),
        ("scheduler=local,slurm", "scheduler: has one value for all trials of a sweep"),
        ("sweep.retries=0,1", "sweep.retries: has one value for all trials of a sweep"),
        ("sweep.metrics=[a,b]", "conf/sweep/grid.yaml: sweep.directions: 1 for 2 metrics; each has one"),
    ],
)
def test_a_wrong_word_is_one_message_before_anything_runs(bench: Bench, word: str, message: str) -> None:
    refused = sweep(bench, word)
    assert refused.returncode == 2
    assert f"error: {message}" in refused.stderr.splitlines(), refused.stderr
    assert runs(bench) == []


def test_an_option_that_would_do_nothing_is_refused_with_the_command_that_is_meant(bench: Bench) -> None:
    detached = bench.xrun("-m", "experiment=curve", "model.x=1,2", "--detach")
    assert detached.returncode == 2
    assert detached.stderr == (
        "error: --detach: a sweep starts its trials as it goes; on SLURM, Ctrl-C leaves them to it\n\n"
        "hint: xrun -m experiment=curve model.x=1,2\n"
    )
    forced = bench.xrun("experiment=curve", "model.x=1", "--force")
    assert forced.returncode == 2
    assert forced.stderr == (
        "error: --force: one run always runs; only trials of a sweep that are done are skipped\n\n"
        "hint: xrun experiment=curve model.x=1\n"
    )
    for words in (("stop", "last", "--json"), ("show", "last", "--force"), ("ls", "--offline")):
        refused = bench.xrun("sweep", *words)
        assert refused.returncode == 2
        assert refused.stderr == f"error: unrecognized arguments: {words[-1]}\n\nhint: xrun --help\n"


def test_wandb_has_a_run_for_each_trial_and_one_for_the_sweep(bench: Bench) -> None:
    words = [word for word in WORDS if word != "tracking=off"]
    ran = bench.xrun("-m", *words, "tracking.wandb=offline", "model.x=1,2")
    assert ran.returncode == 0, ran.stderr
    sweep_id = shown(bench)["id"]
    logged = [_logged(file) for file in sorted((bench.folder / "runs").rglob("*.wandb"))]
    told = Counter((found["run"]["job_type"], found["run"]["run_group"]) for found in logged)
    assert told == {("trial", sweep_id): 2, ("sweep", sweep_id): 1}
    (whole,) = [found for found in logged if found["run"]["job_type"] == "sweep"]
    assert whole["run"]["display_name"] == sweep_id
    assert {key: value for key, value in whole["summary"].items() if key.startswith("final/")} == {
        "final/best_loss": 1.5,
        "final/best_trial": 1.0,
        "final/trials_done": 2.0,
    }
    numbers = sorted(found["run"]["config"]["update"]["xrun"].get("trial", -1) for found in logged)
    assert numbers == [-1, 0, 1]


def _logged(file: Path) -> "dict[str, Any]":
    argv = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    records = [json.loads(line) for line in subprocess.run(argv, capture_output=True, check=True).stdout.splitlines()]
    summary: dict[str, Any] = {}
    for record in records:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    return {"run": next(record["run"] for record in records if record["type"] == "run"), "summary": summary}


def test_what_a_killed_sweep_had_started_is_taken_up_by_the_next_start(bench: Bench) -> None:
    holds = [holding(bench, "1"), holding(bench, "2")]
    started = Started(bench, "model.x=1,2,3")
    started.until(lambda: len(list((bench.folder / "runs").glob("curve-*/out/metrics.jsonl"))) == 2)
    started.process.kill()
    started.process.wait()
    again = Started(bench, "model.x=1,2,3")
    again.until(lambda: again.said.read_text().count("on taken up: curve-") == 2)
    for hold in holds:
        hold.unlink()
    assert again.process.wait() == 0, again.said.read_text()
    assert [status for _, status, _ in trials(bench)] == ["done"] * 3
    assert Counter(run["trial"] for run in runs(bench)) == {0: 1, 1: 1, 2: 1}


def test_an_engine_that_fails_ends_the_sweep_when_what_runs_has_ended(bench: Bench) -> None:
    ran = bench.xrun("-m", *WORDS, "model.x=1,2,3", XRUN_HOST_PYTHON=str(bench.folder / "no-python"))
    said = f"engine=host cannot start {bench.folder}/no-python: No such file or directory"
    assert ran.returncode == 5
    assert f"no more trials are started: {said}" in ran.stderr
    assert ran.stderr.endswith(f"error: {said}\n")
    assert sweep(bench, "model.x=1,2,3").returncode == 0
