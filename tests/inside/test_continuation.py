"""Runs that were stopped, killed or damaged, and went on: the fingerprint of one that never was."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from inside.jobs import Ran, make_spec, run, start

# All kinds of state: batch norm, dropout, AdamW, clipping, schedule, and evaluations on the way.
STEPS: dict[str, Any] = {
    "config__training__steps": 12,
    "config__training__checkpoint_every_steps": 3,
    "config__training__eval_every_steps": 5,
    "config__training__clip_norm": 1.0,
    "determinism__level": "resume",
}
OF_AN_ATTEMPT = {"start", "resume", "stopped", "checkpoint"}


def told(ran: Ran) -> list[dict[str, Any]]:
    """The events of a training, without those of its attempts and without times."""
    events = [event for event in ran.events if event["kind"] not in OF_AN_ATTEMPT]
    return [{key: value for key, value in event.items() if key != "samples_per_s"} for event in events]


def go_on(folder: Path, spec: dict[str, Any], past: str, name: str, **options: str) -> Ran:
    return run(folder, spec, name=name, environment={"XRUN_RESUME": str(folder / past), **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run that nobody stopped."""
    return run(tmp_path_factory.mktemp("whole"), make_spec(**STEPS))


def test_a_run_that_is_asked_to_stop_goes_on_to_the_same_fingerprint(tmp_path: Path, whole: Ran) -> None:
    (tmp_path / "stop").touch()
    stopped = run(tmp_path, make_spec(**STEPS))
    (tmp_path / "stop").unlink()
    assert stopped.exit_code == 3
    assert [event["kind"] for event in stopped.events] == ["start", "operators", "step", "checkpoint", "stopped"]
    assert not (stopped.out / "done.json").exists()
    again = go_on(tmp_path, make_spec(**STEPS), "out", "again")
    assert again.done["fingerprint"] == whole.done["fingerprint"]
    assert again.done["metrics"] == whole.done["metrics"]
    assert {"kind": "resume", "step": 1, "message": ""} in again.events


@pytest.mark.parametrize("changes", [{"ranks": 2, "config__precision": "bf16"}, {"ranks": 4}], ids=["2 bf16", "4"])
def test_ranks_stop_after_the_same_step_and_go_on(tmp_path: Path, changes: dict[str, Any]) -> None:
    spec = make_spec(**STEPS, **changes)
    unbroken = run(tmp_path, spec, name="whole")
    (tmp_path / "stop").touch()
    stopped = run(tmp_path, spec)
    (tmp_path / "stop").unlink()
    assert stopped.exit_code == 3
    again = go_on(tmp_path, spec, "out", "again")
    assert again.done["fingerprint"] == unbroken.done["fingerprint"]
    assert told(again) == told(unbroken)


def test_a_killed_run_goes_on_to_the_same_fingerprint(tmp_path: Path, whole: Ran) -> None:
    process = start(tmp_path, make_spec(**STEPS))
    checkpoint = tmp_path / "out" / "checkpoints" / "step-00000006"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = go_on(tmp_path, make_spec(**STEPS), "out", "again")
    assert again.done["fingerprint"] == whole.done["fingerprint"]
    assert told(again) == told(whole)
    for name in ("trace-rank0.bin", "checkpoints/step-00000012/manifest.json"):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_a_checkpoint_that_does_not_verify_is_passed_over_and_named(tmp_path: Path, whole: Ran) -> None:
    damaged = whole.out / "checkpoints" / "step-00000012" / "model.pt"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    try:
        again = go_on(tmp_path, make_spec(**STEPS), str(whole.out), "again")
    finally:
        damaged.write_bytes(content)
    message = "step-00000012/model.pt is not what its manifest states"
    assert {"kind": "resume", "step": 9, "message": message} in again.events
    assert again.done["fingerprint"] == whole.done["fingerprint"]


def test_without_a_checkpoint_a_run_starts_from_its_first_step(tmp_path: Path, whole: Ran) -> None:
    (tmp_path / "empty").mkdir()
    again = go_on(tmp_path, make_spec(**STEPS), "empty", "again")
    assert {"kind": "resume", "step": 0, "message": "there is no checkpoint"} in again.events
    assert again.done["fingerprint"] == whole.done["fingerprint"]


def test_a_run_that_was_killed_after_its_last_checkpoint_only_needs_its_proof(tmp_path: Path, whole: Ran) -> None:
    again = go_on(tmp_path, make_spec(**STEPS), str(whole.out), "again")
    assert {key: again.done[key] for key in ("fingerprint", "metrics", "steps")} == {
        key: whole.done[key] for key in ("fingerprint", "metrics", "steps")
    }


def test_a_trace_that_was_edited_is_not_gone_on_with(tmp_path: Path, whole: Ran) -> None:
    trace = whole.out / "trace-rank0.bin"
    content = trace.read_bytes()
    at = content.index(b"\n") + 300
    trace.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    try:
        again = go_on(tmp_path, make_spec(**STEPS), str(whole.out), "again")
    finally:
        trace.write_bytes(content)
    assert again.exit_code == 2
    assert again.error() == "error: trace-rank0.bin of the run to be resumed does not hold at step 1\n"


def test_another_model_does_not_go_on_from_a_checkpoint(tmp_path: Path, whole: Ran) -> None:
    again = go_on(tmp_path, make_spec(**STEPS, config__seed=8), str(whole.out), "again")
    assert again.exit_code == 2
    assert again.error() == (
        "error: trace-rank0.bin of the run to be resumed is of another model or begins with other weights\n"
    )


def test_a_stretch_between_two_checkpoints_repeats_the_run(tmp_path: Path, whole: Ran) -> None:
    stretch = go_on(tmp_path, make_spec(**STEPS), str(whole.out), "s", XRUN_RESUME_STEP="3", XRUN_LAST_STEP="9")
    assert stretch.done["steps"] == 9
    manifests = [ran.out / "checkpoints" / "step-00000009" / "manifest.json" for ran in (stretch, whole)]
    states = [json.loads(path.read_bytes()) for path in manifests]
    assert (states[0]["state"], states[0]["chains"]) == (states[1]["state"], states[1]["chains"])


def test_a_run_keeps_as_many_checkpoints_as_it_is_told_to(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(**STEPS, config__training__checkpoints_kept=2))
    kept = sorted(path.name for path in (ran.out / "checkpoints").iterdir())
    assert kept == ["step-00000009", "step-00000012"]
    assert ran.done["steps"] == 12


def test_an_elastic_run_goes_on_with_other_processes(tmp_path: Path) -> None:
    elastic = {**STEPS, "determinism__level": "elastic", "virtual_ranks": 4}
    unbroken = run(tmp_path, make_spec(**elastic), name="whole")
    (tmp_path / "stop").touch()
    assert run(tmp_path, make_spec(**elastic, ranks=4)).exit_code == 3
    (tmp_path / "stop").unlink()
    again = go_on(tmp_path, make_spec(**elastic, ranks=3), "out", "again")
    assert again.done["fingerprint"] == unbroken.done["fingerprint"]
