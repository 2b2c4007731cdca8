"""Tree sums between processes. Collectives only move bytes; every addition is one of ours, in the tree's order.

So the sum depends neither on the backend's algorithm, protocol and topology, nor on how gradients are put in buckets.
As many bytes move as in a ring: each process sends shards of its subtrees to their owner, which adds them up and
sends the sum back.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Callable

import torch
from torch import distributed
from torch.nn import functional

from runner.inside.tree import Subtree, fold, owned, push, shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from runner.inside.ranks import Ranks


# torch 2.13 gave it a new name.
_gather_into: Callable[..., object] = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)


class Exchange:
    """Sums flat tensors over all virtual ranks, in the order of the fixed tree."""

    def __init__(self, ranks: Ranks, virtual_ranks: int, *, aside: bool) -> None:
        self._ranks = ranks
        self._aside = aside
        self._shapes = [shape(owned(virtual_ranks, ranks.world_size, rank)) for rank in range(ranks.world_size)]
        self._queue: queue.SimpleQueue[tuple[list[Tensor], torch.futures.Future[Tensor]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        is_gpu = ranks.device.type == "cuda"
        self._stream = torch.cuda.Stream(ranks.device) if is_gpu else None  # type: ignore[no-untyped-call]

    def sum(self, subtrees: Sequence[Tensor]) -> Tensor:
        """Return the sum over all processes of what each has: flat tensors of one size, one for each of its subtrees.

        What is handed over may be written to.
        """
        if self._ranks.world_size == 1:
            return self._tree_sum(list(subtrees), 1)
        size, world_size = subtrees[0].numel(), self._ranks.world_size
        part = -(-size // world_size)
        padding = (0, part * world_size - size)
        # (W, subtrees, part): a block for each process, its shard of every subtree.
        sent = torch.stack([functional.pad(flat, padding).view(world_size, part) for flat in subtrees], 1)
        counts = [len(forest) * part for forest in self._shapes]
        received = sent.new_empty(sum(counts))
        distributed.all_to_all_single(received, sent.view(-1), counts, [len(subtrees) * part] * world_size)
        total = self._tree_sum(list(received.view(-1, part)), world_size)
        whole = total.new_empty(part * world_size)
        _gather_into(whole, total)
        return whole[:size]

    def start(self, subtrees: list[Tensor]) -> torch.futures.Future[Tensor]:
        """Do what `sum` does beside the backward pass. All processes must start the same sums in the same order."""
        if self._stream is not None:
            return self._start_on_stream(self._stream, subtrees)
        if not self._aside:
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(self.sum(subtrees))
            return done
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tree sums", daemon=True)
            self._thread.start()
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        self._queue.put((subtrees, future))
        return future

    def _start_on_stream(self, stream: torch.cuda.Stream, subtrees: list[Tensor]) -> torch.futures.Future[Tensor]:
        """Queue the sum on a stream of its own: a GPU's collectives and additions do not hold up the caller."""
        stream.wait_stream(torch.cuda.current_stream(self._ranks.device))
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[self._ranks.device])
        with torch.cuda.stream(stream):
            for flat in subtrees:
                flat.record_stream(stream)
            # The future remembers the stream; who waits for it makes its own stream wait.
            future.set_result(self.sum(subtrees))
        return future

    def _work(self) -> None:
        # One thread: the sums are made in the order in which the backward pass hands them over, on all processes.
        while True:
            subtrees, future = self._queue.get()
            try:
                result = self.sum(subtrees)
            except Exception as error:  # noqa: BLE001, it is raised where the future is waited for
                future.set_exception(error)  # type: ignore[arg-type, unused-ignore]
            else:
                future.set_result(result)

    def _tree_sum(self, flats: list[Tensor], processes: int) -> Tensor:
        places = [place for forest in self._shapes[:processes] for place in forest]
        forest: list[Subtree] = []
        for (first, leaves), flat in zip(places, flats):
            push(forest, Subtree(first, leaves, [flat]))
        (total,) = fold(forest)
        assert total is not None
        return total
