"""The numerics probe: what a fixed list of operators computes here, so that a machine is known by its bits.

It draws from generators of its own or puts the run's back, and changes no setting.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from runner.inside.digests import raw_bytes
from runner.inside.knobs import SEEDED
from runner.inside.leaves import differing, listed
from runner.inside.probed import Inputs, Operators, half_operators, operators
from runner.inside.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

# What a build of torch says of an operator that it lacks, or whose only kernels the level forbids.
_ABSENT = (AttributeError, NotImplementedError, RuntimeError, TypeError)
# oneMKL takes square roots as the CPU's vendor likes, and no cap changes that; requirements.py refuses what needs them.
_NOT_PORTABLE = frozenset({"adamw", "sqrt"})
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def probe(device: torch.device, precision: str, *, portable: bool = False) -> dict[str, str]:
    """Return each operator's leaf: 16 hex digits of SHA-256 over the bytes of its outputs.

    An operator that this build lacks is left out; so are, for a portable level, those that no CPU's vendor agrees on.
    """
    is_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if is_gpu else []):
        inputs = Inputs(device)
        leaves = _leaves(operators(inputs), device)
        if precision in _HALF:
            with torch.autocast(device.type, dtype=_HALF[precision]):
                half = _leaves(half_operators(inputs), device)
            leaves.update({f"{name} {precision}": leaf for name, leaf in half.items()})
    return {name: leaves[name] for name in sorted(leaves) if not (portable and name in _NOT_PORTABLE)}


def _leaves(table: Operators, device: torch.device) -> dict[str, str]:
    leaves = {}
    for name, compute in table.items():
        # Only dropout draws from these, and the caller puts them back.
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
        try:
            outputs = compute()
        except _ABSENT:
            continue
        leaves[name] = _digest([outputs] if isinstance(outputs, torch.Tensor) else outputs)
    return leaves


def _digest(outputs: list[Tensor]) -> str:
    content = hashlib.sha256()
    for output in outputs:
        content.update(raw_bytes(output.detach().cpu().contiguous()))
    return content.hexdigest()[:16]


def require(spec: Mapping[str, Any], here: Mapping[str, str], used: Collection[str]) -> None:
    """Raise Refused, naming them, if operators that a run uses compute other bits here than its lock pins."""
    pinned = spec.get("numerics")
    if pinned is None or not (others := differing(pinned, here, used)):
        return
    level, experiment = spec["determinism"]["level"], spec["config"]["experiment"]["name"]
    message = (
        "this machine computes other bits than the lock pins: "
        f"{len(others)} of the {len(used)} probed operators that it calls: {listed(others)}"
    )
    if level.startswith("portable"):
        raise Refused(f"{message}; level {level} promises the same on every CPU, so this is a bug: please report it")
    raise Refused(message, hint=f"xrun lock experiment={experiment} --upgrade")


def require_alike(
    spec: Mapping[str, Any], here: Mapping[str, str], first: Mapping[str, str], used: Collection[str]
) -> None:
    """Raise Refused, naming them, if operators that a run uses compute other bits on this node than on node 0.

    Which ranks a node has is no part of the run, so it may decide nothing, even where no lock says what is right.
    """
    if spec["determinism"]["level"] != SEEDED and (others := differing(first, here, used)):
        raise Refused(
            f"this machine computes other bits than node 0: {len(others)} of the {len(used)} probed operators that "
            f"the run calls: {listed(others)}",
            hint="take nodes of one kind",
        )
