"""Runs on two nodes: real launchers that meet on loopback, as containers on two machines do."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from inside.jobs import make_spec, run
from inside.two_nodes import Nodes, first_error, is_running, run_on_nodes, until
from runner.inside import self_test
from runner.inside.files import digest_of_file
from runner.inside.job import Job
from runner.inside.network import LOOPBACK
from runner.outputs import failure

ELASTIC: dict[str, Any] = {"ranks": 4, "determinism__level": "elastic"}
LONG: dict[str, Any] = {**ELASTIC, "config__training__steps": 100_000}


def has_trained(out: Path) -> bool:
    """Say whether the ranks of a run are past their first steps."""
    return (out / "events.jsonl").exists() and '"step": 2' in (out / "events.jsonl").read_text()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_2_nodes_of_2_ranks_give_the_fingerprint_of_1_node(tmp_path: Path, precision: str) -> None:
    changes = {**ELASTIC, "virtual_ranks": 4, "config__precision": precision, "config__training__clip_norm": 1.0}
    first, second = run_on_nodes(tmp_path, make_spec(**changes), name="2x2")
    four = run(tmp_path, make_spec(**changes), name="1x4")
    one = run(tmp_path, make_spec(**{**changes, "ranks": 1}), name="1x1")
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert first.done["fingerprint"] == four.done["fingerprint"] == one.done["fingerprint"]
    assert first.done["metrics"] == four.done["metrics"] == one.done["metrics"]
    assert first.done["files"].keys() == four.done["files"].keys()


def test_a_level_that_holds_on_as_many_ranks_holds_on_more_nodes(tmp_path: Path) -> None:
    spec = make_spec(ranks=2, determinism__level="resume")
    first, _ = run_on_nodes(tmp_path, spec, name="2x1")
    assert first.done["fingerprint"] == run(tmp_path, spec, name="1x2").done["fingerprint"]


def test_a_rank_killed_on_node_1_ends_node_0_and_is_named(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, make_spec(**ELASTIC, config__data={"fault": "die", "rank": "3"}), hang_timeout_s=60)
    first, second = nodes.wait()
    assert (first.exit_code, second.exit_code) == (137, 137), first.output + second.output
    assert first_error(nodes.out) == ("rank3.txt", "error: rank 3 on node 1 was ended by SIGKILL\n")
    assert failure(nodes.out) == "rank 3: rank 3 on node 1 was ended by SIGKILL"
    assert not (nodes.out / "done.json").exists()


def test_a_rank_that_fails_on_node_1_ends_node_0_with_its_traceback(tmp_path: Path) -> None:
    first, second = run_on_nodes(tmp_path, make_spec(**ELASTIC, config__data={"fault": "raise", "rank": "2"}))
    name, text = first_error(first.out)
    assert (first.exit_code, second.exit_code) == (1, 1)
    assert name == "rank2.txt"
    assert text.startswith("on node 1:\nTraceback (most recent call last):\n")
    assert failure(first.out) == "rank 2: ValueError: sample 41 cannot be read"


def test_a_rank_that_hangs_on_node_1_ends_node_0_with_the_place(tmp_path: Path) -> None:
    spec = make_spec(**ELASTIC, config__data={"fault": "hang", "rank": "3"})
    first, second = run_on_nodes(tmp_path, spec, hang_timeout_s=20)
    assert (first.exit_code, second.exit_code) == (1, 1)
    assert str(failure(first.out)).startswith("rank 3: hung, at File ")


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_node_that_is_gone_ends_the_other_and_is_named(
    tmp_path: Path, gone: int, signal_number: signal.Signals
) -> None:
    nodes = Nodes(tmp_path, make_spec(**LONG), hang_timeout_s=20)
    until(lambda: has_trained(nodes.out))
    left, pids = nodes.processes[1 - gone], nodes.pids(1 - gone)
    for pid in nodes.pids(gone):
        os.kill(pid, signal_number)
    until(lambda: left.poll() is not None and not any(map(is_running, pids)))
    assert left.returncode == 1
    name, text = first_error(nodes.out)
    assert name == f"rank{2 * gone}.txt"
    assert text.startswith(f"error: node {gone} is gone: ")
    nodes.kill(gone)
    nodes.wait()


def test_a_node_that_is_asked_to_end_ends_the_other_and_is_named(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, make_spec(**LONG), hang_timeout_s=60)
    until(lambda: has_trained(nodes.out))
    nodes.processes[1].terminate()
    first, second = nodes.wait()
    assert (first.exit_code, second.exit_code) == (143, 143), first.output + second.output
    assert failure(nodes.out) == "rank 2: node 1 was ended by SIGTERM"


def test_nodes_stop_after_the_same_step_and_one_goes_on_to_the_same_fingerprint(tmp_path: Path) -> None:
    spec = make_spec(**ELASTIC, config__training__steps=12, config__training__checkpoint_every_steps=3)
    whole = run(tmp_path, spec, name="whole")
    (tmp_path / "stop").touch()
    stopped = run_on_nodes(tmp_path, spec)
    (tmp_path / "stop").unlink()
    assert [each.exit_code for each in stopped] == [3, 3], stopped[0].output + stopped[1].output
    assert (stopped[0].out / "checkpoints" / "step-00000001").is_dir()
    resume = {"XRUN_RESUME": str(stopped[0].out)}
    on_one = run(tmp_path, spec, name="on one", environment={**resume, "XRUN_RANKS": "2"})
    on_two, _ = run_on_nodes(tmp_path, spec, name="on two", environment=resume)
    assert on_one.done["fingerprint"] == on_two.done["fingerprint"] == whole.done["fingerprint"]


def test_the_self_test_runs_once_on_node_0(tmp_path: Path) -> None:
    environment = {"XRUN_SELF_TEST_STEPS": "2"}
    first, second = run_on_nodes(tmp_path, make_spec(**ELASTIC), environment=environment)
    assert second.exit_code == 0, second.output
    told = [event for event in first.events if event["kind"].startswith("self-test")]
    assert told[-1] == {"kind": "self-test", "steps": 2, "ranks": [4, 4, 1]}
    assert [event["kind"] for event in told] == ["self-test-run"] * 3 + ["self-test"]


def test_data_that_is_not_as_pinned_on_node_1_ends_node_0(tmp_path: Path) -> None:
    for name, word in (("data", "rose"), ("other", "lily")):
        (tmp_path / name / "poems").mkdir(parents=True)
        (tmp_path / name / "poems" / "a.txt").write_text(word)
    rose, lily = (digest_of_file(tmp_path / name / "poems" / "a.txt") for name in ("data", "other"))
    spec = make_spec(**ELASTIC, data={"poems": {"a.txt": rose}})
    first, second = run_on_nodes(tmp_path, spec, on_node={1: {"XRUN_DATA": str(tmp_path / "other")}})
    said = f"error: on node 1: the data is not what the lock pins\n  poems/a.txt is {lily}, pinned is {rose}\n"
    assert (first.exit_code, second.exit_code) == (2, 2)
    assert first_error(first.out) == ("rank2.txt", said)


def test_a_node_that_does_not_share_out_is_refused(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    first, second = run_on_nodes(
        tmp_path, make_spec(**ELASTIC), hang_timeout_s=20, on_node={1: {"XRUN_OUT": str(elsewhere)}}
    )
    said = "error: on node 1: the folder out is not the one that node 0 writes to: all nodes must share it\n"
    assert (first.exit_code, second.exit_code) == (2, 2)
    assert first_error(elsewhere) == ("rank2.txt", said)


def test_a_node_that_computes_other_bits_is_refused(tmp_path: Path) -> None:
    first, second = run_on_nodes(tmp_path, make_spec(**ELASTIC), on_node={1: {"MKL_CBWR": "COMPATIBLE"}})
    name, text = first_error(first.out)
    assert name == "rank2.txt", first.output + second.output
    assert 0 not in (first.exit_code, second.exit_code)
    assert text.startswith("error: on node 1: this machine computes other bits than node 0: ")
    assert text.endswith("\n\nhint: take nodes of one kind\n")


def test_a_port_that_is_taken_on_node_0_ends_all_nodes_and_is_named(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = str(taken.getsockname()[1])
        first, second = run_on_nodes(
            tmp_path, make_spec(**ELASTIC), hang_timeout_s=20, environment={"XRUN_MASTER_PORT": port}
        )
    assert (first.exit_code, second.exit_code) == (2, 2), first.output + second.output
    assert first_error(first.out)[1].startswith(f"error: on node 0: the nodes cannot meet at {LOOPBACK}:{port}: ")


def test_ranks_that_nodes_do_not_divide_are_refused(tmp_path: Path) -> None:
    first, second = run_on_nodes(tmp_path, make_spec(ranks=3, determinism__level="elastic"))
    assert (first.exit_code, second.exit_code) == (2, 2)
    assert "error: on node 0: 3 ranks do not split evenly over 2 nodes\n" in first.output


def test_a_self_test_that_one_node_has_too_few_gpus_for_is_left_out_and_told(tmp_path: Path) -> None:
    spec = make_spec(ranks=64, determinism__level="resume", hardware__device="cuda")
    job = Job(spec, tmp_path, tmp_path, nonce="n", log_every_steps=1, hang_timeout_s=60.0, self_test_steps=2)
    self_test.require(job)
    told = (tmp_path / "events.jsonl").read_text()
    assert told == f'{{"kind": "self-test-left-out", "ranks": 64, "gpus": {torch.cuda.device_count()}}}\n'
