"""The virtual ranks of a process: each computes its share of a step alone, then all shares are averaged.

How many there are is part of the experiment, how many processes is not: a virtual rank has its own samples, random
numbers and running statistics, whoever computes it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from runner.inside.exchange import Exchange
from runner.inside.knobs import INEXACT
from runner.inside.refusal import Refused
from runner.inside.tree import Subtree, fold, owned, push

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from runner.inside.job import Job
    from runner.inside.ranks import Ranks


def _strides_in_bucket(parameter: Tensor) -> Sequence[int]:
    """Return how DDP lays a gradient out in a bucket: as the parameter is, where that leaves no gaps.

    `bucket.gradients()` does not say: it shows all as if they were contiguous.
    """
    spanned = 1 + sum((size - 1) * stride for size, stride in zip(parameter.size(), parameter.stride()))
    return parameter.stride() if spanned == parameter.numel() else parameter.contiguous().stride()


class VirtualRanks:
    """Gradients and running statistics of a process's virtual ranks, and their mean over all of them."""

    def __init__(self, module: nn.Module, ranks: Ranks, job: Job) -> None:
        self.count: int = job.spec["virtual_ranks"]
        self.own = owned(self.count, ranks.world_size, ranks.rank)
        self._ranks = ranks
        self._exact = job.spec["determinism"]["level"] not in INEXACT
        # A log of operators sees those of the thread that it looks on in.
        self._exchange = Exchange(ranks, self.count, aside=job.operators_step is None)
        self._parameters = list(module.parameters())
        self._places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        self._buffers = list(module.buffers()) if self.count > 1 else []
        self._start: list[Tensor] = []
        self._gradients: list[Subtree] = []
        self._statistics: list[Subtree] = []

    def distributed(self, module: nn.Module, reduce: Callable[[Any], torch.futures.Future[Tensor]]) -> Any:
        """Return a model whose backward pass hands its gradients to `reduce`, a bucket at a time, while it goes on."""
        # torch 2.13 gave the setting a new name.
        is_new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        # Buffers are averaged after the step. A gradient that lives in a bucket cannot be put aside.
        buffers: dict[str, Any] = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
        model = DistributedDataParallel(module, gradient_as_bucket_view=len(self.own) == 1, **buffers)
        model.register_comm_hook(None, lambda _state, bucket: reduce(bucket))
        return model

    def gather(self, losses: Sequence[float], *, is_asked_to_stop: bool) -> tuple[list[float], bool]:
        """Return the losses of all virtual ranks, and whether any process was asked to stop: all agree on it."""
        most = -(-self.count // self._ranks.world_size)
        told = [float(is_asked_to_stop), float(len(losses)), *losses, *[0.0] * (most - len(losses))]
        gathered = self._ranks.gather_numbers(told)
        every = [loss for _, count, *own in gathered for loss in own[: int(count)]]
        return every, any(is_asked for is_asked, *_ in gathered)

    def begin_step(self) -> None:
        """Remember the buffers that every virtual rank starts from."""
        self._start = [buffer.clone() for buffer in self._buffers]
        self._gradients, self._statistics = [], []

    def begin(self) -> None:
        """Start a virtual rank where the step started."""
        for buffer, start in zip(self._buffers, self._start):
            buffer.copy_(start)

    def end(self, number: int, look: Callable[[Sequence[Tensor | None]], None]) -> None:
        """Take a virtual rank's gradients and statistics, so that the next one starts without any.

        `look` sees the gradients; those that the backward pass has handed to `reduce` are seen there.
        """
        if self.count == 1:
            return
        # Counters among the buffers go the same way on every virtual rank; statistics do not.
        statistics: list[Tensor | None] = [buffer.clone() for buffer in self._buffers if buffer.is_floating_point()]
        push(self._statistics, Subtree(number, 1, statistics))
        if self._ranks.world_size == 1 or number != self.own[-1]:
            gradients = [parameter.grad for parameter in self._parameters]
            look(gradients)
            push(self._gradients, Subtree(number, 1, gradients))
            for parameter in self._parameters:
                parameter.grad = None

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Average a bucket of this process's last virtual rank with all others: DDP's communication hook."""
        if not self._exact:
            return allreduce_hook(None, bucket)  # type: ignore[arg-type, unused-ignore]
        forest = [Subtree(tree.first, tree.leaves, [self._packed(tree, bucket)]) for tree in self._gradients]
        push(forest, Subtree(self.own[-1], 1, [bucket.buffer()]))
        future = self._exchange.start([flat for tree in forest for flat in tree.tensors if flat is not None])
        return future.then(lambda done: done.value().div_(self.count))

    def _packed(self, tree: Subtree, bucket: Any) -> Tensor:
        """Return the gradients of a bucket's parameters that earlier virtual ranks left, laid out as the bucket is."""
        flat = bucket.buffer()
        packed = torch.zeros_like(flat)
        for parameter, like in zip(bucket.parameters(), bucket.gradients()):
            gradient = tree.tensors[self._places[id(parameter)]]
            if gradient is not None:
                offset = like.storage_offset() - flat.storage_offset()
                packed.as_strided(parameter.size(), _strides_in_bucket(parameter), offset).copy_(gradient)
        return packed

    def finish(self) -> None:
        """Leave the means of gradients and statistics where the optimizer and the next step look for them."""
        if self.count == 1:
            return
        if self._ranks.world_size == 1:
            for parameter, total in zip(self._parameters, fold(self._gradients)):
                parameter.grad = None if total is None else total.div_(self.count)
        buffers = [buffer for buffer in self._buffers if buffer.is_floating_point()]
        for dtype in sorted({buffer.dtype for buffer in buffers}, key=str):
            self._average(buffers, [place for place, buffer in enumerate(buffers) if buffer.dtype == dtype])

    def _average(self, buffers: Sequence[Tensor], places: Sequence[int]) -> None:
        flats = [
            torch.cat([tensor.reshape(-1) for tensor in map(tree.tensors.__getitem__, places) if tensor is not None])
            for tree in self._statistics
        ]
        sizes = [buffers[place].numel() for place in places]
        means = torch.split(self._exchange.sum(flats).div_(self.count), sizes)
        for place, mean in zip(places, means):
            buffers[place].copy_(mean.view_as(buffers[place]))


def micro_batch_size(job: Job) -> int:
    """Return the samples of one micro-batch. Raises Refused unless all are of one size."""
    training, virtual_ranks = job.config["training"], job.spec["virtual_ranks"]
    batch_size, parts = training["batch_size"], virtual_ranks * training["micro_batches"]
    if batch_size % parts:
        raise Refused(
            f"training.batch_size: {batch_size} samples cannot be shared equally by "
            f"{virtual_ranks} ranks x {training['micro_batches']} micro-batches",
            hint=f"training.batch_size={-(-batch_size // parts) * parts}",
        )
    return int(batch_size // parts)
