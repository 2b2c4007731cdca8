"""Settings that decide bits: set where a program can, read back from the libraries, and refused where they differ.

Those that are read before the first line of Python runs are set by the host (runner/levels.py).
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runner.inside.precision import tf32_settings
from runner.inside.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

SEEDED = "seeded"
# Levels at which the backend adds up gradients as it likes.
INEXACT = (SEEDED, "repeat")
PORTABLE = "portable"
"""How the levels begin that hold on other CPUs."""

# Of oneMKL's mkl_types.h.
_MKL_CBWR_BRANCH = 1
_MKL_CBWR_COMPATIBLE = 3


def is_elastic(level: str) -> bool:
    """Say whether a level promises the same bits on any number of ranks."""
    return level == "elastic" or level.startswith(PORTABLE)


def set_up(level: str) -> None:
    """Set what a running program can set: torch's deterministic kernels, from the level `repeat` on."""
    torch.use_deterministic_algorithms(level != SEEDED)
    torch.backends.cudnn.deterministic = level != SEEDED
    torch.backends.cudnn.benchmark = False
    _call_vector_maths_once()


def _call_vector_maths_once() -> None:
    """Call oneMKL's vector functions on one thread: their first call chooses kernels, and two threads race for it."""
    small = torch.full((4,), 0.5)
    for function in (torch.sqrt, torch.exp, torch.log, torch.sin, torch.cos, torch.asin, torch.tanh, torch.erf):
        function(small)


def read_back() -> dict[str, object]:
    """Return the settings as the libraries themselves report them."""
    return {
        "threads": torch.get_num_threads(),
        "hash_randomization": bool(sys.flags.hash_randomization),
        "aten": _aten_capability(),
        "mkl_branch": _mkl_branch(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": tf32_settings(),
        "subnormals": bool((torch.full((1,), 2.0**-140) * 1.0).item()),
    }


def verify(spec: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings as read back. Raises Refused with every one that is not as the spec pins it."""
    determinism = spec["determinism"]
    pinned: dict[str, object] = {f"variable {name}": value for name, value in determinism["environment"].items()}
    found: dict[str, object] = {f"variable {name}": os.environ.get(name) for name in determinism["environment"]}
    pinned.update(_wanted(spec))
    knobs = read_back()
    found.update(knobs)
    # None: this build of torch does not say.
    wrong = [name for name, value in pinned.items() if found[name] not in (value, None) or _is_unset(name, found[name])]
    if wrong:
        lines = [f"  {name} is {found[name]!r}, pinned is {pinned[name]!r}" for name in wrong]
        raise Refused(f"level {determinism['level']}: {len(wrong)} settings are not as pinned\n" + "\n".join(lines))
    return knobs


def _is_unset(name: str, value: object) -> bool:
    return value is None and name.startswith("variable ")


def _wanted(spec: Mapping[str, Any]) -> dict[str, object]:
    determinism = spec["determinism"]
    environment = determinism["environment"]
    strict = determinism["level"] != SEEDED
    tf32 = "tf32" if spec["config"]["precision"] == "tf32" else "ieee"
    wanted: dict[str, object] = {
        "threads": spec["hardware"]["threads"],
        "deterministic": strict,
        "deterministic_warn_only": False,
        "cudnn_deterministic": strict,
        "cudnn_benchmark": False,
        "tf32": [tf32] * len(tf32_settings()),
        "subnormals": True,
    }
    if environment.get("PYTHONHASHSEED") == "0":
        wanted["hash_randomization"] = False
    if "ATEN_CPU_CAPABILITY" in environment:
        wanted["aten"] = environment["ATEN_CPU_CAPABILITY"].upper()
    if environment.get("MKL_CBWR") == "COMPATIBLE":
        wanted["mkl_branch"] = _MKL_CBWR_COMPATIBLE
    return wanted


def _aten_capability() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def _mkl_branch() -> int | None:
    """Ask oneMKL which code branch it took; None where torch was built without it or hides it."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return int(library.mkl_serv_cbwr_get(_MKL_CBWR_BRANCH))
    except (OSError, AttributeError):
        return None
