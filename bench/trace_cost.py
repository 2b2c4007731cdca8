"""What the trace costs: the share of a training step that the recorder takes, for a shipped experiment's settings.

CPU time is counted, not the clock, so that a busy machine gives the same answer: the recorder runs on one thread, the
step on all, so a step's share is recorder / (step / threads).

python -m bench.trace_cost resnet50 --steps 40        (from the repository's folder; data are random bytes)
"""

import argparse
import gzip
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "resnet50": {
        "model": {"classes": 10, "zero_init_residual": True},
        "optim": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005},
        "data": {"image_size": 16, "shift": 0, "mirror": True, "test_images": 0, "test_batch_size": 1},
        "batch_size": 64,
    },
    "chargpt": {
        "model": {"layers": 3, "heads": 4, "width": 128, "context": 64, "dropout": 0.1},
        "optim": {"lr": 0.003, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99},
        "data": {"text": "text", "test_windows": 1, "test_batch_size": 1},
        "batch_size": 32,
    },
}
METHODS = ("begin", "see_samples", "see_batch", "_see_output", "see_gradients", "end")


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("experiment", choices=SETTINGS)
    words.add_argument("--steps", type=int, default=40)
    words.add_argument("--threads", type=int, default=2)
    asked = words.parse_args()
    variables = _environment(asked.threads)
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.execve(sys.executable, [sys.executable, "-m", "bench.trace_cost", *sys.argv[1:]], os.environ | variables)
    with tempfile.TemporaryDirectory() as folder:
        _measure(asked.experiment, asked.steps, asked.threads, Path(folder))


def _environment(threads: int) -> dict[str, str]:
    from runner.levels import environment  # noqa: PLC0415, before torch reads the variables

    return environment("portable-v3", threads)


def _measure(name: str, steps: int, threads: int, folder: Path) -> None:
    from runner.inside import ranks, recorder  # noqa: PLC0415, they import torch, which reads the variables
    from runner.inside.job import Job  # noqa: PLC0415
    from runner.inside.seeding import Sampler  # noqa: PLC0415
    from runner.inside.session import Session  # noqa: PLC0415
    from runner.inside.watch import Watch  # noqa: PLC0415

    spent = _timed(recorder.Recorder)
    experiment = importlib.import_module(f"experiments.{name}")
    job = Job(_spec(name, steps, threads), folder, folder, "n", steps, 600.0)
    _write_data(folder)
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(folder / "errors" / "rank0.txt", 600.0, alone=True))
        session = stack.enter_context(Session(job, ranks.join(job), watch))
        data = experiment.load(job.config, folder)
        model = experiment.model(job.config, data)
        model, _ = session.prepare(model, experiment.optimizer(job.config, model))
        sampler = Sampler(0, experiment.count(data))
        walls, costs = [], []
        begun_s, before_s = time.process_time(), sum(spent)
        for _ in session.steps():
            for draws in session.micro_batches(sampler):
                batch = session.to_device(experiment.batch(job.config, data, draws))
                session.backward(experiment.loss(model, batch))
            session.step()
            walls.append((time.process_time() - begun_s) / threads)
            costs.append(sum(spent) - before_s)
            begun_s, before_s = time.process_time(), sum(spent)
        slices = session._trace._header.slices  # noqa: SLF001
    shares = [cost / wall for cost, wall in zip(costs, walls, strict=True)]
    print(
        json.dumps(
            {
                "experiment": name,
                "slices": slices,
                "step_ms": round(statistics.median(walls) * 1e3, 2),
                "trace_ms_median": round(statistics.median(costs) * 1e3, 3),
                "trace_ms_mean": round(statistics.mean(costs[1:]) * 1e3, 3),
                "share_median": round(statistics.median(shares), 5),
                "share_of_total": round(sum(costs[1:]) / sum(walls[1:]), 5),
            }
        )
    )


def _timed(kind: Any) -> list[float]:
    spent: list[float] = [0.0]

    def timed(method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            begun_s = time.thread_time()
            try:
                return method(*arguments, **named)
            finally:
                spent[0] += time.thread_time() - begun_s

        return call

    for name in METHODS:
        setattr(kind, name, timed(getattr(kind, name)))
    return spent


def _spec(name: str, steps: int, threads: int) -> dict[str, Any]:
    settings = SETTINGS[name]
    training = {"steps": steps, "batch_size": settings["batch_size"], "micro_batches": 1}
    return {
        "config": {
            "seed": 0,
            **{group: settings[group] for group in ("model", "optim", "data")},
            "training": training,
            "schedule": {"kind": "constant", "warmup_steps": 0, "final_scale": 1.0},
            "precision": "fp32",
        },
        "ranks": 1,
        "virtual_ranks": 1,
        "hardware": {"device": "cpu", "threads": threads},
        "determinism": {"level": "portable-v3", "environment": _environment(threads)},
    }


def _write_data(folder: Path) -> None:
    images = folder / "fashion-mnist"
    images.mkdir()
    for kind, count in (("train", 2048), ("t10k", 64)):
        for part, sizes in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            total = count * (784 if len(sizes) > 1 else 1)
            content = bytes(number * 37 % 10 for number in range(total))
            head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
            (images / f"{kind}-{part}-ubyte.gz").write_bytes(gzip.compress(head + content, 1))
    text = folder / "text"
    text.mkdir()
    (text / "text.txt").write_text("in the beginning was the word and so on\n" * 2000)


if __name__ == "__main__":
    main()
