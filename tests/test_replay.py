"""Replays of whole runs: the verdict, what it needs, and what it does not."""

import json
import shutil
from collections.abc import Sequence

import pytest
from bare_machine import BareMachine
from host_project import Bench, make_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def past(bench: Bench) -> str:
    return bench.run("experiment=tiny")


def test_a_replay_uses_the_stored_spec_and_source_and_nothing_else(bench: Bench, past: str) -> None:
    kept = bench.folder.parent / "kept"
    kept.mkdir()
    for name in ("experiments", "lock", "conf"):
        (bench.folder / name).rename(kept / name)
    (bench.folder / "conf").mkdir()
    (bench.folder / "conf" / "config.yaml").write_text("this is no config")
    try:
        replay = bench.replay(past[:8])
    finally:
        shutil.rmtree(bench.folder / "conf")
        for name in ("experiments", "lock", "conf"):
            (kept / name).rename(bench.folder / name)
    record = bench.record()
    assert replay.returncode == 0
    assert replay.stdout.splitlines() == [
        f"run          {record['id']}",
        f"replay of    {past}",
        f"identical: every step and the final weights; fingerprint {record['fingerprint']}",
    ]
    assert record["replay_of"] == past
    assert record["fingerprint"] == bench.record(past)["fingerprint"]
    assert isinstance(record["verdict"], dict)
    assert record["verdict"]["result"] == "identical"


@pytest.mark.parametrize("words", [(), ("--keep-going",)], ids=["stops", "keeps going"])
def test_a_difference_is_found_while_it_runs_and_named(bench: Bench, past: str, words: Sequence[str]) -> None:
    bench.flag.touch()
    try:
        replay = bench.replay(past, *words)
    finally:
        bench.flag.unlink()
    said = "diverged at step 17: the batch differs; its samples were equal: the data or what was made of it is other"
    record = bench.record()
    assert (replay.returncode, replay.stdout.splitlines()[2]) == (10, said)
    assert isinstance(record["verdict"], dict)
    assert (record["verdict"]["step"], record["verdict"]["channel"]) == (17, "batch")
    # How far a stopped one got is a matter of time; one that keeps going gets to the end.
    assert record["status"] == "done" if words else record["status"] in {"interrupted", "done"}
    assert f"xrun trace {past} --step 17" in replay.stderr


def test_what_can_prove_nothing_is_not_run(bench: Bench) -> None:
    seeded = bench.run("experiment=tiny", "determinism=seeded")
    replay = bench.replay(seeded)
    assert (replay.returncode, replay.stdout) == (11, "not comparable: level: seeded promises no bits\n")
    assert bench.record()["id"] == seeded


def test_a_command_is_compared_by_its_declared_outputs(bench: Bench) -> None:
    said = bench.run("experiment=said")
    same = bench.replay(said)
    bench.flag.touch()
    try:
        other = bench.replay(said)
    finally:
        bench.flag.unlink()
    assert (same.returncode, same.stdout.splitlines()[2].partition(";")[0]) == (0, "identical: every declared output")
    assert other.returncode == 10
    assert other.stdout.splitlines()[2].startswith("diverged: out/b.txt differs: sha256:")


def test_a_stored_trace_that_was_edited_is_not_compared_with(bench: Bench) -> None:
    run_id = bench.run("experiment=tiny", "seed=5", "training.steps=2")
    path = bench.folder / "runs" / run_id / "out" / "trace-rank0.bin"
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    replay = bench.replay(run_id)
    assert (replay.returncode, replay.stdout) == (12, "")
    assert replay.stderr == f"error: {path} is not what the record of {run_id} states\n"


def test_a_trace_is_printed(bench: Bench, past: str) -> None:
    lines = bench.xrun("trace", past).stdout.splitlines()
    assert len(lines) == 32
    assert lines[-1] == f"fingerprint {bench.record(past)['fingerprint']}"
    step = bench.xrun("trace", past, "--step", "30").stdout.splitlines()
    assert step[0] == "step 30, rank 0, slice 0 of 1"
    assert sum(line.endswith(" 4.weight") for line in step) == 5
    beyond = bench.xrun("trace", past, "--step", "31")
    assert beyond.stderr == f"error: {past}: out/trace-rank0.bin holds the steps 1 to 30, not 31\n"


SHORT = ("experiment=resnet50", "training.steps=3", "training.batch_size=8", "data.test_images=8")


@pytest.mark.image
@pytest.mark.parametrize(("made", "again"), [("embedded", "docker"), ("docker", "embedded")])
def test_a_run_of_one_engine_is_replayed_by_another(
    machine: BareMachine, docker_host: str, made: str, again: str
) -> None:
    words = (*SHORT, "data.test_batch_size=8", "hardware.ranks=2", "precision=bf16")
    machine.xrun(*words, f"engine={made}", DOCKER_HOST=docker_host)
    replay = machine.xrun("replay", "last", "--engine", again, DOCKER_HOST=docker_host)
    record = json.loads(machine.xrun("show", "last", "--json").stdout)
    assert "identical: every step on 2 ranks and the final weights" in replay.stdout
    assert (record["engine"], record["verdict"]["result"]) == (again, "identical")
