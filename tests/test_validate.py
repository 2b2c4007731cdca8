from typing import Any

import pytest

from runner.config import Config
from runner.parse import parse
from runner.validate import mistakes_in

SOUND: dict[str, dict[str, Any]] = {
    "experiment": {"name": "tiny", "module": "tiny"},
    "training": {
        "steps": 4,
        "batch_size": 8,
        "micro_batches": 2,
        "clip_norm": None,
        "eval_every_steps": 0,
        "checkpoint_every_steps": 0,
        "checkpoints_kept": 0,
    },
    "schedule": {"kind": "constant", "warmup_steps": 9, "final_scale": 1.0},
    "image": {"name": "cpu", "source": "recipe", "ref": "cpu", "platform": "linux/amd64", "python": "python3"},
    "hardware": {"name": "cpu", "device": "cpu", "ranks": 2},
    "precision": {"name": "fp32"},
    "determinism": {"level": "seeded"},
    "tracking": {"wandb": "off", "project": "p", "entity": None, "tags": [], "group": None, "log_every_steps": 1},
    "scheduler": {"kind": "local", "timeout_s": 0, "hang_timeout_s": 60},
    "sweep": {
        "kind": "grid",
        "metrics": ["loss"],
        "directions": ["minimize"],
        "jobs": None,
        "retries": 0,
        "trials": 0,
        "sampler": "tpe",
        "sampler_options": {},
        "pruner": "none",
        "pruner_options": {},
        "seed": 0,
    },
    "model": {"width": 8, "act": None},
    "optim": {"lr": 0.1},
    "data": {},
}


def mistakes(changes: dict[str, Any]) -> list[str]:
    tree: dict[str, Any] = {"seed": 0, "engine": "auto"} | {group: dict(values) for group, values in SOUND.items()}
    for place, value in changes.items():
        group, _, key = place.partition(".")
        if key:
            tree[group][key] = value
        else:
            tree[group] = value
    return [str(mistake) for mistake in mistakes_in(parse(Config, tree))]


CUDA = {"hardware.device": "cuda", "hardware.gpu_model": "NVIDIA H200", "hardware.gpu_count": 2}


def test_a_sound_config_has_no_mistakes() -> None:
    assert mistakes({}) == []
    assert mistakes(CUDA) == []
    command = {"experiment": {"name": "c", "command": ["true"], "outputs": ["a/b.txt"], "metrics": "m"}}
    assert mistakes(command) == []
    assert mistakes(command | {"training.batch_size": 1}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": -1}, ["seed: expected at least 0, found -1"]),
        (
            {"sweep.metrics": [], "sweep.directions": []},
            ["sweep.metrics: a sweep's trials are compared by at least one metric"],
        ),
        ({"sweep.metrics": ["a", "b"]}, ["sweep.directions: 1 for 2 metrics; each has one"]),
        ({"sweep.jobs": 0}, ["sweep.jobs: expected at least 1, or null for all slots, found 0"]),
        ({"sweep.kind": "optuna"}, ["sweep.trials: expected at least 1, found 0"]),
        ({"sweep.retries": -1}, ["sweep.retries: expected at least 0, found -1"]),
        ({"scheduler.slots": 0}, ["scheduler.slots: expected at least 1, found 0"]),
        ({"seed": 1 << 63}, [f"seed: expected below 2^63, found {1 << 63}"]),
        ({"hardware.threads": 0}, ["hardware.threads: expected at least 1, found 0"]),
        (
            {"hardware.ranks": 0, "training.micro_batches": 0},
            [
                "training.micro_batches: expected at least 1, found 0",
                "hardware.ranks: expected at least 1, found 0",
            ],
        ),
        (
            {"hardware.nodes": 2},
            ["hardware.nodes: 2 nodes need scheduler=slurm; scheduler=local has this machine alone"],
        ),
        (
            CUDA | {"hardware.nodes": 3, "hardware.gpu_count": 2},
            [
                "hardware.nodes: 2 ranks do not split evenly over 3 nodes",
                "hardware.nodes: 2 GPUs do not split evenly over 3 nodes",
                "hardware.nodes: 3 nodes need scheduler=slurm; scheduler=local has this machine alone",
            ],
        ),
        ({"hardware.nodes": 2, "scheduler.kind": "k8s", "scheduler.claim": "c"}, []),
        (
            {"hardware.nodes": 2, "scheduler.kind": "k8s", "scheduler.claim": "No_Claim"},
            ["scheduler.claim: expected a name that Kubernetes takes: small letters, digits and '-', found 'No_Claim'"],
        ),
        (
            {"experiment": {"name": "c", "command": ["true"]}, "hardware.nodes": 2, "scheduler.kind": "k8s"},
            ["hardware.nodes: a command runs on 1 node, found 2"],
        ),
        ({"hardware.nodes": 0}, ["hardware.nodes: expected at least 1, found 0"]),
        (
            {"training.batch_size": 6},
            ["training.batch_size: 6 samples do not split evenly over 2 ranks x 2 micro-batches"],
        ),
        (
            {"determinism": {"level": "portable-v3", "virtual_ranks": 8}},
            ["training.batch_size: 8 samples do not split evenly over 8 virtual ranks x 2 micro-batches"],
        ),
        (
            {"determinism": {"level": "portable-v3", "virtual_ranks": 1}},
            ["determinism.virtual_ranks: expected at least 2, as many as hardware.ranks, found 1"],
        ),
        (
            {"determinism": {"level": "portable-v3", "virtual_ranks": 0}, "hardware.ranks": 1},
            ["determinism.virtual_ranks: expected at least 1, as many as hardware.ranks, found 0"],
        ),
        ({"training.clip_norm": 0.0}, ["training.clip_norm: expected more than 0 or null, found 0.0"]),
        ({"schedule.final_scale": 1.5}, ["schedule.final_scale: expected 0 to 1, found 1.5"]),
        ({"optim.lr": float("inf")}, ["optim.lr: expected a number, found inf"]),
        ({"hardware.memory_gib": 0.0}, ["hardware.memory_gib: expected more than 0, found 0.0"]),
        (
            {"experiment.name": "../x"},
            ["experiment.name: expected small letters, digits, '.', '_' and '-', found '../x'"],
        ),
        ({"experiment.module": "os; x"}, ["experiment.module: expected a module of experiments/, found 'os; x'"]),
        ({"experiment.module": None}, ["experiment: expected either a module or a command"]),
        ({"experiment.command": ["true"]}, ["experiment: expected either a module or a command"]),
        (
            {"experiment.outputs": ["a"]},
            ["experiment: outputs and metrics are declared by a command; a module's are known"],
        ),
        ({"experiment.data": ["../x"]}, ["experiment.data: expected the name of a data set, found '../x'"]),
        (
            {"experiment": {"name": "c", "command": ["true"], "outputs": ["../x", "/etc/x"]}},
            [
                "experiment.outputs: expected a file below /out, found '../x'",
                "experiment.outputs: expected a file below /out, found '/etc/x'",
            ],
        ),
        (
            {"hardware.arch_level": "avx2"},
            ["hardware.arch_level: expected one of x86-64-v2, x86-64-v3, x86-64-v4, found 'avx2'"],
        ),
        ({"image.platform": "amd64"}, ["image.platform: expected a platform such as linux/amd64, found 'amd64'"]),
        ({"hardware.gpu_count": 1}, ["hardware.gpu_count: expected 0 and no gpu_model with hardware.device=cpu"]),
        (
            CUDA | {"hardware.gpu_model": None},
            ["hardware.gpu_model: expected the GPU's name with hardware.device=cuda, found nothing"],
        ),
        (
            CUDA | {"hardware.gpu_count": 1},
            ["hardware.ranks: 2 ranks need 2 GPUs; hardware.gpu_count is 1"],
        ),
    ],
)
def test_values_that_do_not_fit_are_named_with_their_key(changes: dict[str, Any], expected: list[str]) -> None:
    assert mistakes(changes) == expected


def test_tf32_needs_a_gpu() -> None:
    found = mistakes({"precision.name": "tf32"})
    assert found == ["precision.name: tf32 is a GPU's arithmetic; hardware.device is cpu"]
