"""Which optimizers keep their bits on every CPU of a level."""

from __future__ import annotations

import torch

from runner.inside.refusal import Refused


def require_portable(optimizer: torch.optim.Optimizer, level: str) -> None:
    """Raise Refused unless an optimizer's arithmetic is exact on every CPU of a portable level.

    SGD takes no root. Fused optimizers take it with the CPU's instruction, which IEEE 754 defines to the last bit;
    the others call oneMKL's, whose last bit depends on the CPU's vendor.
    """
    name = type(optimizer).__name__
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if isinstance(optimizer, torch.optim.SGD) or fused:
        return
    raise Refused(
        f"level {level} cannot be kept with {name}: its square roots come out differently on Intel and AMD CPUs",
        hint=f"give torch.optim.{name} the argument fused=True if it has it, or run with determinism=elastic",
    )
