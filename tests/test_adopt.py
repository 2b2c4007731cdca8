"""Runs whose xrun was killed, and runs that are stopped: whole commands, on this host."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_project import ROOT, make_bench

from runner.processes import with_variable

HOST = ("engine=host", "image=none", "tracking=off", "hardware.threads=1", "scheduler.slots=1")
LONG = ("experiment=tiny", "training.steps=100000", "training.checkpoint_every_steps=100000")
PATIENT = """\
# @package _global_
experiment:
  name: patient
  command:
    - python3
    - -c
    - "import os, time\\nwhile not os.path.exists(GO): time.sleep(0.02)\\nopen('a.txt', 'w').write('a')"
  outputs: [a.txt]
training: {steps: 1, batch_size: 1}
"""
_PATIENCE_S = 120


class Project:
    """A project with an experiment that runs until it is told to go on, and slots of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.bench = make_bench(folder)
        self.go = folder / "go"
        self.leases = folder / "leases"
        experiment = folder / "conf" / "experiment" / "patient.yaml"
        experiment.write_text(PATIENT.replace("GO", repr(str(self.go)).replace('"', '\\"')))

    def xrun(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.bench.xrun(*words, XRUN_LEASES=str(self.leases))

    def start(self, *words: str) -> "subprocess.Popen[str]":
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XRUN_HOME": str(self.bench.folder / "home"),
            "XRUN_LEASES": str(self.leases),
        }
        argv = [sys.executable, "-m", "runner", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=self.bench.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def started(self, *words: str) -> "tuple[subprocess.Popen[str], str]":
        """Start a run; returns it, with its id, when its first event is there."""
        process = self.start(*HOST, *words)
        events = self.bench.folder / "runs"
        until(lambda: any(events.glob("*/out/events.jsonl")))
        return process, next(events.glob("*/out/events.jsonl")).parts[-3]

    def killed(self, *words: str) -> str:
        """Return the id of a run whose xrun was killed while its container ran."""
        process, run_id = self.started(*words)
        process.kill()
        process.communicate()
        return run_id

    def out(self, run_id: str) -> Path:
        return self.bench.folder / "runs" / run_id / "out"

    def status(self, run_id: str) -> str:
        return str(self.bench.record(run_id)["status"])


def until(claim: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path / "project")
    yield project
    for out in (tmp_path / "project" / "runs").glob("*/out"):
        for pid in with_variable("XRUN_OUT", str(out)):
            os.kill(pid, signal.SIGKILL)


def orphan_line(run_id: str) -> str:
    return (
        f"cpu slot 0 is held by the container of {run_id}, whose xrun was killed; "
        f"xrun resume {run_id} takes it up, xrun stop {run_id} ends it"
    )


def test_a_run_waits_for_a_slot_and_says_once_for_which_run(project: Project) -> None:
    first, run_id = project.started("experiment=patient")
    second = project.start(*HOST, "experiment=said")
    assert second.stderr is not None
    while not (line := second.stderr.readline()).startswith("waiting: "):
        assert line, "it did not wait"
    assert line.startswith(f"waiting: cpu slot 0 is held by {run_id} (")
    assert line.endswith(f", pid {first.pid})\n")
    project.go.touch()
    for process in (first, second):
        _, said = process.communicate(timeout=_PATIENCE_S)
        assert process.returncode == 0, said
    assert "waiting: " not in said


def test_the_slot_of_a_killed_xrun_is_busy_until_its_run_is_taken_up_to_its_end(project: Project) -> None:
    run_id = project.killed("experiment=patient")
    assert project.status(run_id) == "interrupted"
    assert f"cpu-0  {run_id}, whose xrun was killed  " in project.xrun("ps").stdout
    waits = project.start(*HOST, "experiment=said")
    assert waits.stderr is not None
    while not (line := waits.stderr.readline()).startswith("waiting: "):
        assert line, "it did not wait"
    assert line == f"waiting: {orphan_line(run_id)}\n"
    resumed = project.start("resume", run_id)
    until(lambda: project.status(run_id) == "running")
    assert project.xrun("resume", run_id).stderr == f"error: {run_id} still runs\n\nhint: xrun logs {run_id} -f\n"
    project.go.touch()
    said, complained = resumed.communicate(timeout=_PATIENCE_S)
    assert resumed.returncode == 0, complained
    assert said.splitlines()[0] == f"run          {run_id}"
    record = project.bench.record(run_id)
    assert (record["status"], record["exit_code"], record["message"]) == ("done", None, "")
    waits.communicate(timeout=_PATIENCE_S)
    assert waits.returncode == 0
    again = project.xrun(*HOST, "experiment=patient")
    assert again.returncode == 0, again.stderr
    assert project.bench.record()["fingerprint"] == record["fingerprint"]


def test_a_result_that_came_while_no_xrun_lived_is_collected(project: Project) -> None:
    run_id = project.killed("experiment=patient")
    project.go.touch()
    until(lambda: with_variable("XRUN_OUT", str(project.out(run_id))) == [])
    resumed = project.xrun("resume", run_id)
    assert resumed.returncode == 0, resumed.stderr
    record = project.bench.record(run_id)
    assert (record["status"], record["exit_code"]) == ("done", None)
    replay = project.xrun("replay", run_id, "--engine", "host")
    assert replay.stdout.splitlines()[2].startswith("identical: ")


def test_a_result_of_another_run_is_not_collected(project: Project) -> None:
    run_id = project.killed("experiment=patient")
    project.go.touch()
    until(lambda: with_variable("XRUN_OUT", str(project.out(run_id))) == [])
    done = project.out(run_id) / "done.json"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"nonce": "0" * 32}))
    resumed = project.xrun("resume", run_id)
    assert resumed.returncode == 2
    assert resumed.stderr.endswith(
        f"error: {run_id} is a command's run, which has no checkpoints\n\nhint: xrun show {run_id}\n"
    )
    assert project.status(run_id) == "interrupted"


def test_a_training_whose_xrun_was_killed_is_stopped_with_a_checkpoint_and_goes_on(project: Project) -> None:
    run_id = project.killed(*LONG)
    stopped = project.xrun("stop", run_id)
    assert (stopped.returncode, stopped.stdout) == (0, f"{run_id}: interrupted: asked to stop, with a checkpoint\n")
    record = project.bench.record(run_id)
    assert (record["status"], record["exit_code"]) == ("interrupted", 3)
    assert list((project.out(run_id) / "checkpoints").iterdir())
    assert project.xrun("ps").stdout.splitlines()[1].split() == ["cpu-0", "free"]
    resumed = project.start("resume", run_id, "--engine", "host")
    assert resumed.stderr is not None
    while "going on after step" not in (line := resumed.stderr.readline()):
        assert line, "it did not go on"
    resumed.send_signal(signal.SIGINT)
    resumed.communicate(timeout=_PATIENCE_S)
    assert resumed.returncode == 130


def test_a_training_is_stopped_with_a_checkpoint_by_another_xrun(project: Project) -> None:
    running, run_id = project.started(*LONG)
    stopped = project.xrun("stop", run_id)
    assert (stopped.returncode, stopped.stdout) == (0, f"{run_id}: interrupted: asked to stop, with a checkpoint\n")
    _, said = running.communicate(timeout=_PATIENCE_S)
    assert running.returncode == 1
    assert said.endswith(
        f"error: {run_id}: interrupted: asked to stop, with a checkpoint\n\nhint: xrun logs {run_id}\n"
    )
    again = project.xrun("stop", run_id)
    assert (again.returncode, again.stdout) == (0, f"{run_id} has ended: interrupted\n")


def test_a_command_is_stopped_by_another_xrun(project: Project) -> None:
    running, run_id = project.started("experiment=patient")
    stopped = project.xrun("stop", run_id)
    assert (stopped.returncode, stopped.stdout) == (0, f"{run_id}: interrupted: asked to stop\n")
    running.communicate(timeout=_PATIENCE_S)
    assert running.returncode == 1


def test_a_command_whose_xrun_was_killed_is_stopped(project: Project) -> None:
    run_id = project.killed("experiment=patient")
    stopped = project.xrun("stop", run_id)
    assert (stopped.returncode, stopped.stdout) == (0, f"{run_id}: interrupted: asked to stop\n")
    assert with_variable("XRUN_OUT", str(project.out(run_id))) == []


def test_a_run_of_which_nothing_is_left_is_said_to_have_ended(project: Project) -> None:
    run_id = project.killed("experiment=patient")
    for pid in with_variable("XRUN_OUT", str(project.out(run_id))):
        os.kill(pid, signal.SIGKILL)
    until(lambda: with_variable("XRUN_OUT", str(project.out(run_id))) == [])
    stopped = project.xrun("stop", run_id)
    assert (stopped.returncode, stopped.stdout) == (
        0,
        f"{run_id} has ended: its xrun was killed, and nothing of it runs any more\n",
    )


def test_ctrl_c_ends_a_run_that_was_taken_up(project: Project) -> None:
    run_id = project.killed(*LONG)
    resumed = project.start("resume", run_id)
    until(lambda: project.status(run_id) == "running")
    resumed.send_signal(signal.SIGINT)
    _, said = resumed.communicate(timeout=_PATIENCE_S)
    assert resumed.returncode == 130, said
    assert f"stopped, with a checkpoint; to go on: xrun resume {run_id}\n" in said
    record = project.bench.record(run_id)
    assert (record["status"], record["message"]) == ("interrupted", "stopped by a signal, with a checkpoint")


def test_the_slots_are_shown_with_who_holds_them(project: Project) -> None:
    running, run_id = project.started("experiment=patient")
    head, *rows = project.xrun("ps").stdout.splitlines()
    assert head.split() == ["SLOT", "RUN", "USER", "PID", "SINCE", "(UTC)"]
    assert [row.split()[0] for row in rows] == [f"cpu-{slot}" for slot in range(len(os.sched_getaffinity(0)))]
    assert rows[0].split()[1] == run_id
    assert rows[0].split()[3] == str(running.pid)
    assert [row.split()[1:] for row in rows[1:]] == [["free"]] * (len(rows) - 1)
    project.go.touch()
    running.communicate(timeout=_PATIENCE_S)


def test_a_machine_without_a_place_for_leases_says_how_to_make_one(project: Project) -> None:
    ran = project.bench.xrun(*HOST, "experiment=said", XRUN_LEASES="/proc/xrun")
    assert ran.returncode == 7
    assert ran.stderr.endswith(
        "error: cannot make /proc/xrun: No such file or directory\n\nhint: sudo install -d -m 1777 /proc/xrun\n"
    )
    assert not list((project.bench.folder / "runs").glob("said-*"))


def test_a_stretch_of_a_replay_that_waits_is_not_begun_after_another_has_parted(project: Project) -> None:
    steps = ("training.steps=90", "training.checkpoint_every_steps=30", "training.checkpoints_kept=0")
    run_id = project.bench.run("experiment=tiny", *steps, "scheduler.slots=1")
    project.bench.flag.touch()
    replay = project.xrun("replay", run_id, "--engine", "host", "--segments", "3")
    assert replay.returncode == 10, replay.stderr
    [begun] = {path.name for path in (project.bench.folder / "runs").glob("tiny-*")} - {run_id}
    assert replay.stdout.splitlines()[0] == f"run          {begun}"
