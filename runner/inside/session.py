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
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from runner.inside import checkpoint, files, knobs, numerics, requirements, schedule, seeding, trace
from runner.inside.digests import digest_of_tensors
from runner.inside.operators_used import OperatorsUsed
from runner.inside.precision import Precision
from runner.inside.recorder import Recorder, header_of
from runner.inside.refusal import Ended, Refused, Stopped
from runner.inside.report import Report
from runner.inside.state import State, past_of
from runner.inside.virtual_ranks import VirtualRanks, micro_batch_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from torch import Tensor, nn

    from runner.inside.job import Job
    from runner.inside.ranks import Ranks
    from runner.inside.watch import Watch


class Session:
    """One process's part of a run, from the first step to done.json."""

    def __init__(self, job: Job, ranks: Ranks, watch: Watch) -> None:
        self.job = job
        self.config = job.config
        self.ranks = ranks
        self.watch = watch
        self.precision = Precision(self.config["precision"], ranks.device.type)
        self.training: Mapping[str, Any] = self.config["training"]
        self.last_step: int = job.last_step or self.training["steps"]
        self.micro_batch_size = micro_batch_size(job)
        self._open = ExitStack()
        self._first_step = self._open.enter_context(ExitStack())
        self._used = OperatorsUsed()
        self._kept: dict[str, Any] = {}
        self._step = 0
        self._place = 0
        self._is_stopping = False
        self._last_loss = math.nan
        self._metrics: dict[str, float] = {}
        self._report = self._open.enter_context(Report(job, ranks))
        knobs.set_up(job.spec["determinism"]["level"])
        seeding.seed_generators(self.config["seed"], "model")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def keep(self, name: str, part: Any) -> None:
        """Put something else with state_dict and load_state_dict into checkpoints. To be called before `prepare`."""
        self._kept[name] = part

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Place a model on this process's device, wrap it for several, take up a checkpoint, and start the trace.

        Raises Refused if a setting is not as pinned or the level cannot be kept with this model or optimizer.
        """
        job, ranks, level = self.job, self.ranks, self.job.spec["determinism"]["level"]
        read_back = knobs.verify(job.spec)
        requirements.require(level, model, optimizer, job.spec["virtual_ranks"])
        self.module = model.to(ranks.device)
        self.model: Any = self.module
        self.optimizer = optimizer
        self._lrs = [group["lr"] for group in optimizer.param_groups]
        self.shares = VirtualRanks(self.module, ranks, job)
        self._losses = torch.zeros(len(self.shares.own), dtype=torch.float64, device=ranks.device)
        # What the trace says of the initial weights is said before others are loaded.
        self._numerics = numerics.probe(ranks.device, self.precision.name, portable=level.startswith(knobs.PORTABLE))
        self._numerics_first = ranks.gather(self._numerics)[0] if job.node else self._numerics
        header = header_of(job, ranks, self.module, read_back, self._numerics)
        if ranks.world_size > 1:
            self.watch.wait()
            self.model = self.shares.distributed(self.module, self._reduce)
        self._state = State(self.module, optimizer, self.precision.scaler, self._kept)
        past, problem = past_of(job, ranks, self.shares.count)
        if past is not None:
            self._state.load(past)
            self._step, self._last_loss, self._metrics = past.step, past.training["loss"], past.training["metrics"]
        self.watch.arm()
        self._trace = self._open.enter_context(Recorder(job, ranks, self._state, header, past))
        self._report.start(self.module, read_back)
        if job.resume is not None:
            self._report.resume(self._step, past.events() if past else (), problem)
        if past is not None and ranks.is_first:
            checkpoint.copy(past.path, job.out / "checkpoints")
        return self.model, optimizer

    def _reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        self._trace.see_bucket(bucket)
        return self.shares.reduce(bucket)

    def steps(self) -> Iterator[int]:
        """Yield the steps, counted from 1, each with its learning rate set. Raises Stopped if the host asks for it."""
        first = self._step + 1
        for step in range(first, self.last_step + 1):
            self._step = step
            scale = schedule.scale_at(step, self.training["steps"], self.config["schedule"])
            for group, lr in zip(self.optimizer.param_groups, self._lrs):
                group["lr"] = lr * scale
            self._trace.begin(step)
            self.shares.begin_step()
            if step == first and self.ranks.local_rank == 0:
                self._first_step.callback(self._judge_operators)
                self._first_step.enter_context(self._used)
            yield step
            if step < self.training["steps"] and (self._is_stopping or step == self.last_step):
                self._end_early()

    def _end_early(self) -> None:
        if not self.is_due(self.training["checkpoint_every_steps"]):
            self.checkpoint()
        if self._step == self.last_step:
            return
        self._report.tell("stopped", step=self._step)
        raise Stopped

    def micro_batches(self, sampler: seeding.Sampler) -> Iterator[seeding.Draws]:
        """Yield this process's share of the step's samples: its virtual ranks in turn, a micro-batch at a time."""
        count, own = self.training["micro_batches"], self.shares.own
        first = (self._step - 1) * self.training["batch_size"]
        for self._place, number in enumerate(own):
            self.shares.begin()
            self._trace.enter(self._place)
            # The numbers of dropout and the like belong to step and virtual rank, whatever was drawn before.
            seeding.seed_generators(self.config["seed"], f"step {self._step} rank {number}")
            for index in range(number * count, (number + 1) * count):
                # Processes speak to each other in the backward pass of their last micro-batch only.
                self.model.require_backward_grad_sync = index == own[-1] * count + count - 1
                draws = sampler.draws(first + index * self.micro_batch_size, self.micro_batch_size)
                self._trace.see_samples(draws)
                yield draws
            self._trace.leave()
            self.shares.end(number, self._trace.see_local_gradients)

    def autocast(self) -> torch.autocast:
        """Return the context of the forward pass and the loss, in the run's precision."""
        return self.precision.autocast()

    def to_device(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return a batch on this process's device."""
        if self.module.training:
            self._trace.see_batch(batch)
        return tuple(tensor.to(self.ranks.device, non_blocking=True) for tensor in batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch, whose loss is a mean over its samples."""
        self._losses[self._place] += loss.detach().double() / self.training["micro_batches"]
        self.watch.wait()
        self.precision.scaler.scale(loss / self.training["micro_batches"]).backward()

    def step(self) -> None:
        """Update the weights with the gradients of all virtual ranks, and record the step."""
        scaler, clip_norm = self.precision.scaler, self.training.get("clip_norm")
        self.shares.finish()
        self._trace.see_gradients()
        scaler.unscale_(self.optimizer)
        norm = None
        if clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), clip_norm).item()
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._first_step.close()
        own = self._losses.tolist()
        self._losses.zero_()
        losses, self._is_stopping = self.shares.gather(own, is_asked_to_stop=self.job.is_asked_to_stop)
        self._last_loss = math.fsum(losses) / len(losses)
        self._trace.end(own, norm, scaler)
        self.watch.arm()
        self._report.step(self._step, self._last_loss, self.optimizer, norm, scaler)
        if self.job.traces_only and self._step == self.last_step:
            raise Ended
        if not (self.job.traces_only or math.isfinite(self._last_loss)):
            raise Refused(f"the loss is {self._last_loss} at step {self._step}: the training has diverged")

    def _judge_operators(self) -> None:
        """Tell which of the probed operators a step called, and whether they compute here what the lock pins."""
        used = self._used.names(self._numerics)
        if self._step == 1:
            self._report.tell("operators", step=1, names=used)
        if not self.job.allow_numerics:
            numerics.require(self.job.spec, self._numerics, used)
            numerics.require_alike(self.job.spec, self._numerics, self._numerics_first, used)

    def is_due(self, every_steps: int) -> bool:
        """Say whether something that happens every so many steps, and at the end, happens after this one."""
        return self._step == self.training["steps"] or bool(every_steps and self._step % every_steps == 0)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Record metrics of this step; the last ones are the run's."""
        self._metrics = dict(metrics)
        self._report.tell("eval", step=self._step, metrics=metrics)

    def checkpoint(self) -> None:
        """Write the full state after this step. Generators have none: each step seeds them anew."""
        chains = [chain for own in self.ranks.gather(self._trace.chains) for chain in own]
        if self.ranks.is_first:
            folder, training = self.job.out / "checkpoints", self._state.training(self._last_loss, self._metrics)
            digest = checkpoint.save(folder, self._step, self.module.state_dict(), training, chains)
            checkpoint.keep_newest(folder, self.training["checkpoints_kept"])
            self._report.tell("checkpoint", step=self._step, digest=digest)
        self.watch.wait()
        self.ranks.gather(None)
        self.watch.arm()

    def finish(self, metrics: Mapping[str, float] | None = None) -> None:
        """Prove that all ranks hold the same weights, and write done.json. Nothing may follow."""
        knobs.verify(self.job.spec)
        self.ranks.require_equal(weights := digest_of_tensors(self.module.state_dict()))
        self.watch.close()
        self._report.tell("end", step=self._step)
        self._open.close()
        chains = [chain for own in self.ranks.gather(self._trace.chains) for chain in own]
        if not self.ranks.is_first:
            return
        done = {
            "nonce": self.job.nonce,
            "fingerprint": trace.fingerprint(chains, weights),
            "weights": weights,
            "steps": self._step,
            "metrics": {**self._metrics, **(metrics or {}), "train_loss": self._last_loss},
        }
        files.write_done(self.job.out, done)
