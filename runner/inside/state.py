"""The state of a training that a checkpoint holds: all of it, whichever parts an experiment has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from runner.inside import continuation

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from runner.inside.job import Job
    from runner.inside.ranks import Ranks


class State(NamedTuple):
    """Everything that changes from step to step. Generators do not count: each step seeds them anew."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any
    kept: Mapping[str, Any]
    """What an experiment asked to be kept: objects with state_dict and load_state_dict."""

    def training(self, loss: float, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Return all but the model's own state, and how well it did so far."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "kept": {name: part.state_dict() for name, part in self.kept.items()},
            "loss": loss,
            "metrics": dict(metrics),
        }

    def load(self, past: continuation.Continuation) -> None:
        """Take up the state of a checkpoint."""
        self.module.load_state_dict(past.model)
        self.optimizer.load_state_dict(past.training["optimizer"])
        self.scaler.load_state_dict(past.training["scaler"])
        for name, part in self.kept.items():
            part.load_state_dict(past.training["kept"][name])


def past_of(job: Job, ranks: Ranks, virtual_ranks: int) -> tuple[continuation.Continuation | None, str]:
    """Return the checkpoint that a run goes on from, the same on all ranks, and what was wrong with newer ones."""
    if job.resume is None:
        return None, ""
    past, problem, step = None, "", job.resume_step
    if ranks.is_first:
        past, problem = continuation.newest(job.resume, step, virtual_ranks)
        step = past.step if past else None
    step = ranks.gather(step)[0]
    if not ranks.is_first and step is not None:
        past, _ = continuation.newest(job.resume, step, virtual_ranks)
    return past, problem
