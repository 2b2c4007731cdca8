"""A shipped experiment, trained for a measurement: its settings from conf/, made-up data, a pause after each step."""

import datetime as dt
import gzip
import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from runner.conf.compose import compose
from runner.config import hyperparameters, virtual_ranks
from runner.machine import probe
from runner.resolve import determinism_pin

ROOT = Path(__file__).parent.parent
HANG_TIMEOUT_S = 86400.0
# torch says so whenever it is imported where there is no NumPy, and of collectives that got new names.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy|.*is deprecated")


def make_spec(words: Sequence[str]) -> dict[str, Any]:
    """Return the spec that xrun would run for these words, without what only a lock knows."""
    config = compose(ROOT / "conf", words)
    pin = determinism_pin(config)
    return {
        "config": hyperparameters(config),
        "ranks": config.hardware.ranks,
        "virtual_ranks": virtual_ranks(config),
        "hardware": {"device": config.hardware.device, "threads": config.hardware.threads},
        "determinism": {"level": pin.level, "environment": dict(pin.environment)},
        "data": {},
    }


def variables(spec: dict[str, Any]) -> dict[str, str]:
    """Return what must be in the environment before torch is imported."""
    return {"OMP_WAIT_POLICY": "PASSIVE", **spec["determinism"]["environment"]}


def on_this_machine() -> dict[str, str]:
    """Return what a number was measured on, and when."""
    return {
        "cpu": probe().cpu,
        "torch": importlib.metadata.version("torch"),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def write_data(folder: Path) -> None:
    """Write data sets of the shipped experiments' forms: how fast a step is does not depend on what is in them."""
    images = folder / "fashion-mnist"
    images.mkdir(parents=True)
    for kind, count in (("train", 2048), ("t10k", 64)):
        for part, sizes in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            total = count * (784 if len(sizes) > 1 else 1)
            content = bytes(number * 37 % 10 for number in range(total))
            head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
            (images / f"{kind}-{part}-ubyte.gz").write_bytes(gzip.compress(head + content, 1))
    text = folder / "kjv"
    text.mkdir()
    letters = "".join(map(chr, range(32, 110)))  # about as many characters as the data set has
    (text / "text.txt").write_text(f"in the beginning was the word and so on\n{letters}\n" * 2000)


def training(spec: dict[str, Any], data: Path, out: Path, stack: ExitStack) -> Iterator[Any]:
    """Train as the shipped loop does, without evaluations and checkpoints. Yields the session after each step."""
    from runner.inside import ranks  # noqa: PLC0415, they import torch, which reads the variables
    from runner.inside.job import Job  # noqa: PLC0415
    from runner.inside.seeding import Sampler  # noqa: PLC0415
    from runner.inside.session import Session  # noqa: PLC0415
    from runner.inside.watch import Watch  # noqa: PLC0415

    experiment = importlib.import_module(f"experiments.{spec['config']['experiment']['module']}")
    job = Job(spec, out, data, "n", spec["config"]["training"]["steps"], HANG_TIMEOUT_S)
    place = ranks.join(job)
    alone = place.world_size == 1
    watch = stack.enter_context(Watch(out / "errors" / f"rank{place.rank}.txt", HANG_TIMEOUT_S, alone=alone))
    session = stack.enter_context(Session(job, place, watch))
    loaded = experiment.load(job.config, data)
    model = experiment.model(job.config, loaded)
    model, _ = session.prepare(model, experiment.optimizer(job.config, model))
    sampler = Sampler(job.config["seed"], experiment.count(loaded))
    for _ in session.steps():
        for draws in session.micro_batches(sampler):
            batch = session.to_device(experiment.batch(job.config, loaded, draws))
            with session.autocast():
                loss = experiment.loss(model, batch)
            session.backward(loss)
        session.step()
        yield session
