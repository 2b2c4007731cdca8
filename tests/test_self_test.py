"""Whole runs that are tested first."""

import json
from pathlib import Path

import pytest
from host_project import Bench, make_bench
from inside import jobs


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = make_bench(tmp_path_factory.mktemp("project"))
    for module in Path(jobs.__file__).with_name("experiments").glob("*.py"):
        (made.folder / "experiments" / module.name).write_bytes(module.read_bytes())
    return made


def test_a_run_that_is_tested_first_is_the_same_run_and_its_replay_is_not_tested(bench: Bench) -> None:
    words = ("experiment=tiny", "training.steps=3")
    plain, tested = (bench.run(*words, f"determinism.self_test={asked}") for asked in ("off", "on"))
    assert plain.rpartition("-")[0] == tested.rpartition("-")[0]
    assert bench.record(plain)["fingerprint"] == bench.record(tested)["fingerprint"]
    replay = bench.replay(tested)
    assert replay.returncode == 0
    assert "self-test" not in replay.stderr
    told = (bench.folder / "runs" / tested / "out" / "events.jsonl").read_text()
    kinds = [json.loads(line)["kind"] for line in told.splitlines()]
    assert kinds[:4] == ["self-test-run", "self-test-run", "self-test", "start"]


def test_a_run_whose_level_cannot_be_kept_is_not_begun(bench: Bench) -> None:
    words = ("experiment=tiny", "experiment.module=noisy", "determinism=repeat", "determinism.self_test=on")
    ran = bench.xrun("engine=host", "image=none", "tracking=off", "hardware.threads=1", *words)
    record = bench.record()
    assert ran.returncode == 1
    assert record["status"] == "failed"
    assert record["message"] == (
        "rank 0: level repeat cannot be kept: two runs of its first steps in fresh processes differ at step 2, rank 0, "
        "in local_grad of 0.bias: noisy.ulp.default in NoiseBackward of 1 computed other bits from equal inputs"
    )
