"""Runs that were stopped and go on, and replays in stretches between checkpoints: whole commands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from host_project import ROOT, Bench, make_bench

HOST = ("engine=host", "image=none", "tracking=off", "hardware.threads=1")
LONG = ("experiment=tiny", "training.steps=3000", "training.checkpoint_every_steps=500")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def whole(bench: Bench) -> str:
    """A long run that nobody stopped."""
    return bench.run(*LONG, "training.checkpoints_kept=0")


def start(bench: Bench, *words: str) -> "subprocess.Popen[str]":
    """Start a run and return when its training has begun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XRUN_HOME": str(bench.folder / "home")}
    argv = [sys.executable, "-m", "runner", *HOST, *words]
    pipe = subprocess.PIPE
    running = subprocess.Popen(argv, cwd=bench.folder, env=environment, stdout=pipe, stderr=pipe, text=True)
    assert running.stderr is not None
    while "step 1/" not in (line := running.stderr.readline()):
        assert line, "xrun ended early"
    return running


def end_what_is_left(out: Path) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"XRUN_OUT={out}".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_it_goes_on(
    bench: Bench, whole: str, number: signal.Signals, code: int
) -> None:
    running = start(bench, *LONG, "training.checkpoints_kept=0")
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    stopped = bench.record()
    assert running.returncode == code
    assert "stopping after this step, with a checkpoint; Ctrl-C again stops at once\n" in said
    assert f"stopped, with a checkpoint; to go on: xrun resume {stopped['id']}\n" in said
    assert (stopped["status"], stopped["message"]) == ("interrupted", "stopped by a signal, with a checkpoint")
    resumed = bench.xrun("resume", str(stopped["id"]), "--engine", "host")
    record = bench.record()
    assert resumed.returncode == 0, resumed.stderr
    assert record["continues"] == stopped["id"]
    assert record["fingerprint"] == bench.record(whole)["fingerprint"]
    assert f"going on with {stopped['id']}" in resumed.stderr


def test_a_run_whose_xrun_was_killed_goes_on_and_its_replay_is_identical(bench: Bench, whole: str) -> None:
    running = start(bench, *LONG, "training.checkpoints_kept=0")
    running.kill()
    running.communicate()
    killed = bench.record()
    end_what_is_left(bench.folder / "runs" / str(killed["id"]) / "out")
    assert killed["status"] == "interrupted"
    resumed = bench.xrun("resume", str(killed["id"]), "--engine", "host")
    assert resumed.returncode == 0, resumed.stderr
    record = bench.record()
    assert record["fingerprint"] == bench.record(whole)["fingerprint"]
    replay = bench.replay(str(record["id"]))
    assert replay.stdout.splitlines()[2].startswith("identical: every step and the final weights; fingerprint sha256:")


def refused(bench: Bench, *words: str) -> tuple[int, str]:
    ran = bench.xrun("resume", *words)
    return ran.returncode, ran.stderr


def test_what_cannot_go_on_is_refused(bench: Bench, whole: str) -> None:
    assert refused(bench, whole) == (
        2,
        f"error: {whole} is done: there is nothing left to run\n\nhint: xrun replay {whole}\n",
    )
    running = start(bench, *LONG, "determinism=repeat")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    stopped = bench.record()["id"]
    message = f"{stopped} cannot go on: level repeat promises nothing of runs that were stopped"
    assert refused(bench, str(stopped)) == (
        2,
        f"error: {message}\n\nhint: xrun experiment=tiny determinism=resume\n",
    )


def test_a_replay_in_segments_has_the_verdict_of_the_whole(bench: Bench, whole: str) -> None:
    replay = bench.replay(whole, "--segments", "3")
    assert replay.returncode == 0, replay.stderr
    lines = replay.stdout.splitlines()
    fingerprint = bench.record(whole)["fingerprint"]
    assert lines[2] == f"identical: every step and the final weights, in 3 stretches; fingerprint {fingerprint}"
    said = sorted(re.findall(r"steps \d+ to \d+: .*", replay.stderr))
    assert said == [
        "steps 1 to 1000: identical in part: steps 1 to 1000, and the state after them",
        "steps 1001 to 2000: identical in part: steps 1001 to 2000, and the state after them",
        f"steps 2001 to 3000: identical: every step and the final weights; fingerprint {fingerprint}",
    ]


def test_a_spot_check_says_what_it_has_seen_and_no_more(bench: Bench, whole: str) -> None:
    replay = bench.replay(whole, "--spot", "2")
    assert replay.returncode == 0, replay.stderr
    assert re.fullmatch(
        r"identical in part: steps \d+ to \d+, steps \d+ to \d+; no other step was run", replay.stdout.splitlines()[2]
    )


def test_a_difference_in_one_segment_is_the_verdict(bench: Bench, whole: str) -> None:
    bench.flag.touch()
    try:
        replay = bench.replay(whole, "--segments", "2")
    finally:
        bench.flag.unlink()
    # The fault strikes in the 17th batch of each process.
    assert replay.returncode == 10
    assert replay.stdout.splitlines()[2] == (
        "diverged at step 17: the batch differs; its samples were equal: the data or what was made of it is other"
    )


def test_a_checkpoint_that_was_changed_is_not_started_from(bench: Bench) -> None:
    run_id = bench.run("experiment=tiny", "training.steps=4", "training.checkpoint_every_steps=2", "seed=3")
    path = bench.folder / "runs" / run_id / "out" / "checkpoints" / "step-00000002" / "model.pt"
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    replay = bench.replay(run_id, "--segments", "2")
    assert (replay.returncode, replay.stderr) == (12, f"error: {path} is not what the record of {run_id} states\n")


def test_stretches_need_checkpoints(bench: Bench) -> None:
    run_id = bench.run("experiment=tiny", "training.steps=4", "seed=4")
    replay = bench.replay(run_id, "--segments", "2")
    assert replay.returncode == 12
    assert replay.stderr == (
        f"error: {run_id} has no checkpoint before its last step, so a replay cannot begin anywhere else"
        f" (training.checkpoint_every_steps, training.checkpoints_kept)\n\nhint: xrun replay {run_id}\n"
    )


def test_another_number_of_ranks_needs_the_level_that_allows_it(bench: Bench) -> None:
    run_id = bench.run("experiment=tiny", "training.steps=4", "determinism=resume")
    replay = bench.replay(run_id, "--ranks", "2")
    assert replay.returncode == 11
    assert replay.stdout == (
        "not comparable: ranks: the run had 1, asked are 2; level resume needs as many; "
        "ranks: asked are 2; its virtual ranks can be shared among 1 to 1\n"
    )


def test_a_run_on_two_ranks_is_replayed_on_one(bench: Bench) -> None:
    run_id = bench.run(
        "experiment=tiny", "training.steps=4", "determinism=elastic", "determinism.virtual_ranks=4", "hardware.ranks=2"
    )
    replay = bench.replay(run_id, "--ranks", "1")
    fingerprint = bench.record(run_id)["fingerprint"]
    assert replay.stdout.splitlines()[2] == (
        f"identical: every step on 4 virtual ranks and the final weights; fingerprint {fingerprint}"
    )


def test_on_other_hardware_a_replay_only_compares(bench: Bench) -> None:
    run_id = bench.run("experiment=said", "determinism=resume", "seed=6")
    path = bench.folder / "runs" / run_id / "record.json"
    record: dict[str, Any] = json.loads(path.read_bytes())
    _say_that_it_ran_elsewhere(path, record)
    assert bench.replay(run_id).returncode == 11
    replay = bench.replay(run_id, "--allow-hardware")
    assert replay.returncode == 0, replay.stderr
    assert replay.stdout.splitlines()[2] == (
        f"compared, on other hardware: every declared output; fingerprint {record['fingerprint']}"
    )
    verdict = bench.record()["verdict"]
    assert isinstance(verdict, dict)
    assert verdict["result"] == "compared"


def _say_that_it_ran_elsewhere(path: Path, content: "dict[str, Any]") -> None:
    """Change a record's host, as if another machine had written it."""
    from runner.canonical import canonical_bytes, digest_of_value  # noqa: PLC0415

    content["host"]["cpu"] = "another CPU"
    del content["digest"]
    path.chmod(0o644)
    path.write_bytes(canonical_bytes(content | {"digest": digest_of_value(content)}))


def test_a_run_that_was_stopped_before_it_had_a_checkpoint_goes_on_from_the_one_before(
    bench: Bench, whole: str
) -> None:
    running = start(bench, *LONG, "training.checkpoints_kept=0")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    first = str(bench.record()["id"])
    resumed = bench.xrun("resume", first, "--engine", "host")
    second = str(bench.record()["id"])
    assert resumed.returncode == 0, resumed.stderr
    # As if the second had been killed while it took up the first's checkpoint.
    (bench.folder / "runs" / second / "record.json").unlink()
    shutil.rmtree(bench.folder / "runs" / second / "out" / "checkpoints")
    again = bench.xrun("resume", second, "--engine", "host")
    assert again.returncode == 0, again.stderr
    step = json.loads((bench.folder / "runs" / first / "out" / "events.jsonl").read_text().splitlines()[-1])["step"]
    assert f"going on after step {step}\n" in again.stderr
    assert bench.record()["fingerprint"] == bench.record(whole)["fingerprint"]


def test_a_run_whose_time_is_over_is_stopped_with_a_checkpoint(bench: Bench) -> None:
    words = ("experiment=tiny", "training.steps=100000", "scheduler.timeout_s=4")
    ran = bench.xrun(*HOST, *words)
    record = bench.record()
    assert ran.returncode == 1
    assert record["status"] == "timeout"
    assert record["message"] == "took longer than scheduler.timeout_s=4, with a checkpoint"
    assert list((bench.folder / "runs" / str(record["id"]) / "out" / "checkpoints").iterdir())
