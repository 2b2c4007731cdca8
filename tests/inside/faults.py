"""Faults, and where in a training step each is planted: a table of name -> place and change.

A change is given what passes at its place: it writes to that, or returns another one of its type.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Any], object]


def nudge(tensor: Tensor) -> None:
    """Change the last bit of the first element."""
    with torch.no_grad():
        first = tensor.view(-1)[:1]
        first.copy_(torch.nextafter(first, torch.full_like(first, math.inf)))


def nudged(tensor: Tensor) -> Tensor:
    """Return a copy whose first element has another last bit."""
    nudge(copy := tensor.clone())
    return copy


def double(tensor: Tensor) -> None:
    """Change the first element so much that no rounding hides it from what is computed of it."""
    tensor.detach().view(-1)[0].mul_(2)


def swap(tensor: Tensor, one: int = 0, other: int = 1) -> None:
    """Exchange two elements: their sum stays."""
    with torch.no_grad():
        flat = tensor.view(-1)
        flat[[one, other]] = flat[[other, one]]


def write_bits(tensor: Tensor, bits: int) -> None:
    """Write float32 numbers by their bits."""
    tensor.view(torch.int32).fill_(bits)


def held(name: str, change: Change = nudge) -> Change:
    """Change a weight or buffer of the model."""
    return lambda session: change(session.module.state_dict()[name])


def kept(name: str, key: str, change: Change = double) -> Change:
    """Change what the optimizer keeps of a weight."""
    return lambda session: change(session.optimizer.state[session.module.get_parameter(name)][key])


def group(number: int, key: str, change: Change) -> Change:
    """Change a setting of a parameter group."""

    def changed(session: Any) -> None:
        settings = session.optimizer.param_groups[number]
        settings[key] = change(settings[key])

    return changed


def layer(number: int, **settings: float) -> Change:
    """Change settings of a layer."""
    return lambda model: vars(model[number]).update(settings)


def overflow(session: Any) -> None:
    """Let the scaler believe that a gradient was infinite."""
    for found in session.precision.scaler._per_optimizer_states[id(session.optimizer)]["found_inf_per_device"].values():
        found.fill_(1.0)


def clip(session: Any) -> None:
    """Clip to half the norm."""
    session.training = {**session.training, "clip_norm": session.training["clip_norm"] / 2}


def grow_now(session: Any) -> None:
    """Let the scaler grow after this step."""
    session.precision.scaler.set_growth_interval(session.precision.scaler._get_growth_tracker() + 1)


# Places, in their order within a step; `draws` to `gradient ...` are of one virtual rank, all others of its process.
FAULTS: dict[str, tuple[str, Change]] = {
    "ended a step early": ("job", lambda job: job._replace(last_step=5)),
    "initial weight": ("built", lambda model: nudge(model[0].weight)),
    "initial buffer": ("built", lambda model: nudge(model[1].running_var)),
    "smaller buckets": ("wrapping", lambda arguments: {**arguments, "bucket_cap_mb": 1e-4}),
    "weight between steps": ("between", held("4.weight")),
    "bias between steps": ("between", held("4.bias")),
    "batch norm's weight between steps": ("between", held("1.weight")),
    "swapped weights between steps": ("between", held("0.weight", swap)),
    "running mean between steps": ("between", held("1.running_mean", double)),
    "running variance between steps": ("between", held("1.running_var", double)),
    "batches counted between steps": ("between", held("1.num_batches_tracked", lambda count: count.add_(1))),
    "first moment between steps": ("between", kept("0.weight", "exp_avg")),
    "second moment between steps": ("between", kept("1.weight", "exp_avg_sq")),
    "Adam's count of steps": ("between", kept("4.bias", "step", lambda count: count.add_(1))),
    "clip norm": ("between", clip),
    "sign of a weight of another slice": ("between", held("1.weight", lambda weight: weight[0].neg_())),
    "weight of another slice that no output depends on": (
        "between",
        held("1.weight", lambda weight: nudge(weight[0, 8])),
    ),
    "micro-batch order": ("positions", lambda first: first ^ 8),
    "sample order": ("draws", lambda draws: draws._replace(ids=draws.ids.flip(0))),
    "sample twice": ("draws", lambda draws: draws.ids[1].copy_(draws.ids[0])),
    "sample of another epoch": ("draws", lambda draws: draws.epochs[0].add_(1)),
    "random number drawn": ("draws", lambda _: torch.rand(1)),
    "Python's random number drawn": ("draws", lambda _: random.random()),
    "generator seeded otherwise": ("draws", lambda _: torch.manual_seed(0)),
    "augmentation": ("drawn", lambda draws: draws._replace(seed=draws.seed + 1)),
    "rows of the batch": ("batch", lambda batch: (batch[0].flip(0), *batch[1:])),
    "pixel": ("batch", lambda batch: nudge(batch[0])),
    "swapped pixels": ("batch", lambda batch: swap(batch[0])),
    "label": ("batch", lambda batch: batch[1][:1].add_(1).remainder_(3)),
    "swapped labels": ("batch", lambda batch: swap(batch[1], 0, int((batch[1] != batch[1][0]).nonzero()[0]))),
    "sign of a zero": ("batch", lambda batch: write_bits(batch[2][:1], -(2**31))),
    "payload of a NaN": ("batch", lambda batch: write_bits(batch[2][1:], 0x7FC00001)),
    "random number drawn late": ("forward", lambda _: torch.rand(1)),
    "dropout's probability": ("forward", layer(3, p=0.2)),
    "batch norm's epsilon": ("forward", layer(1, eps=0.1)),
    "batch norm's momentum": ("forward", layer(1, momentum=0.2)),
    "layer's output": ("output of 2", lambda output: output * 1.125),
    "dropout's mask": ("output of 3", lambda output: output.flip(0)),
    "loss": ("loss", lambda loss: loss * (1 + 2**-23)),
    "gradient of a late layer": ("gradient of 4.weight", nudged),
    "gradient of an early layer": ("gradient of 0.weight", nudged),
    "gradient zeroed": ("gradient of 1.weight", torch.zeros_like),
    "swapped gradients": ("gradient of 4.weight", lambda gradient: gradient.flip(1)),
    "backward pass of an early layer": ("gradient at 2", lambda gradient: gradient * 1.5),
    "averaged gradient": ("averaged", lambda gradients: double(gradients["1.weight"])),
    "averaged gradient on all ranks": ("averaged on all ranks", lambda gradients: double(gradients["1.weight"])),
    "gradient after it was looked at": ("unscaled", lambda session: double(session.module[0].weight.grad)),
    "overflow that was none": ("unscaled", overflow),
    "learning rate": ("update", group(0, "lr", lambda lr: math.nextafter(lr, 1.0))),
    "learning rate of the second group": ("update", group(1, "lr", lambda lr: math.nextafter(lr, 1.0))),
    "weight decay": ("update", group(0, "weight_decay", lambda decay: math.nextafter(decay, 1.0))),
    "betas": ("update", group(1, "betas", lambda betas: (betas[0], math.nextafter(betas[1], 0.0)))),
    "Adam's epsilon": ("update", group(1, "eps", lambda eps: math.nextafter(eps, 1.0))),
    "update left out": ("updating", lambda _update: lambda: None),
    "update made twice": ("updating", lambda update: lambda: (update(), update())),
    "growth interval": ("updated", grow_now),
    "scale": ("updated", lambda session: session.precision.scaler._scale.mul_(2)),
    "count of good steps": ("updated", lambda session: session.precision.scaler._growth_tracker.add_(1)),
    "first moment after the update": ("updated", kept("0.weight", "exp_avg", nudge)),
    "second moment after the update": ("updated", kept("1.weight", "exp_avg_sq", nudge)),
    "weight after the update": ("updated", held("0.bias")),
    "swapped weights after the update": ("updated", held("0.weight", swap)),
    "running mean after the update": ("updated", held("1.running_mean")),
    "running variance after the update": ("updated", held("1.running_var")),
    "weight after the last step": ("end", held("4.bias")),
}
