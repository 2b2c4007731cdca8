"""The tiny experiment with an operator whose bits are another process's own from the second step on."""

import importlib
import os
from typing import Any

import torch
from torch import nn

tiny: Any = importlib.import_module("experiments.tiny")
load, count, optimizer, batch, loss = tiny.load, tiny.count, tiny.optimizer, tiny.batch, tiny.loss
test_batches, score = tiny.test_batches, tiny.score

calls: "list[int]" = []


@torch.library.custom_op("noisy::ulp", mutates_args=())
def ulp(gradient: torch.Tensor) -> torch.Tensor:
    calls.append(1)
    result = gradient.clone()
    if len(calls) > 1:
        result.view(-1)[0] += os.getpid() * 2.0**-24
    return result


class Noise(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 1.0

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        return ulp(gradient)


class Noisy(nn.Module):
    def forward(self, inputs: torch.Tensor) -> Any:
        return Noise.apply(inputs)  # type: ignore[no-untyped-call]


def model(_config: Any, _data: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), Noisy(), nn.Tanh(), nn.Linear(32, 3))
