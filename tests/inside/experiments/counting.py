"""The tiny experiment with a loss that depends on how many processes compute it."""

import importlib
from typing import Any

import torch
from torch import distributed

tiny: Any = importlib.import_module("experiments.tiny")
load, count, model, optimizer, batch = tiny.load, tiny.count, tiny.model, tiny.optimizer, tiny.batch
test_batches, score = tiny.test_batches, tiny.score


def loss(model: Any, batch: Any) -> torch.Tensor:
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    mean: torch.Tensor = tiny.loss(model, batch)
    return mean * (1 + processes / 64)
