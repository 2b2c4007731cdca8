"""Faults planted in real training steps, one at a time: each is found at its step and named. Clean runs are equal."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from inside.jobs import make_spec, source_folder
from runner.blame import first_verdict
from runner.canonical import canonical_bytes
from runner.record import Verdict
from runner.traces import opened_traces

CLEAN = 25
# Fault -> step, channel and tensor that the verdict names. Step 4 is the faulty one, or what is before it.
ALONE = {
    "initial weight": (0, "weights", None),
    "sample order": (4, "batch", None),
    "pixel": (4, "batch", None),
    "swapped inputs": (4, "batch", None),
    "label": (4, "batch", None),
    "random generator": (4, "rng_before", None),
    "python's random generator": (4, "rng_before", None),
    "weight between steps": (4, "weights_before", "4.bias"),
    "dropout": (4, "output", None),
    "loss": (4, "loss", None),
    "gradient": (4, "local_grad", "4.weight"),
    "swapped gradients": (4, "local_grad", "4.weight"),
    "scaler": (4, "scale", None),
    "growth": (4, "growth", None),
    "learning rate": (4, "lr", None),
    "optimizer setting": (4, "settings", None),
    "optimizer state": (4, "optimizer", "1.weight"),
    "optimizer state between steps": (4, "optimizer", "0.weight"),
    "buffer": (4, "buffers", "1.running_var"),
    "weight after the update": (4, "weights", "0.bias"),
    "swapped weights after the update": (4, "weights", "0.weight"),
}
# On two ranks, the fault is in rank 1 alone. What it spreads to all ranks in the same step is not blamed.
OF_RANK_1 = {
    "pixel": ("batch", None),
    "random generator": ("rng_before", None),
    "weight between steps": ("weights_before", "4.bias"),
    "dropout": ("output", None),
    "gradient": ("local_grad", "4.weight"),
    "optimizer state": ("optimizer", "1.weight"),
}


def train(folder: Path, names: Sequence[str], ranks: int) -> None:
    """Train one small run a name, all in one process a rank."""
    fp16 = {"config__precision": "fp16"} if ranks == 1 else {}
    spec = make_spec(ranks=ranks, **fp16)
    (folder / "spec.json").write_bytes(canonical_bytes(spec))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    source = source_folder(folder)
    shared = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(source),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": "lo",
        **spec["determinism"]["environment"],
    }
    argv = [sys.executable, str(Path(__file__).with_name("planted.py")), str(folder), *names]
    processes = [
        subprocess.Popen(argv, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(errors)


def compare(folder: Path, name: str, ranks: int) -> Verdict | None:
    past, again = (folder / run.replace(" ", "-") for run in ("clean#0", name))
    with opened_traces(past, ranks) as old, opened_traces(again, ranks) as new:
        for trace in (*old, *new):
            trace.verify()
        assert [trace.count() for trace in (*old, *new)] == [6] * 2 * ranks
        return first_verdict(old, new, 6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder, [*(f"clean#{number}" for number in range(CLEAN)), *ALONE], 1)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    train(folder, ["clean#0", "clean#1", "clean#2", *OF_RANK_1], 2)
    return folder


def test_clean_runs_are_equal(alone: Path, pair: Path) -> None:
    assert [compare(alone, f"clean#{number}", 1) for number in range(1, CLEAN)] == [None] * (CLEAN - 1)
    assert [compare(pair, f"clean#{number}", 2) for number in (1, 2)] == [None, None]


@pytest.mark.parametrize("fault", ALONE)
def test_a_fault_is_found_at_its_step_and_named(alone: Path, fault: str) -> None:
    verdict = compare(alone, fault, 1)
    assert verdict is not None
    assert (verdict.step, verdict.channel, verdict.tensor) == ALONE[fault]


@pytest.mark.parametrize("fault", OF_RANK_1)
def test_a_fault_of_one_rank_is_blamed_on_that_rank(pair: Path, fault: str) -> None:
    verdict = compare(pair, fault, 2)
    assert verdict is not None
    assert (verdict.step, verdict.ranks) == (4, (1,))
    assert (verdict.channel, verdict.tensor) == OF_RANK_1[fault]


def test_a_verdict_says_what_a_researcher_needs(alone: Path, pair: Path) -> None:
    of_rank, of_weight = compare(pair, "gradient", 2), compare(alone, "weight between steps", 1)
    assert of_rank is not None
    assert of_rank.message == (
        "diverged at step 4, rank 1: gradient of 4.weight differs; batch, RNG and weights before it were equal: "
        "this rank's backward pass computed other bits"
    )
    assert of_weight is not None
    assert of_weight.message == (
        "diverged at step 4: 4.bias differs before the step: something wrote to it since the step before"
    )
