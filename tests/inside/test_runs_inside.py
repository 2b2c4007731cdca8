"""Whole runs, each a real process as a container starts it."""

import hashlib
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from inside.jobs import Ran, make_spec, run, source_folder
from runner.inside import trace
from runner.inside.digests import digest_of_tensors
from runner.inside.files import digest_of_file
from runner.traces import opened_traces


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run of the tiny experiment as it is."""
    return run(tmp_path_factory.mktemp("plain"), make_spec())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run that evaluates, clips and writes checkpoints on its way."""
    often = {"config__training__eval_every_steps": 4, "config__training__checkpoint_every_steps": 4}
    return run(tmp_path_factory.mktemp("often"), make_spec(**often, config__training__clip_norm=1.0))


def test_two_runs_in_fp32_are_equal(tmp_path: Path, plain: Ran) -> None:
    again = run(tmp_path, make_spec())
    assert (again.out / "trace-rank0.bin").read_bytes() == (plain.out / "trace-rank0.bin").read_bytes()
    assert again.done["weights"] == plain.done["weights"]


@pytest.mark.parametrize(
    "changes",
    [
        {"determinism__level": "portable-v3"},
        {"config__precision": "fp16", "config__training__clip_norm": 1.0},
        {"config__precision": "bf16", "ranks": 2},
    ],
    ids=["portable-v3", "fp16", "bf16 on 2 ranks"],
)
def test_two_runs_of_one_spec_are_equal(tmp_path: Path, changes: dict[str, Any]) -> None:
    first, second = (run(tmp_path, make_spec(**changes), name=name) for name in ("first", "second"))
    assert first.done["fingerprint"] == second.done["fingerprint"]
    assert first.done["weights"] == second.done["weights"]
    for rank in range(changes.get("ranks", 1)):
        name = f"trace-rank{rank}.bin"
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes()


def test_another_seed_gives_another_fingerprint(tmp_path: Path, plain: Ran) -> None:
    other = run(tmp_path, make_spec(config__seed=8, determinism__level="seeded"))
    assert other.done["fingerprint"] != plain.done["fingerprint"]


def test_done_json_names_every_file_with_its_size_and_digest(ran: Ran) -> None:
    files = {path.relative_to(ran.out).as_posix() for path in ran.out.rglob("*") if path.is_file()} - {"done.json"}
    folders = ("checkpoints/step-00000004", "checkpoints/step-00000006")
    inside = {f"{folder}/{name}" for folder in folders for name in ("model.pt", "training.pt", "manifest.json")}
    assert files == {"events.jsonl", "trace-rank0.bin", *inside}
    assert ran.done["files"] == {
        name: {"size": (ran.out / name).stat().st_size, "digest": digest_of_file(ran.out / name)} for name in files
    }


def test_the_fingerprint_closes_the_trace_with_the_final_weights(ran: Ran) -> None:
    done = ran.done
    state = torch.load(ran.out / "checkpoints/step-00000006/model.pt", weights_only=True)
    with opened_traces(ran.out, 1) as [written]:
        written.verify()
        chain = written.chain(written.count() - 1)
        assert [written.record(index).step for index in range(written.count())] == [1, 2, 3, 4, 5, 6]
    assert done["weights"] == digest_of_tensors(state)
    assert done["fingerprint"] == trace.fingerprint([chain], done["weights"])
    assert (done["nonce"], done["steps"]) == ("a-nonce", 6)


def test_events_tell_the_run_in_order(ran: Ran) -> None:
    told = [(event["kind"], event.get("step")) for event in ran.events]
    early = [("start", None), ("operators", 1), ("step", 1), ("step", 2), ("step", 4), ("eval", 4), ("checkpoint", 4)]
    assert told == [*early, ("step", 6), ("eval", 6), ("checkpoint", 6), ("end", 6)]
    assert ran.events[0]["knobs"]["threads"] == 1
    assert ran.events[2].keys() == {"kind", "step", "steps", "loss", "lr", "samples_per_s", "grad_norm"}
    assert ran.events[-3]["metrics"].items() <= ran.done["metrics"].items()


def test_micro_batches_and_ranks_compute_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    # Without batch norm and dropout, which see micro-batches, only the rounding of sums may differ.
    plain = {"config__model": {"plain": True}, "config__optim": {"kind": "SGD", "fused": True, "lr": 0.5}}
    whole, *others = [
        torch.load(ran.out / "checkpoints/step-00000006/model.pt", weights_only=True)
        for ran in (
            run(tmp_path, make_spec(**plain), name="whole"),
            run(tmp_path, make_spec(**plain, config__training__micro_batches=4), name="parts"),
            run(tmp_path, make_spec(**plain, config__training__micro_batches=2, ranks=2), name="ranks"),
        )
        if ran.done
    ]
    for other in others:
        for name, weights in whole.items():
            torch.testing.assert_close(other[name], weights, rtol=1e-5, atol=1e-6)


def test_a_loop_of_ones_own_gives_the_bits_of_the_shipped_one(tmp_path: Path, plain: Ran) -> None:
    own = run(tmp_path, make_spec(config__experiment__module="own_loop"))
    assert own.done["fingerprint"] == plain.done["fingerprint"]
    assert own.done["metrics"].keys() == {"mine", "train_loss"}


def test_ranks_that_end_with_other_weights_fail_and_are_named(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(ranks=2, config__data={"fault": "drift"}))
    assert ran.exit_code == 2
    assert re.fullmatch(
        r"error: rank 1 ends with other weights than rank 0: sha256:[0-9a-f]{64}, not sha256:[0-9a-f]{64}\n",
        ran.error(0),
    )


def test_a_checkpoint_holds_the_whole_state(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(config__precision="fp16", ranks=2))
    assert ran.done
    folder = ran.out / "checkpoints/step-00000006"
    state = torch.load(folder / "training.pt", weights_only=True)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert state.keys() == {"optimizer", "scaler", "kept", "loss", "metrics"}
    assert state["scaler"]["scale"] == 65536.0
    assert state["scaler"]["_growth_tracker"] == 6
    assert state["loss"] == ran.done["metrics"]["train_loss"]
    assert len(manifest["chains"]) == 2
    assert manifest["files"]["training.pt"]["digest"] == digest_of_file(folder / "training.pt")


def test_a_failing_rank_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(ranks=2, config__data={"fault": "raise"}))
    assert ran.exit_code == 1
    assert ran.error(1).endswith("ValueError: sample 41 cannot be read\n")
    assert 'experiments/tiny.py", line' in ran.error(1)
    times = {path.name: path.stat().st_mtime_ns for path in (ran.out / "errors").iterdir() if path.stat().st_size}
    assert min(times, key=lambda name: times[name]) == "rank1.txt"
    assert not (ran.out / "done.json").exists()


def test_a_killed_rank_is_named_with_its_signal(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(ranks=2, config__data={"fault": "die"}))
    assert ran.exit_code == 128 + signal.SIGKILL
    assert ran.error(1) == "error: rank 1 was ended by SIGKILL\n"


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_a_hung_rank_ends_the_run_with_the_place_where_it_hangs(tmp_path: Path, ranks: int, rank: int) -> None:
    spec = make_spec(ranks=ranks, config__data={"fault": "hang", "rank": str(rank)})
    ran = run(tmp_path, spec, hang_timeout_s=20)
    assert ran.exit_code == 1
    lines = ran.error(rank).splitlines()
    assert lines[0] == "Timeout (0:00:20)!"
    assert any('experiments/tiny.py", line' in line and line.endswith("in batch") for line in lines)
    times = {path.name: path.stat().st_mtime_ns for path in (ran.out / "errors").iterdir() if path.stat().st_size}
    assert min(times, key=lambda name: times[name]) == f"rank{rank}.txt"


def test_data_that_is_not_as_pinned_is_refused_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "poems"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("rose")
    found = "sha256:" + hashlib.sha256(b"rose").hexdigest()
    pinned = "sha256:" + hashlib.sha256(b"lily").hexdigest()
    ran = run(tmp_path, make_spec(data={"poems": {"a.txt": pinned, "b.txt": pinned}}))
    assert ran.exit_code == 2
    assert ran.error() == (
        "error: the data is not what the lock pins\n"
        f"  poems/a.txt is {found}, pinned is {pinned}\n"
        "  poems/b.txt is missing\n"
    )


def test_a_setting_that_is_not_as_pinned_is_refused_and_named(tmp_path: Path) -> None:
    spec = make_spec(determinism__level="portable-v3")
    ran = run(tmp_path, spec, environment={"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"})
    assert ran.exit_code == 2
    assert ran.error() == (
        "error: level portable-v3: 3 settings are not as pinned\n"
        "  variable ATEN_CPU_CAPABILITY is 'default', pinned is 'avx2'\n"
        "  variable OMP_NUM_THREADS is '2', pinned is '1'\n"
        "  aten is 'DEFAULT', pinned is 'AVX2'\n"
    )


def test_a_setting_that_the_experiment_changes_is_found_at_the_end(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(config__data={"fault": "threads"}))
    assert ran.exit_code == 2
    assert ran.error() == ("error: level repeat: 1 settings are not as pinned\n  threads is 2, pinned is 1\n")


def test_an_optimizer_that_a_portable_level_cannot_keep_is_refused(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(determinism__level="portable-v3", config__optim__fused=False))
    assert ran.exit_code == 2
    assert ran.error() == (
        "error: level portable-v3 cannot be kept with AdamW: its square roots come out differently on Intel and AMD "
        "CPUs\n\nhint: give torch.optim.AdamW the argument fused=True if it has it, or run with determinism=elastic\n"
    )


@pytest.mark.parametrize(
    ("kind", "level", "why", "hint"),
    [
        (
            "sync",
            "elastic",
            "SyncBatchNorm (1): its backend sums over ranks in an order of its own",
            "use nn.BatchNorm2d, which sees the samples of a virtual rank, or run with determinism=repeat",
        ),
        (
            "compiled",
            "portable-v3",
            "torch.compile (the model): it makes other kernels on every CPU",
            "leave out torch.compile, or run with determinism=elastic",
        ),
    ],
)
def test_a_model_that_a_level_cannot_keep_is_refused(
    tmp_path: Path, kind: str, level: str, why: str, hint: str
) -> None:
    spec = make_spec(config__model={kind: True}, determinism__level=level, virtual_ranks=2)
    ran = run(tmp_path, spec)
    assert (ran.exit_code, ran.error()) == (2, f"error: level {level} cannot be kept with {why}\n\nhint: {hint}\n")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(config__optim__kind="SGD", config__optim__fused=False, config__optim__lr=1e38))
    assert ran.exit_code == 2
    assert ran.error() == "error: the loss is nan at step 2: the training has diverged\n"


def test_samples_that_cannot_be_shared_equally_are_refused(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(config__training__micro_batches=3))
    assert ran.exit_code == 2
    assert ran.error() == (
        "error: training.batch_size: 16 samples cannot be shared equally by 1 ranks x 3 micro-batches\n\n"
        "hint: training.batch_size=18\n"
    )


def test_a_command_is_pinned_by_its_outputs(tmp_path: Path) -> None:
    script = (
        'print("working"); open("a.txt", "w").write("a"); open("m.jsonl", "w").write(\'{"step": 3, "loss": 0.5}\\n\')'
    )
    experiment = {"name": "c", "command": ["python3", "-c", script], "outputs": ["a.txt"], "metrics": "m.jsonl"}
    ran = run(tmp_path, make_spec(config__experiment=experiment))
    digests = {name: digest_of_file(ran.out / name).removeprefix("sha256:") for name in ("a.txt", "m.jsonl")}
    listing = "".join(f"sha256:{digest}  {name}\n" for name, digest in digests.items())
    assert ran.done["fingerprint"] == "sha256:" + hashlib.sha256(listing.encode()).hexdigest()
    assert ran.done["metrics"] == {"step": 3, "loss": 0.5}
    assert {"kind": "eval", "step": 3, "metrics": {"step": 3, "loss": 0.5}} in ran.events
    assert "working" in ran.output


def test_a_command_that_leaves_out_an_output_fails_and_names_it(tmp_path: Path) -> None:
    experiment = {"name": "c", "command": ["true"], "outputs": ["a.txt", "b.txt"]}
    ran = run(tmp_path, make_spec(config__experiment=experiment))
    assert ran.exit_code == 2
    assert ran.error() == ("error: the command ended without writing a.txt, b.txt, which experiment.outputs declares\n")
    assert not (ran.out / "done.json").exists()


def test_a_command_runs_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    (source_folder(tmp_path) / "torch.py").write_text("raise ImportError('this image has no torch')\n")
    command = ["sh", "-c", "echo a > a.txt"]
    ran = run(tmp_path, make_spec(config__experiment={"name": "c", "command": command, "outputs": ["a.txt"]}))
    assert ran.exit_code == 0, ran.output
    training = run(tmp_path, make_spec(), name="training")
    assert training.exit_code == 1
    assert "ImportError: this image has no torch" in training.output


def test_a_failing_command_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    experiment = {"name": "c", "command": ["sh", "-c", "exit 5"], "outputs": []}
    ran = run(tmp_path, make_spec(config__experiment=experiment))
    assert (ran.exit_code, ran.error()) == (5, "error: sh ended with exit code 5\n")


def test_nothing_of_this_machine_is_in_a_fingerprint(tmp_path: Path, plain: Ran) -> None:
    (elsewhere := tmp_path / "else where").mkdir()
    there = run(elsewhere, make_spec(), environment={"TZ": "Asia/Tokyo", "LANG": "C"}, hang_timeout_s=77)
    assert there.out != plain.out
    assert there.done["fingerprint"] == plain.done["fingerprint"]
