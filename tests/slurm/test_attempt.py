"""What an attempt finds of those before it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from host_project import ROOT
from sample_runs import make_spec, make_started

from runner.run_folder import RunFolder
from runner.slurm.attempt import begin_attempt, machine_before, newest_checkpoint
from runner.slurm.order import Order, SlurmFiles
from runner.store import RunStore


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    store = RunStore(tmp_path / "runs")
    return store.let_go(store.start(make_spec(), make_started(), elsewhere=True))


def leave(run: RunFolder, *checkpoints: int) -> None:
    """Leave what an attempt leaves."""
    (run.out / "events.jsonl").write_text("{}\n")
    for step in checkpoints:
        (run.out / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


def test_each_attempt_has_an_empty_out_and_the_earlier_ones_are_kept(run: RunFolder) -> None:
    begin_attempt(run)
    assert run.outs == [run.out]
    leave(run, 5)
    run.wandb.mkdir()
    begin_attempt(run)
    leave(run)
    begin_attempt(run)
    assert run.outs == [run.out, run.attempt(1) / "out", run.attempt(0) / "out"]
    assert list(run.out.iterdir()) == []
    assert (run.attempt(0) / "wandb").is_dir()
    assert newest_checkpoint(run) == run.attempt(0) / "out"


def test_an_attempt_that_wrote_nothing_is_none(run: RunFolder) -> None:
    begin_attempt(run)
    begin_attempt(run)
    assert run.outs == [run.out]


def test_an_attempt_that_was_interrupted_while_it_began_begins_again(run: RunFolder) -> None:
    leave(run, 5)
    run.attempt(0).mkdir(parents=True)
    run.out.rename(run.attempt(0) / "out")
    begin_attempt(run)
    assert run.outs == [run.out, run.attempt(0) / "out"]


def test_nothing_asks_a_new_attempt_to_stop_and_its_nonce_is_another(run: RunFolder) -> None:
    files = SlurmFiles(run)
    begin_attempt(run)
    before = files.nonce.read_text()
    run.ask_to_stop()
    files.time_is_over.touch()
    begin_attempt(run)
    assert not run.is_asked_to_stop
    assert not files.time_is_over.exists()
    assert files.nonce.read_text() != before


def test_the_machine_whose_checkpoint_is_taken_up_is_remembered(run: RunFolder) -> None:
    assert machine_before(run, {"cpu": "one"}, goes_on=False) == {"cpu": "one"}
    assert machine_before(run, {"cpu": "other"}, goes_on=True) == {"cpu": "one"}
    assert machine_before(run, {"cpu": "other"}, goes_on=False) == {"cpu": "other"}


def test_what_an_earlier_attempt_left_running_is_ended_and_nothing_else(run: RunFolder, tmp_path: Path) -> None:
    SlurmFiles(run).keep_order(Order(engine="host", source=str(tmp_path), data=None, self_test_steps=0))
    environment = {"PATH": os.environ["PATH"], "XRUN_OUT": str(run.out)}
    program = subprocess.Popen(["sleep", "1000"], env=environment, start_new_session=True)
    rank = subprocess.Popen(["sleep", "1000"], env=environment, process_group=0)
    other = subprocess.Popen(["sleep", "1000"], env={**environment, "XRUN_OUT": str(tmp_path)}, start_new_session=True)
    try:
        reaped = subprocess.run([sys.executable, "-m", "runner.node", "reap", run.path], check=False, cwd=ROOT)
        assert reaped.returncode == 0
        assert (program.wait(10) < 0, rank.wait(10), other.poll()) == (True, -signal.SIGKILL, None)
    finally:
        other.kill()
        other.wait()
