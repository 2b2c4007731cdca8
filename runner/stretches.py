"""A replay in stretches: each begins with a checkpoint of the run and ends where the next one begins.

A stretch starts from a state that the run's record pins, and must end in the state that the next one starts from. So
stretches that are equal one by one, in whatever order, are the whole run.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from runner.container import Stretch
from runner.errors import StoreError
from runner.record import Verdict


def in_segments(out: Path, checkpoints: Sequence[int], steps: int, count: int) -> list[Stretch]:
    """Cut a run into at most `count` stretches, as even as its checkpoints allow. Raises StoreError without any."""
    inner = _inner(out, checkpoints, steps)
    bounds: list[int] = []
    for number in range(1, count):
        ideal = number * steps / count
        later = [step for step in inner if step > max(bounds, default=0)]
        if later:
            bounds.append(min(later, key=lambda step: abs(step - ideal)))
    return _between(out, bounds)


def at_random(out: Path, checkpoints: Sequence[int], steps: int, count: int, chance: random.Random) -> list[Stretch]:
    """Return `count` stretches between neighbouring checkpoints, picked by chance. Raises StoreError without any."""
    every = _between(out, _inner(out, checkpoints, steps))
    picked = sorted(chance.sample(range(len(every)), min(count, len(every))))
    return [every[number] for number in picked]


def _inner(out: Path, checkpoints: Sequence[int], steps: int) -> list[int]:
    inner = [step for step in checkpoints if 0 < step < steps]
    if not inner:
        raise StoreError(
            f"{out.parent.name} has no checkpoint before its last step, so a replay cannot begin anywhere else"
            " (training.checkpoint_every_steps, training.checkpoints_kept)",
            hint=f"xrun replay {out.parent.name}",
        )
    return inner


def _between(out: Path, bounds: Sequence[int]) -> list[Stretch]:
    starts: list[int | None] = [None, *bounds]
    ends: list[int | None] = [*bounds, None]
    return [
        Stretch(past=None if start is None else out, after_step=start, last_step=end)
        for start, end in zip(starts, ends, strict=True)
    ]


def named(stretch: Stretch, steps: int) -> str:
    """Return a stretch in words: `steps 1 to 40`."""
    return f"steps {(stretch.after_step or 0) + 1} to {stretch.last_step or steps}"


def together(stretches: Sequence[Stretch], steps: int, fingerprint: str | None) -> Verdict:
    """Return what stretches prove that were all equal. `fingerprint`: of the run; None where they are not all of it."""
    if fingerprint is not None:
        what = f"every step and the final weights, in {len(stretches)} stretches; fingerprint {fingerprint}"
        return Verdict(result="identical", message=f"identical: {what}")
    parts = ", ".join(named(stretch, steps) for stretch in stretches)
    return Verdict(result="identical in part", message=f"identical in part: {parts}; no other step was run")
