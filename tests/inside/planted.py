"""Many small runs in one process, clean ones and faulty ones, so that replays can be judged by them.

`python -m inside.planted FOLDER NAME…` makes FOLDER/NAME/out of each FOLDER/NAME/spec.json. A name is a fault of
faults.py; with a number after `#` it is any other run. With RANK in the environment, this is one of several processes.
"""

import importlib
import json
import math
import os
import sys
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inside.faults import FAULTS
from runner.inside import loop, ranks
from runner.inside.job import Job
from runner.inside.refusal import Refused
from runner.inside.session import Session
from runner.inside.watch import Watch

tiny: Any = importlib.import_module("experiments.tiny")
virtual_ranks: Any = importlib.import_module("runner.inside.virtual_ranks")
STEP = 4
OF_A_RUN = ("job", "built", "wrapping")
OF_A_VIRTUAL_RANK = ("positions", "draws", "drawn", "batch", "forward", "output", "loss", "gradient")


def wide(_config: Any, _data: Any) -> nn.Sequential:
    """Return a model of four slices. Its ninth input is always zero: no output depends on the weights behind it."""
    layers = (nn.ConstantPad1d((0, 1), 0.0), nn.Linear(9, 256), nn.Tanh(), nn.Linear(256, 256), nn.Linear(256, 3))
    return nn.Sequential(*layers)


def large_layers(_config: Any, _data: Any) -> nn.Sequential:
    """Return a model without small tensors, which another order of adding may leave as they are."""
    return nn.Sequential(nn.Linear(8, 128, bias=False), nn.Tanh(), nn.Linear(128, 3, bias=False))


MODELS = {"tiny": tiny.model, "wide": wide, "large layers": large_layers}


class Planted:
    """The tiny experiment with one fault: in step 4, of the middle one of several virtual ranks."""

    def __init__(self, name: str) -> None:
        self.place, self.change = FAULTS.get(name, ("nowhere", lambda value: value))
        self.session: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(tiny, name)

    def at(self, place: str, value: Any) -> Any:
        """Return what passes at a place, changed if the fault is due there."""
        if place != self.place or not self._is_due(place):
            return value
        changed = self.change(value)
        return changed if type(changed) is type(value) else value

    def _is_due(self, place: str) -> bool:
        if place in OF_A_RUN:
            return True
        session = self.session
        step = {"between": STEP - 1, "end": session.training["steps"]}.get(place, STEP)
        if step != session._step or place.endswith("on all ranks"):
            return bool(step == session._step)
        number, own = session.shares.count // 2, session.shares.own
        if place.startswith(OF_A_VIRTUAL_RANK):
            return bool(own[session._place] == number)
        return number in own

    def model(self, config: Any, data: Any) -> nn.Module:
        model: Any = MODELS[config["model"].get("kind", "tiny")](config, data)
        for name, parameter in model.named_parameters():
            parameter.register_hook(partial(self.at, f"gradient of {name}"))
        for number, layer in enumerate(model):
            layer.register_forward_hook(partial(self._output, number))
        self.at("built", model)
        assert isinstance(model, nn.Module)
        return model

    def _output(self, number: int, _layer: nn.Module, _inputs: Any, output: Any) -> Any:
        output = self.at(f"output of {number}", output)
        if output.requires_grad:
            output.register_hook(partial(self.at, f"gradient at {number}"))
        return output

    def optimizer(self, config: Any, model: nn.Module) -> torch.optim.Optimizer:
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        optimizer = torch.optim.AdamW([{"params": matrices}, {"params": others}], lr=config["optim"]["lr"], fused=True)
        update = optimizer.step

        def once() -> None:
            update()

        def step() -> None:
            self.at("update", self.session)
            self.at("updating", once)()
            self.at("updated", self.session)

        optimizer.step = step  # type: ignore[method-assign, assignment]
        return optimizer

    def batch(self, config: Any, data: Any, draws: Any) -> Any:
        inputs, labels = tiny.batch(config, data, self.at("drawn", draws))
        # What no result depends on is of the batch all the same.
        return self.at("batch", (inputs, labels, torch.tensor([0.0, math.nan])))

    def loss(self, model: Any, batch: Any) -> Any:
        self.at("forward", self.session.module)
        return self.at("loss", tiny.loss(model, batch))


class PlantedSampler:
    """A sampler whose draws pass a place for faults."""

    def __init__(self, planted: Planted, sampler: Any) -> None:
        self._planted = planted
        self._sampler = sampler

    def draws(self, first: int, count: int) -> Any:
        return self._planted.at("draws", self._sampler.draws(self._planted.at("positions", first), count))


class PlantedSession(Session):
    """A session with places for faults between its own parts."""

    planted: Planted

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        arguments = self.planted.at("wrapping", {})
        virtual_ranks.DistributedDataParallel = partial(DistributedDataParallel, **arguments)
        prepared = super().prepare(model, optimizer)
        finish, scaler = self.shares.finish, self.precision.scaler
        unscale = scaler.unscale_

        def planted_finish() -> None:
            finish()
            if self.ranks.world_size == 1:
                self._averaged({name: parameter.grad for name, parameter in self.module.named_parameters()})

        def planted_unscale(optimizer: torch.optim.Optimizer) -> None:
            unscale(optimizer)
            self.planted.at("unscaled", self)

        self.shares.finish = planted_finish  # type: ignore[method-assign]
        scaler.unscale_ = planted_unscale
        return prepared

    def _reduce(self, bucket: Any) -> Any:
        return super()._reduce(bucket).then(lambda done: self._averaged_flat(bucket, done.value()))

    def _averaged_flat(self, bucket: Any, flat: Tensor) -> Tensor:
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        shift = flat.storage_offset() - bucket.buffer().storage_offset()
        self._averaged(
            {
                names[id(parameter)]: flat.as_strided(like.size(), like.stride(), like.storage_offset() + shift)
                for parameter, like in zip(bucket.parameters(), bucket.gradients(), strict=True)
            }
        )
        return flat

    def _averaged(self, gradients: Any) -> None:
        self.planted.at("averaged", gradients)
        self.planted.at("averaged on all ranks", gradients)

    def micro_batches(self, sampler: Any) -> Any:
        return super().micro_batches(PlantedSampler(self.planted, sampler))  # type: ignore[arg-type]

    def step(self) -> None:
        super().step()
        self.planted.at("between", self)

    def finish(self, metrics: Any = None) -> None:
        self.planted.at("end", self)
        super().finish(metrics)


def main() -> None:
    """Run what argv names."""
    folder, *names = Path(sys.argv[1]), *sys.argv[2:]
    place = None
    for name in names:
        planted: Any = Planted(name.partition("#")[0])
        spec, out = json.loads((folder / name / "spec.json").read_bytes()), folder / name / "out"
        out.mkdir(exist_ok=True)
        job = Job(spec=spec, out=out, data=folder, nonce="n", log_every_steps=100, hang_timeout_s=300.0)
        job = planted.at("job", job)
        place = place or ranks.join(job)
        with ExitStack() as stack:
            watch = stack.enter_context(Watch(out / "errors" / f"rank{place.rank}.txt", 300.0, alone=False))
            session = stack.enter_context(PlantedSession(job, place, watch))
            planted.session, session.planted = session, planted
            # Ranks whose weights have drifted apart are refused at the end; the traces are there.
            stack.enter_context(suppress(Refused))
            loop.train(session, planted)
    if place is not None:
        ranks.leave(place)


if __name__ == "__main__":
    main()
    # As a run's own process ends: threads that add up gradients still wait for work, and torch is torn down below them.
    os._exit(0)
