"""Which faults are planted in which runs, and what a replay must say of each: step, ranks, channel and tensor."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sample_runs import make_record, make_started
from sample_runs import make_spec as make_run_spec

from inside.jobs import make_spec, source_folder
from runner.canonical import canonical_bytes
from runner.container import WHOLE
from runner.record import Verdict
from runner.replay import Comparison, Past
from runner.run_folder import RunFolder

TESTS = Path(__file__).parents[1]
Found = tuple[int | None, tuple[int, ...], str | None, str | None]
"""Step, ranks, channel, tensor."""


@dataclass(frozen=True)
class Planting:
    """Runs of one spec, all in one process a rank: clean ones, and one for each fault."""

    changes: Mapping[str, Any]
    faults: Mapping[str, Found]
    ranks: int = 1

    @property
    def spec(self) -> dict[str, Any]:
        return make_spec(ranks=self.ranks, **self.changes)


def _on(ranks: Sequence[int], faults: Mapping[str, "tuple[str, str | None]"]) -> dict[str, Found]:
    return {name: (4, tuple(ranks), channel, tensor) for name, (channel, tensor) in faults.items()}


# Everything that a step can do: dropout, batch norm, AdamW with two groups, autocast, scaler, clipping, a schedule.
ALONE = Planting(
    {"config__precision": "fp16", "config__training__clip_norm": 1.0},
    {
        "initial weight": (0, (), "weights", None),
        "initial buffer": (0, (), "weights", None),
        "ended a step early": (6, (), None, None),
        "weight after the last step": (None, (), None, None),
        **_on(
            (0,),
            {
                "sample order": ("sample_ids", None),
                "sample twice": ("sample_ids", None),
                "sample of another epoch": ("sample_ids", None),
                "augmentation": ("batch", None),
                "rows of the batch": ("batch", None),
                "pixel": ("batch", None),
                "swapped pixels": ("batch", None),
                "label": ("batch", None),
                "swapped labels": ("batch", None),
                "sign of a zero": ("batch", None),
                "payload of a NaN": ("batch", None),
                "random number drawn": ("rng_before", None),
                "Python's random number drawn": ("rng_before", None),
                "generator seeded otherwise": ("rng_before", None),
                "weight between steps": ("weights_before", "4.weight"),
                "bias between steps": ("weights_before", "4.bias"),
                "batch norm's weight between steps": ("weights_before", "1.weight"),
                "swapped weights between steps": ("weights_before", "0.weight"),
                "random number drawn late": ("output", None),
                "dropout's mask": ("output", None),
                "dropout's probability": ("output", None),
                "batch norm's epsilon": ("output", None),
                "layer's output": ("output", None),
                "loss": ("loss", None),
                "gradient of a late layer": ("local_grad", "4.weight"),
                "gradient of an early layer": ("local_grad", "0.weight"),
                "gradient zeroed": ("local_grad", "1.weight"),
                "swapped gradients": ("local_grad", "4.weight"),
                # The nearest to the cause: of what the backward pass got wrong, what it came to first.
                "backward pass of an early layer": ("local_grad", "1.bias"),
                "gradient after it was looked at": ("grad_norm", None),
                "scale": ("scale", None),
                "growth interval": ("scale", None),
                "overflow that was none": ("scale", None),
                "count of good steps": ("growth", None),
                "learning rate": ("lr", None),
                "learning rate of the second group": ("settings", None),
                "weight decay": ("settings", None),
                "betas": ("settings", None),
                "Adam's epsilon": ("settings", None),
                "clip norm": ("optimizer", "0.weight"),
                "update left out": ("optimizer", "0.weight"),
                "update made twice": ("optimizer", "0.weight"),
                "first moment between steps": ("optimizer", "0.weight"),
                "second moment between steps": ("optimizer", "1.weight"),
                "Adam's count of steps": ("optimizer", "4.bias"),
                "first moment after the update": ("optimizer", "0.weight"),
                "second moment after the update": ("optimizer", "1.weight"),
                "batch norm's momentum": ("buffers", "1.running_mean"),
                "running mean between steps": ("buffers", "1.running_mean"),
                "running variance between steps": ("buffers", "1.running_var"),
                "batches counted between steps": ("buffers", "1.num_batches_tracked"),
                "running mean after the update": ("buffers", "1.running_mean"),
                "running variance after the update": ("buffers", "1.running_var"),
                "weight after the update": ("weights", "0.bias"),
                "swapped weights after the update": ("weights", "0.weight"),
            },
        ),
    },
)
MICRO_BATCHES = Planting(
    {"config__training__micro_batches": 2},
    _on((0,), {"micro-batch order": ("sample_ids", None), "pixel": ("batch", None), "loss": ("loss", None)}),
)
# What is computed of one rank's own samples...
_OF_A_VIRTUAL_RANK: "dict[str, tuple[str, str | None]]" = {
    "sample order": ("sample_ids", None),
    "pixel": ("batch", None),
    "random number drawn": ("rng_before", None),
    "dropout's mask": ("output", None),
    "loss": ("loss", None),
    "gradient of a late layer": ("local_grad", "4.weight"),
}
# ...and what its process holds once for all of its virtual ranks.
_OF_A_PROCESS: "dict[str, tuple[str, str | None]]" = {
    "weight between steps": ("weights_before", "4.weight"),
    "averaged gradient": ("reduced_grad", "1.weight"),
    "first moment between steps": ("optimizer", "0.weight"),
    "running variance after the update": ("buffers", "1.running_var"),
    "weight after the update": ("weights", "0.bias"),
}
_OF_ALL: "dict[str, tuple[str, str | None]]" = {"averaged gradient on all ranks": ("reduced_grad", "1.weight")}
PAIR = Planting({}, _on((1,), {**_OF_A_VIRTUAL_RANK, **_OF_A_PROCESS}) | _on((0, 1), _OF_ALL), ranks=2)
PAIR_RESUME = Planting(
    {"determinism__level": "resume", "config__precision": "bf16"},
    _on((1,), {"pixel": ("batch", None), "averaged gradient": ("reduced_grad", "1.weight")}) | _on((0, 1), _OF_ALL),
    ranks=2,
)
_FOUR = {"determinism__level": "elastic", "virtual_ranks": 4}
VIRTUAL = Planting(_FOUR, _on((2,), _OF_A_VIRTUAL_RANK) | _on((0, 1, 2, 3), _OF_A_PROCESS))
VIRTUAL_PAIR = Planting(
    _FOUR, _on((2,), _OF_A_VIRTUAL_RANK) | _on((2, 3), _OF_A_PROCESS) | _on((0, 1, 2, 3), _OF_ALL), ranks=2
)
# Three addends: the first number of ranks for which the order in which they are added matters. torch puts gradients
# in buckets of the size that it is told from the second step on.
COLLECTIVE = Planting(
    {"config__training__batch_size": 24, "config__model__kind": "large layers"},
    {"smaller buckets": (2, (0, 1, 2), "reduced_grad", "2.weight")},
    ranks=3,
)
# Each step looks at one of four slices of the tensors, step 4 at that of one tensor, the largest.
SLICED = Planting(
    {"config__model__kind": "wide"},
    {
        "sign of a weight of another slice": (4, (0,), "output", None),
        "weight of another slice that no output depends on": (5, (0,), "weights_before", "1.weight"),
    },
)
PLANTINGS = {
    "one rank": ALONE,
    "two micro-batches": MICRO_BATCHES,
    "two ranks": PAIR,
    "two ranks at resume": PAIR_RESUME,
    "four virtual ranks": VIRTUAL,
    "four virtual ranks on two processes": VIRTUAL_PAIR,
    "a collective of three ranks": COLLECTIVE,
    "four slices": SLICED,
}


def train(
    folder: Path, names: Sequence[str], spec: Mapping[str, Any], program: Sequence[str] = ("-m", "inside.planted")
) -> None:
    """Train one small run a name, all in one process a rank."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "spec.json").write_bytes(canonical_bytes(spec))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{source_folder(folder)}:{TESTS}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(spec["ranks"]),
        "GLOO_SOCKET_IFNAME": "lo",
        **spec["determinism"]["environment"],
    }
    argv = [sys.executable, *program, str(folder), *names]
    processes = [
        subprocess.Popen(
            argv, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(spec["ranks"])
    ]
    errors = [process.communicate(timeout=900)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * spec["ranks"], "\n".join(errors)


def verdict(folder: Path, name: str, past: str = "clean#0") -> Verdict | None:
    """Return what a replay says of a run, compared live and again at its end."""
    spec = json.loads((folder / past / "spec.json").read_bytes())
    run_spec = replace(
        make_run_spec(), config={"experiment": {}}, ranks=spec["ranks"], virtual_ranks=spec["virtual_ranks"]
    )
    records = {}
    for run in (past, name):
        done = folder / run / "out" / "done.json"
        record = make_record(run, make_started())
        records[run] = replace(record, status="failed", fingerprint=None)
        if done.exists():
            records[run] = replace(record, fingerprint=json.loads(done.read_bytes())["fingerprint"])
    of_past = Past(record=records[past], folder=RunFolder(path=folder / past), spec=run_spec, elsewhere=(), here=None)
    comparison = Comparison(of_past, WHOLE, keep_going=False)
    comparison.look(folder / name / "out")
    return comparison.verdict(records[name], folder / name / "out")


def found(folder: Path, name: str) -> Found | None:
    """Return what a replay names of a run that is not identical."""
    said = verdict(folder, name)
    assert said is not None, f"{name}: the run failed before its trace differed"
    return None if said.result == "identical" else (said.step, said.ranks, said.channel, said.tensor)
