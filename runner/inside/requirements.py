"""What a level needs of a model and its optimizer. What cannot keep it is refused before the first step."""

from __future__ import annotations

import torch
from torch import nn

from runner.inside import knobs
from runner.inside.refusal import Refused


def require(level: str, module: nn.Module, optimizer: torch.optim.Optimizer, virtual_ranks: int) -> None:
    """Raise Refused, with the level that would allow it, for a model or optimizer that a level cannot be kept with."""
    if level not in knobs.INEXACT and virtual_ranks > 1:
        _require_own_statistics(level, module)
    if level.startswith(knobs.PORTABLE):
        _require_own_kernels(level, module)
        _require_exact_roots(level, optimizer)


def _require_own_statistics(level: str, module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, nn.SyncBatchNorm):
            raise Refused(
                f"level {level} cannot be kept with SyncBatchNorm ({name or 'the model'}): its backend sums over ranks "
                "in an order of its own",
                hint="use nn.BatchNorm2d, which sees the samples of a virtual rank, or run with determinism=repeat",
            )


def _require_own_kernels(level: str, module: nn.Module) -> None:
    for name, part in module.named_modules():
        # torch.compile(model) wraps it; model.compile() leaves a callable in it.
        if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
            raise Refused(
                f"level {level} cannot be kept with torch.compile ({name or 'the model'}): it makes other kernels on "
                "every CPU",
                hint="leave out torch.compile, or run with determinism=elastic",
            )


def _require_exact_roots(level: str, optimizer: torch.optim.Optimizer) -> None:
    """Refuse square roots that depend on the CPU's vendor.

    SGD takes no root. Fused optimizers take it with the CPU's instruction, which IEEE 754 defines to the last bit;
    the others call oneMKL's, whose last bit differs.
    """
    name = type(optimizer).__name__
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if isinstance(optimizer, torch.optim.SGD) or fused:
        return
    raise Refused(
        f"level {level} cannot be kept with {name}: its square roots come out differently on Intel and AMD CPUs",
        hint=f"give torch.optim.{name} the argument fused=True if it has it, or run with determinism=elastic",
    )
