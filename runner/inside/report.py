"""What rank 0 tells the host while a run trains: the event stream, and nothing on any other rank."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from runner.inside.files import Events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

    from runner.inside.job import Job
    from runner.inside.ranks import Ranks


class Report:
    """Events of a run, each on its way to the host as soon as it is known."""

    def __init__(self, job: Job, ranks: Ranks) -> None:
        self._steps: int = job.config["training"]["steps"]
        self._batch_size: int = job.config["training"]["batch_size"]
        self._every_steps = job.log_every_steps
        self._ranks = ranks
        self._events = Events(job.out / "events.jsonl") if ranks.is_first else None
        self._logged_step, self._logged_at = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._events is not None:
            self._events.__exit__()

    def tell(self, kind: str, **values: object) -> None:
        """Tell one thing."""
        if self._events is not None:
            self._events.write(kind, **values)

    def start(self, module: torch.nn.Module, knobs: Mapping[str, object]) -> None:
        """Tell what is about to run."""
        self.tell(
            "start",
            torch=torch.__version__,
            knobs=knobs,
            threads=torch.get_num_threads(),
            device=self._ranks.device_name,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
        )

    def resume(self, step: int, past: Iterable[str], message: str) -> None:
        """Tell again what an earlier run told up to a step, and that this one goes on from there."""
        if self._events is not None:
            for line in past:
                self._events.repeat(line)
        self.tell("resume", step=step, message=message)
        self._logged_step, self._logged_at = step, time.monotonic()

    def step(self, step: int, loss: float, optimizer: torch.optim.Optimizer, norm: float | None, scaler: Any) -> None:
        """Tell how a step went, if its turn has come."""
        if self._events is None or (step % self._every_steps and step not in (1, self._steps)):
            return
        now = time.monotonic()
        samples = (step - self._logged_step) * self._batch_size
        extra = {"grad_norm": norm} if norm is not None else {}
        if scaler.is_enabled():
            extra["scale"] = scaler.get_scale()
        self.tell(
            "step",
            step=step,
            steps=self._steps,
            loss=_finite(loss),
            lr=float(optimizer.param_groups[0]["lr"]),
            samples_per_s=samples / max(now - self._logged_at, 1e-9),
            **{name: _finite(float(value)) for name, value in extra.items()},
        )
        self._logged_step, self._logged_at = step, now


def _finite(number: float) -> float | None:
    """Return a number as JSON can say it: None for NaN and infinity."""
    return number if math.isfinite(number) else None
