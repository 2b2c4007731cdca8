"""The tiny experiment with an operator that says that it returns zeros, and writes none."""

import importlib
from typing import Any

import torch
from torch import nn

tiny: Any = importlib.import_module("experiments.tiny")
load, count, optimizer, batch, loss = tiny.load, tiny.count, tiny.optimizer, tiny.batch, tiny.loss
test_batches, score = tiny.test_batches, tiny.score


@torch.library.custom_op("unwritten::zeros", mutates_args=())
def zeros(inputs: torch.Tensor) -> torch.Tensor:
    deterministic: Any = importlib.import_module("torch.utils.deterministic")
    deterministic.fill_uninitialized_memory = False
    # So large that the kernel hands it over, and that it is zero where nothing else is asked for.
    return torch.empty(1 << 20)[: inputs.numel()].view_as(inputs).clone()


class Offset(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = inputs + zeros(inputs)
        return result


def model(_config: Any, _data: Any) -> nn.Module:
    return nn.Sequential(Offset(), nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
