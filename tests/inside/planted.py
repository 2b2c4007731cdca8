"""Many small runs in one process: clean ones, and one for each fault, which a run of real steps must show.

`python planted.py FOLDER NAME…` leaves FOLDER/NAME/ of each; with RANK in the environment it is one of two ranks.
"""

import contextlib
import importlib
import json
import math
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.inside import loop, ranks
from runner.inside.job import Job
from runner.inside.refusal import Refused
from runner.inside.session import Session
from runner.inside.watch import Watch

tiny: Any = importlib.import_module("experiments.tiny")
STEP = 4
RANK = int(os.environ.get("RANK", "0"))


class Planted:
    """The tiny experiment, with one fault at one step (of rank 1, where there are two)."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.step = 0
        self.session: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(tiny, name)

    def is_due(self, fault: str, step: int = STEP) -> bool:
        return (self.fault, self.step, self.session.ranks.world_size) == (fault, step, RANK + 1)

    def model(self, config: Any, data: Any) -> nn.Module:
        model = tiny.model(config, data)
        model[4].weight.register_hook(self.gradient)
        model[3].register_forward_hook(self.dropout)
        if self.fault == "initial weight":
            nudge(model[0].weight)
        assert isinstance(model, nn.Module)
        return model

    def optimizer(self, config: Any, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = tiny.optimizer(config, model)
        assert isinstance(optimizer, torch.optim.Optimizer)
        optimizer.register_step_pre_hook(self.before_update)
        optimizer.register_step_post_hook(self.after_update)
        return optimizer

    def batch(self, config: Any, data: Any, draws: Any) -> Any:
        self.step += 1
        if self.is_due("sample order"):
            draws = draws._replace(ids=draws.ids.flip(0))
        inputs, labels = tiny.batch(config, data, draws)
        if self.is_due("random generator"):
            torch.rand(1)
        if self.is_due("python's random generator"):
            random.random()
        if self.is_due("pixel"):
            nudge(inputs)
        if self.is_due("swapped inputs"):
            inputs.view(-1)[[0, 1]] = inputs.view(-1)[[1, 0]]
        if self.is_due("label"):
            labels[0] = (labels[0] + 1) % 3
        return inputs, labels

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        loss = tiny.loss(model, batch)
        assert isinstance(loss, torch.Tensor)
        return loss * (1 + 2**-23) if self.is_due("loss") else loss

    def dropout(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> "torch.Tensor | None":
        return output.flip(0) if self.is_due("dropout") else None

    def gradient(self, gradient: torch.Tensor) -> "torch.Tensor | None":
        if self.is_due("gradient"):
            nudge(gradient := gradient.clone())
        if self.is_due("swapped gradients"):
            gradient = gradient.clone()
            gradient.view(-1)[[0, 1]] = gradient.view(-1)[[1, 0]]
        return gradient

    def before_update(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        group = optimizer.param_groups[0]
        if self.is_due("learning rate"):
            group["lr"] = math.nextafter(group["lr"], 1.0)
        if self.is_due("optimizer setting"):
            group["weight_decay"] += 1e-9
        if self.is_due("optimizer state"):
            nudge(optimizer.state[group["params"][2]]["exp_avg_sq"])

    def after_update(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        parameters, module = optimizer.param_groups[0]["params"], self.session.module
        if self.is_due("weight after the update"):
            nudge(parameters[1])
        if self.is_due("swapped weights after the update"):
            parameters[0].data[[0, 1]] = parameters[0].data[[1, 0]]
        if self.is_due("buffer"):
            nudge(module[1].running_var)
        if self.is_due("scaler"):
            self.session.precision.scaler._scale.mul_(2)
        if self.is_due("growth"):
            self.session.precision.scaler._growth_tracker.add_(1)


def nudge(tensor: torch.Tensor) -> None:
    """Change the last bit of the first element."""
    with torch.no_grad():
        first = tensor.view(-1)[:1]
        first.copy_(torch.nextafter(first, torch.full_like(first, math.inf)))


BETWEEN: "dict[str, Callable[[Any], object]]" = {
    "weight between steps": lambda session: nudge(session.module[4].bias),
    "optimizer state between steps": lambda session: nudge(next(iter(session.optimizer.state.values()))["exp_avg"]),
}


class PlantedSession(Session):
    """A session in which something happens between two steps."""

    planted: Planted

    def step(self) -> None:
        super().step()
        planted = self.planted
        if planted.fault in BETWEEN and planted.is_due(planted.fault, STEP - 1):
            BETWEEN[planted.fault](self)


def main() -> None:
    """Run what argv names."""
    folder, *names = Path(sys.argv[1]), *sys.argv[2:]
    spec = json.loads((folder / "spec.json").read_bytes())
    place = None
    for name in names:
        out = folder / name.replace(" ", "-")
        out.mkdir(exist_ok=True)
        job = Job(spec=spec, out=out, data=folder, nonce="n", log_every_steps=100, hang_timeout_s=300.0)
        place = place or ranks.join(job)
        with Watch(out / "errors" / f"rank{RANK}.txt", 300.0, alone=False) as watch:
            planted: Any = Planted(name.rpartition("#")[0] or name)
            with PlantedSession(job, place, watch) as session:
                planted.session, session.planted = session, planted
                # Ranks whose weights have drifted apart are refused at the end; the traces are there.
                with contextlib.suppress(Refused):
                    loop.train(session, planted)


if __name__ == "__main__":
    main()
