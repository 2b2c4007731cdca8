"""What a training step computed, digested and appended to the trace of its rank."""

from __future__ import annotations

import array
import hashlib
import math
import random
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from runner.inside import trace
from runner.inside.digests import digest_of_tensors, raw_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

    from torch import Tensor, nn

    from runner.inside.job import Job
    from runner.inside.ranks import Ranks
    from runner.inside.seeding import Draws


class Recorder:
    """Looks at each step of one rank; a step's record is with the system when `end` returns."""

    def __init__(
        self,
        job: Job,
        ranks: Ranks,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        knobs: Mapping[str, object],
    ) -> None:
        self._optimizer = optimizer
        self._parameters = dict(model.named_parameters())
        self._buffers = dict(model.named_buffers())
        self._world_size = ranks.world_size
        slices = trace.slices_for(sum(map(_size, self._parameters.values())))
        header = trace.Header(
            level=job.spec["determinism"]["level"],
            rank=ranks.rank,
            world_size=ranks.world_size,
            torch=torch.__version__,
            knobs=knobs,
            weights=digest_of_tensors(model.state_dict()),
            slices=slices,
            parameters=_table(self._parameters, slices),
            buffers=_table(self._buffers, slices),
        )
        self.chain = trace.first_link(header.weights)
        self._header, self._layout = header, trace.layout(header)
        self._streams = {name: hashlib.sha256() for name in ("sample_ids", "batch", "output")}
        self._channels: dict[str, bytes] = {}
        self._tensors: dict[str, list[bytes]] = {}
        self._local: dict[int, Tensor] = {}
        self._step = 0
        model.register_forward_hook(self._see_output)
        self._file = (job.out / trace.file_name(ranks.rank)).open("wb", buffering=0)
        self._file.write(header.line())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def begin(self, step: int) -> None:
        """Look at what a step starts from."""
        self._step = step
        self._streams = {name: hashlib.sha256() for name in self._streams}
        self._channels["rng_before"] = _digest_of_generators()
        self._look("weights_before", self._parameters_now())

    def see_samples(self, draws: Draws) -> None:
        """Take in the samples of a micro-batch."""
        self._stream("sample_ids", (draws.ids, draws.epochs))

    def see_batch(self, batch: object) -> None:
        """Take in what a micro-batch is computed from."""
        self._stream("batch", batch)

    def _see_output(self, module: nn.Module, _inputs: object, output: object) -> None:
        # The experiment's loss is all that the loop is given; what it is computed from passes here.
        if module.training:
            self._stream("output", output)

    def average(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Average a bucket of gradients over the ranks, and keep what this rank's own were: DDP's hook."""
        wanted = {id(parameter) for parameter in self._parameters_now()}
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients()):
            if id(parameter) in wanted:
                # A copy, digested later: other ranks wait for this bucket.
                self._local[id(parameter)] = gradient.clone()
        return allreduce_hook(None, bucket)  # type: ignore[arg-type, unused-ignore]

    def see_gradients(self) -> None:
        """Look at the gradients of all micro-batches and ranks, as the backward pass left them."""
        parameters = self._parameters_now()
        self._look("reduced_grad", [parameter.grad for parameter in parameters])
        if self._world_size == 1:
            self._channels["local_grad"] = self._channels["reduced_grad"]
            self._tensors["local_grad"] = self._tensors["reduced_grad"]
        else:
            self._look("local_grad", [self._local.get(id(parameter)) for parameter in parameters])
            self._local.clear()

    def end(self, loss: float, grad_norm: float | None, scaler: Any) -> None:
        """Look at what a step leaves, and append its record."""
        channels, state = self._channels, scaler.state_dict()
        channels.update({name: stream.digest()[: trace.WORD_BYTES] for name, stream in self._streams.items()})
        channels["loss"] = trace.word(loss)
        channels["grad_norm"] = trace.word(math.nan if grad_norm is None else grad_norm)
        channels["scale"] = trace.word(state.get("scale", 1.0))
        channels["growth"] = trace.word(state.get("_growth_tracker", 0), real=False)
        channels["lr"] = trace.word(float(self._optimizer.param_groups[0]["lr"]))
        channels["settings"] = self._digest_of_settings()
        parameters = self._parameters_now()
        self._look("optimizer", [self._optimizer.state.get(parameter) for parameter in parameters])
        self._look("buffers", [self._buffers[entry.name] for entry in self._header.looked_at("buffers", self._step)])
        self._look("weights", parameters)
        content = trace.pack(self._layout, self._step, channels, self._tensors)
        self.chain = trace.link(self.chain, content)
        self._file.write(content + self.chain)

    def _parameters_now(self) -> list[Tensor]:
        return [self._parameters[entry.name] for entry in self._header.looked_at("weights", self._step)]

    def _look(self, channel: str, tensors: Iterable[object]) -> None:
        words = [_digest(tensor) for tensor in tensors]
        self._tensors[channel] = words
        self._channels[channel] = trace.digest_of(words)

    def _stream(self, name: str, value: object) -> None:
        for tensor in _tensors_in(value):
            self._streams[name].update(raw_bytes(_plain(tensor)))

    def _digest_of_settings(self) -> bytes:
        groups = [
            sorted((key, repr(value)) for key, value in group.items() if key != "params")
            for group in self._optimizer.param_groups
        ]
        return trace.digest_of([repr(groups).encode()])


def _table(tensors: Mapping[str, Tensor], slices: int) -> tuple[trace.Tensor, ...]:
    places = trace.sliced([_size(tensor) for tensor in tensors.values()], slices)
    return tuple(
        trace.Tensor(name, tuple(tensor.shape), str(tensor.dtype).replace("torch.", ""), place)
        for (name, tensor), place in zip(tensors.items(), places)
    )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _digest(value: object) -> bytes:
    """Return the digest of a tensor, or of all that a mapping holds; nothing's is zeros."""
    if value is None:
        return trace.NOTHING
    content = hashlib.sha256()
    for tensor in _tensors_in(value):
        content.update(raw_bytes(_plain(tensor)))
    return content.digest()[: trace.WORD_BYTES]


def _tensors_in(value: object) -> Iterable[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _tensors_in(value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in(item)


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor whose memory, read from its start, is its content: a copy only where there is no other way."""
    tensor = tensor.detach().cpu()
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):  # noqa: PLR2004, n, c, h, w
        return tensor
    return tensor.contiguous()


def _digest_of_generators() -> bytes:
    python = random.getstate()
    states = [torch.get_rng_state()] + (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
    content = hashlib.sha256(array.array("L", python[1]))
    for state in states:
        content.update(raw_bytes(state))
    return content.digest()[: trace.WORD_BYTES]
