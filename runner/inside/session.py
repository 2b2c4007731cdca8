"""What a training loop needs of a run: precision, ranks, schedule, trace, checkpoints, and the proof at the end.

For people who keep their own loop; loop.py is one. A loop goes
    model, optimizer = session.prepare(model, optimizer)
    for step in session.steps():
        for draws in session.micro_batches(sampler):
            batch = session.to_device(...)  # the trace sees it here
            with session.autocast():
                loss = ...
            session.backward(loss)
        session.step()
    session.finish(metrics)
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from runner.inside import checkpoint, files, knobs, optimizers, schedule, seeding, trace
from runner.inside.digests import digest_of_tensors
from runner.inside.precision import Precision
from runner.inside.recorder import Recorder
from runner.inside.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from torch import Tensor, nn

    from runner.inside.job import Job
    from runner.inside.ranks import Ranks
    from runner.inside.watch import Watch


class Session:
    """One rank's part of a run, from the first step to done.json."""

    def __init__(self, job: Job, ranks: Ranks, watch: Watch) -> None:
        self.job = job
        self.config = job.config
        self.ranks = ranks
        self.watch = watch
        self.precision = Precision(self.config["precision"], ranks.device.type)
        self.training: Mapping[str, Any] = self.config["training"]
        self.micro_batch_size = _micro_batch_size(self.training, ranks.world_size)
        self._open = ExitStack()
        self._step = 0
        self._loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self._last_loss = math.nan
        self._logged_step, self._logged_at = 0, 0.0
        knobs.set_up(job.spec["determinism"]["level"])
        seeding.seed_generators(self.config["seed"], "model")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Place a model on this rank's device, wrap it for several ranks, and start the trace.

        Raises Refused if a setting is not as pinned or the level cannot be kept with this optimizer.
        """
        read_back = knobs.verify(self.job.spec)
        if self.job.spec["determinism"]["level"] == knobs.PORTABLE:
            optimizers.require_portable(optimizer)
        self.module = model.to(self.ranks.device)
        self.model: Any = self.module
        self.optimizer = optimizer
        self._lrs = [group["lr"] for group in optimizer.param_groups]
        if self.ranks.world_size > 1:
            self.watch.wait()
            # DDP gives every rank the weights of rank 0, and averages the gradients.
            self.model = DistributedDataParallel(self.module, gradient_as_bucket_view=True)
        self.watch.arm()
        self._trace = self._open.enter_context(Recorder(self.job, self.ranks, self.module, optimizer, read_back))
        if self.ranks.world_size > 1:
            self.model.register_comm_hook(None, lambda _state, bucket: self._trace.average(bucket))
        if self.ranks.is_first:
            self._start(read_back)
        # From here on each rank draws its own numbers, for dropout and the like.
        seeding.seed_generators(self.config["seed"], f"rank {self.ranks.rank}")
        return self.model, optimizer

    def _start(self, read_back: Mapping[str, object]) -> None:
        self._events = self._open.enter_context(files.Events(self.job.out / "events.jsonl"))
        self._events.write(
            "start",
            torch=torch.__version__,
            knobs=read_back,
            threads=torch.get_num_threads(),
            device=self.ranks.device_name,
            parameters=sum(parameter.numel() for parameter in self.module.parameters()),
        )
        self._logged_at = time.monotonic()

    def steps(self) -> Iterator[int]:
        """Yield the steps, counted from 1, each with its learning rate set."""
        for step in range(1, self.training["steps"] + 1):
            self._step = step
            scale = schedule.scale_at(step, self.training["steps"], self.config["schedule"])
            for group, lr in zip(self.optimizer.param_groups, self._lrs):
                group["lr"] = lr * scale
            self._trace.begin(step)
            yield step

    def micro_batches(self, sampler: seeding.Sampler) -> Iterator[seeding.Draws]:
        """Yield this rank's share of the step's samples, a micro-batch at a time."""
        count = self.training["micro_batches"]
        first = (self._step - 1) * self.training["batch_size"] + self.ranks.rank * count * self.micro_batch_size
        for index in range(count):
            # Ranks speak to each other in the backward pass of the last micro-batch only.
            self.model.require_backward_grad_sync = index == count - 1
            draws = sampler.draws(first + index * self.micro_batch_size, self.micro_batch_size)
            self._trace.see_samples(draws)
            yield draws

    def autocast(self) -> torch.autocast:
        """Return the context of the forward pass and the loss, in the run's precision."""
        self.watch.wait()  # several ranks share their buffers first
        return self.precision.autocast()

    def to_device(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return a batch on this rank's device."""
        if self.module.training:
            self._trace.see_batch(batch)
        return tuple(tensor.to(self.ranks.device, non_blocking=True) for tensor in batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch, whose loss is a mean over its samples."""
        self._loss += loss.detach().double() / self.training["micro_batches"]
        self.watch.wait()
        self.precision.scaler.scale(loss / self.training["micro_batches"]).backward()

    def step(self) -> None:
        """Update the weights with the gradients of all micro-batches and ranks, and record the step."""
        scaler, clip_norm = self.precision.scaler, self.training.get("clip_norm")
        self._trace.see_gradients()
        scaler.unscale_(self.optimizer)
        norm = None if clip_norm is None else torch.nn.utils.clip_grad_norm_(self.module.parameters(), clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.ranks.gather_number(self._loss)
        self._last_loss = math.fsum(losses) / len(losses)
        self._loss.zero_()
        self._trace.end(losses[self.ranks.rank], None if norm is None else norm.item(), scaler)
        self.watch.arm()
        if self.ranks.is_first:
            self._report(norm)
        if not math.isfinite(self._last_loss):
            raise Refused(f"the loss is {self._last_loss} at step {self._step}: the training has diverged")

    def _report(self, norm: Tensor | None) -> None:
        steps, every = self.training["steps"], self.job.log_every_steps
        if self._step % every and self._step not in (1, steps):
            return
        now = time.monotonic()
        samples = (self._step - self._logged_step) * self.training["batch_size"]
        extra = {"grad_norm": norm} if norm is not None else {}
        if self.precision.scaler.is_enabled():
            extra["scale"] = self.precision.scaler.get_scale()
        self._events.write(
            "step",
            step=self._step,
            steps=steps,
            loss=_finite(self._last_loss),
            lr=float(self.optimizer.param_groups[0]["lr"]),
            samples_per_s=samples / max(now - self._logged_at, 1e-9),
            **{name: _finite(float(value)) for name, value in extra.items()},
        )
        self._logged_step, self._logged_at = self._step, now

    def is_due(self, every_steps: int) -> bool:
        """Say whether something that happens every so many steps, and at the end, happens after this one."""
        return self._step == self.training["steps"] or bool(every_steps and self._step % every_steps == 0)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Record metrics of this step."""
        if self.ranks.is_first:
            self._events.write("eval", step=self._step, metrics=metrics)

    def share_buffers(self) -> None:
        """Give every rank the running statistics of rank 0, as the next forward pass would."""
        self.ranks.copy_from_first(list(self.module.buffers()))

    def checkpoint(self) -> None:
        """Write the full state after this step."""
        self.share_buffers()
        generators = self.ranks.gather(checkpoint.generator_states())
        if self.ranks.is_first:
            training = {
                "step": self._step,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.precision.scaler.state_dict(),
                "generators": generators,
            }
            folder = self.job.out / "checkpoints"
            digest = checkpoint.save(folder, self._step, self.module.state_dict(), training)
            self._events.write("checkpoint", step=self._step, digest=digest)
        self.ranks.gather(None)
        self.watch.arm()

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Prove that all ranks hold the same weights, and write done.json. Nothing may follow."""
        knobs.verify(self.job.spec)
        self.share_buffers()
        weights = digest_of_tensors(self.module.state_dict())
        self.ranks.require_equal(weights)
        self.watch.close()
        if self.ranks.is_first:
            self._events.write("end", step=self._step)
        self._open.close()
        chains = self.ranks.gather(self._trace.chain)
        if not self.ranks.is_first:
            return
        done = {
            "nonce": self.job.nonce,
            "fingerprint": trace.fingerprint(chains, weights),
            "weights": weights,
            "steps": self._step,
            "metrics": {**metrics, "train_loss": self._last_loss},
        }
        files.write_done(self.job.out, done)


def _micro_batch_size(training: Mapping[str, Any], world_size: int) -> int:
    batch_size, parts = training["batch_size"], world_size * training["micro_batches"]
    if batch_size % parts:
        raise Refused(
            f"training.batch_size: {batch_size} samples cannot be shared equally by "
            f"{world_size} ranks x {training['micro_batches']} micro-batches",
            hint=f"training.batch_size={-(-batch_size // parts) * parts}",
        )
    return int(batch_size // parts)


def _finite(number: float) -> float | None:
    """Return a number as JSON can say it: None for NaN and infinity."""
    return number if math.isfinite(number) else None
