"""What a training step computed, digested and appended to the traces of a process's virtual ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from runner.inside import trace
from runner.inside.digests import digest_of_tensors
from runner.inside.lane import Lane
from runner.inside.operators import OperatorLog
from runner.inside.seeding import generators
from runner.inside.tree import owned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from torch import Tensor, nn

    from runner.inside.continuation import Continuation
    from runner.inside.job import Job
    from runner.inside.ranks import Ranks
    from runner.inside.seeding import Draws
    from runner.inside.state import State


class Recorder:
    """Looks at each step; its records are with the system when `end` returns."""

    def __init__(
        self,
        job: Job,
        ranks: Ranks,
        state: State,
        header: trace.Header,
        past: Continuation | None,
    ) -> None:
        self._job, self._ranks, self._state = job, ranks, state
        self._operators: OperatorLog | None = None
        self._optimizer = state.optimizer
        self._parameters = dict(state.module.named_parameters())
        self._places = {id(parameter): place for place, parameter in enumerate(self._parameters.values())}
        self._buffers = dict(state.module.named_buffers())
        self._header, self._layout = header, trace.layout(header)
        self._step = past.step if past else 0
        self._lanes = []
        for number in owned(header.virtual_ranks, ranks.world_size, ranks.rank):
            chain = past.take_over(number, header, job.out) if past else trace.first_link(header.weights)
            file = (job.out / trace.file_name(number)).open("ab", buffering=0)
            if past is None:
                file.write(header._replace(virtual_rank=number).line())
            self._lanes.append(Lane(file, chain))
        self._lane = self._lanes[0]
        # What all virtual ranks share: digested once a step, written into each one's record.
        self._shared = Lane(None, b"")
        self._local: dict[int, Tensor] = {}
        state.module.register_forward_hook(self._see_output)

    @property
    def chains(self) -> list[bytes]:
        """The heads of the chains of this process's virtual ranks."""
        return [lane.chain for lane in self._lanes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_operators()
        for lane in self._lanes:
            lane.file.close()

    def begin(self, step: int) -> None:
        """Look at what a step starts from; from here on at its operators, too, if they are asked for."""
        self._step = step
        if step == self._job.operators_step:
            self._operators = OperatorLog(self._job.out, self._ranks.rank, self._state.module)
            self._operators.__enter__()
        self._shared.look("weights_before", self._parameters_now())
        for lane in self._lanes:
            lane.begin()

    def enter(self, place: int) -> None:
        """From here on look at another virtual rank of this process, counted from 0."""
        self._lane = self._lanes[place]
        self._say_whose(owned(self._header.virtual_ranks, self._ranks.world_size, self._ranks.rank)[place])

    def leave(self) -> None:
        """Say that a virtual rank's own share of the step is computed."""
        self._say_whose(None)

    def _say_whose(self, number: int | None) -> None:
        if self._operators is not None:
            self._operators.rank = number

    def _close_operators(self) -> None:
        if self._operators is not None:
            self._operators.__exit__(None, None, None)
            self._operators = None

    def see_samples(self, draws: Draws) -> None:
        """Take in the samples of a micro-batch."""
        self._lane.stream("sample_ids", (draws.ids, draws.epochs))

    def see_batch(self, batch: object) -> None:
        """Take in what a micro-batch is computed from: its tensors, and the random numbers that come next."""
        self._lane.stream("batch", batch)
        self._lane.streams["rng_before"].update(generators(self._ranks.device))

    def _see_output(self, module: nn.Module, _inputs: object, output: object) -> None:
        # The experiment's loss is all that the loop is given; what it is computed from passes here.
        if module.training:
            self._lane.stream("output", output)

    def see_bucket(self, bucket: Any) -> None:
        """Keep what this process's last virtual rank itself computed of a bucket of gradients."""
        wanted = {id(parameter) for parameter in self._parameters_now()}
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients()):
            if id(parameter) in wanted:
                # A copy, digested later: other processes wait for this bucket.
                self._local[id(parameter)] = gradient.clone()

    def see_local_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Look at what a virtual rank computed by itself, in the order of the model's parameters."""
        wanted = self._parameters_now()
        self._lane.look("local_grad", [gradients[self._places[id(parameter)]] for parameter in wanted])

    def see_gradients(self) -> None:
        """Look at the averaged gradients, as they are before they are unscaled and clipped."""
        parameters = self._parameters_now()
        self._shared.look("reduced_grad", [parameter.grad for parameter in parameters])
        if self._local:
            self._lanes[-1].look("local_grad", [self._local.get(id(parameter)) for parameter in parameters])
            self._local.clear()
        elif self._header.virtual_ranks == 1:
            self._lane.pending["local_grad"] = self._shared.pending["reduced_grad"]

    def end(self, losses: Sequence[float], grad_norm: float | None, scaler: Any) -> None:
        """Look at what a step leaves, and append a record to each trace. One loss a virtual rank."""
        self._close_operators()
        shared, state, parameters = self._shared, scaler.state_dict(), self._parameters_now()
        shared.channels["grad_norm"] = trace.word(math.nan if grad_norm is None else grad_norm)
        shared.channels["scale"] = trace.word(state.get("scale", 1.0))
        shared.channels["growth"] = trace.word(state.get("_growth_tracker", 0), real=False)
        shared.channels["lr"] = trace.word(float(self._optimizer.param_groups[0]["lr"]))
        shared.channels["settings"] = self._digest_of_settings()
        shared.look("optimizer", [self._optimizer.state.get(parameter) for parameter in parameters])
        shared.look("buffers", [self._buffers[entry.name] for entry in self._header.looked_at("buffers", self._step)])
        shared.look("weights", parameters)
        self._settle()
        for lane, loss in zip(self._lanes, losses):
            lane.channels["loss"] = trace.word(loss)
            for name, stream in lane.streams.items():
                lane.channels[name] = stream.digest()[: trace.WORD_BYTES]
            channels, tensors = {**shared.channels, **lane.channels}, {**shared.tensors, **lane.tensors}
            content = trace.pack(self._layout, self._step, channels, tensors)
            lane.chain = trace.link(lane.chain, content)
            lane.file.write(content + lane.chain)

    def _settle(self) -> None:
        lanes = [self._shared, *self._lanes]
        waited_for = [digest for lane in lanes for digest in lane.waited_for()]
        numbers = torch.stack(waited_for).tolist() if waited_for else []
        words = iter([trace.word(number & (1 << 64) - 1, real=False) for number in numbers])
        for lane in lanes:
            lane.settle(words)

    def _parameters_now(self) -> list[Tensor]:
        return [self._parameters[entry.name] for entry in self._header.looked_at("weights", self._step)]

    def _digest_of_settings(self) -> bytes:
        groups = [
            sorted((key, repr(value)) for key, value in group.items() if key != "params")
            for group in self._optimizer.param_groups
        ]
        return trace.digest_of([repr(groups).encode()])


def header_of(
    job: Job, ranks: Ranks, model: nn.Module, knobs: Mapping[str, Any], numerics: Mapping[str, str]
) -> trace.Header:
    """Return what the traces of a run say once. Its weights are the initial ones: call it before any are loaded."""
    parameters = dict(model.named_parameters())
    slices = 1 if job.traces_only else trace.slices_for(sum(map(_size, parameters.values())))
    return trace.Header(
        digest=trace.DIGESTS[ranks.device.type == "cuda"],
        level=job.spec["determinism"]["level"],
        virtual_rank=0,
        virtual_ranks=job.spec["virtual_ranks"],
        world_size=ranks.world_size,
        torch=torch.__version__,
        knobs=knobs,
        numerics=numerics,
        weights=digest_of_tensors(model.state_dict()),
        slices=slices,
        parameters=_table(parameters, slices),
        buffers=_table(dict(model.named_buffers()), slices),
    )


def _table(tensors: Mapping[str, Tensor], slices: int) -> tuple[trace.Tensor, ...]:
    places = trace.sliced([_size(tensor) for tensor in tensors.values()], slices)
    return tuple(
        trace.Tensor(name, tuple(tensor.shape), str(tensor.dtype).replace("torch.", ""), place)
        for (name, tensor), place in zip(tensors.items(), places)
    )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
