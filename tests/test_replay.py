"""Replays of whole runs: the verdict, what it needs, and what it does not."""

import json
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace

import pytest
from bare_machine import BareMachine, fingerprint_of
from host_project import Bench, make_bench

from runner.launch import again
from runner.machine import probe
from runner.record import Record
from runner.replay import identity_reasons, knows_numerics
from runner.store import RunStore


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


@pytest.fixture(scope="module")
def resumable(bench: Bench) -> str:
    """A run at a level that pins no instructions."""
    return bench.run("experiment=tiny", "determinism=resume")


def numerics_of(bench: Bench, run_id: object) -> "dict[str, str]":
    with (bench.folder / "runs" / str(run_id) / "out" / "trace-rank0.bin").open("rb") as trace:
        return dict(json.loads(trace.readline())["numerics"])


def test_where_operators_of_the_run_compute_other_bits_nothing_can_be_proved(bench: Bench, resumable: str) -> None:
    replay = bench.replay_with("MKL_CBWR=COMPATIBLE", resumable)
    record, cpu = bench.record(), probe().cpu
    said = (
        "not comparable: operators addmm, linear, mm, mm large, mm odd, mm transposed compute other bits on this"
        f" machine ({cpu} then, {cpu} now); level resume needs the same"
    )
    assert (replay.returncode, replay.stdout.splitlines()[2:]) == (11, [said]), replay.stderr
    assert isinstance(record["verdict"], dict)
    assert (record["verdict"]["result"], record["verdict"]["step"]) == ("not comparable", None)


def test_operators_that_the_run_does_not_call_may_compute_other_bits(bench: Bench, resumable: str) -> None:
    replay = bench.replay_with("ONEDNN_MAX_CPU_ISA=SSE41", resumable)
    past, again = numerics_of(bench, resumable), numerics_of(bench, bench.record()["id"])
    others = {name for name in past if past[name] != again[name]}
    assert "conv 3x3" in others
    assert not others & {"addmm", "linear", "mm"}
    assert (replay.returncode, replay.stdout.splitlines()[2].partition(":")[0]) == (0, "identical")


def test_on_other_hardware_that_is_allowed_other_bits_are_compared_all_the_same(bench: Bench, resumable: str) -> None:
    replay = bench.replay_with("MKL_CBWR=COMPATIBLE", resumable, "--allow-hardware")
    assert (replay.returncode, replay.stdout.splitlines()[2].partition(":")[0]) == (10, "diverged at step 1")


def test_the_name_of_the_cpu_counts_only_where_its_operators_are_not_known(bench: Bench, resumable: str) -> None:
    store, other = RunStore(bench.folder / "runs"), replace(probe(), cpu="Another CPU")
    command = bench.run("experiment=said", "determinism=resume")
    reasons = {}
    for run_id in (resumable, command):
        run = store.look(store.find(run_id))
        assert isinstance(run.facts, Record)
        spec = store.load_spec(run.folder)
        reasons[run_id] = identity_reasons(run.facts, spec, other, knows_numerics=knows_numerics(run.folder, spec))
    cpu = probe().cpu
    said = f"hardware: cpu was {cpu}, here is Another CPU; level resume needs the same"
    assert reasons == {resumable: [], command: [said]}


@pytest.mark.parametrize(
    ("level", "reasons"),
    [
        ("repeat", ["nodes: the run had 2, here is 1; level repeat needs as many"]),
        ("resume", []),
    ],
)
def test_how_many_nodes_there_were_counts_only_where_the_backend_adds_up(
    bench: Bench, level: str, reasons: list[str]
) -> None:
    store = RunStore(bench.folder / "runs")
    run = store.look(store.find(bench.run("experiment=tiny", f"determinism={level}", "training.steps=2")))
    assert isinstance(run.facts, Record)
    assert run.facts.conducted is not None
    past = replace(run.facts, conducted=replace(run.facts.conducted, nodes=2))
    spec = store.load_spec(run.folder)
    assert identity_reasons(past, spec, probe(), knows_numerics=True) == reasons
    assert identity_reasons(run.facts, spec, probe(), knows_numerics=True) == []
    # One node takes what two were allowed to.
    conducted, before = again(past, spec, store, probe(), ()).conducted, run.facts.conducted.limits
    assert (conducted.nodes, conducted.limits.memory_bytes) == (1, 2 * before.memory_bytes)


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


SHORT = {
    "resnet50": ("training.steps=3", "training.batch_size=8", "data.test_images=8", "data.test_batch_size=8"),
    "chargpt": ("training.steps=3", "data.test_windows=8", "data.test_batch_size=8"),
}


@pytest.mark.image
@pytest.mark.parametrize("experiment", SHORT)
@pytest.mark.parametrize(("made", "again"), [("embedded", "docker"), ("docker", "embedded")])
def test_a_run_of_one_engine_is_replayed_by_another_whatever_became_of_the_tree(
    machine: BareMachine, docker_host: str, experiment: str, made: str, again: str
) -> None:
    words = (f"experiment={experiment}", *SHORT[experiment], "hardware.ranks=2", "precision=bf16")
    machine.xrun(*words, f"engine={made}", DOCKER_HOST=docker_host)
    moved = ("experiments", "lock", "conf", "images")
    for name in moved:
        (machine.folder / name).rename(machine.folder / f"{name}.moved")
    (machine.folder / "conf").mkdir()
    (machine.folder / "conf" / "config.yaml").write_text("this is no config")
    try:
        replay = machine.xrun("replay", "last", "--engine", again, DOCKER_HOST=docker_host)
    finally:
        shutil.rmtree(machine.folder / "conf")
        for name in moved:
            (machine.folder / f"{name}.moved").rename(machine.folder / name)
    record = json.loads(machine.xrun("show", "last", "--json").stdout)
    assert "identical: every step on 2 ranks and the final weights" in replay.stdout
    assert (record["engine"], record["verdict"]["result"]) == (again, "identical")


@pytest.mark.image
def test_a_run_on_four_ranks_is_replayed_on_one(machine: BareMachine, docker_host: str) -> None:
    words = ("determinism=elastic", "determinism.virtual_ranks=4", "hardware.ranks=4", "engine=docker")
    machine.xrun("experiment=resnet50", *SHORT["resnet50"], *words, DOCKER_HOST=docker_host)
    replay = machine.xrun("replay", "last", "--ranks", "1", "--engine", "embedded")
    record = json.loads(machine.xrun("show", "last", "--json").stdout)
    trace = machine.folder / "runs" / record["id"] / "out" / "trace-rank3.bin"
    assert "identical: every step on 4 ranks and the final weights" in replay.stdout
    assert json.loads(trace.read_bytes().partition(b"\n")[0])["world_size"] == 1


@pytest.mark.image
def test_a_run_that_one_engine_stopped_another_goes_on_with(machine: BareMachine, docker_host: str) -> None:
    words = ("experiment=chargpt", "training.steps=60", "data.test_windows=8", "data.test_batch_size=8")
    whole = machine.xrun(*words, "engine=embedded")
    environment = {**machine.environment, "DOCKER_HOST": docker_host}
    argv = [str(machine.folder / ".venv/bin/xrun"), *words, "engine=docker"]
    pipe = subprocess.PIPE
    running = subprocess.Popen(argv, cwd=machine.folder, env=environment, stdout=pipe, stderr=pipe, text=True)
    assert running.stderr is not None
    while "step" not in (line := running.stderr.readline()):
        assert line, "xrun ended early"
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=120)
    resumed = machine.xrun("resume", "last", "--engine", "embedded")
    assert fingerprint_of(resumed.stdout) == fingerprint_of(whole.stdout)
