"""Faults of what surrounds a run: a variable that is not as pinned, or a spec that pins another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from inside.jobs import make_spec, run
from inside.shipped import CHARGPT, write_data
from runner.blame import first_verdict
from runner.levels import environment
from runner.record import Verdict
from runner.traces import opened_traces


class Stray(NamedTuple):
    """A variable that a process has and its spec does not pin so."""

    level: str
    variables: Mapping[str, str]
    wrong: tuple[str, ...]
    """What the refusal lists."""


class Other(NamedTuple):
    """A spec that pins something else, and so computes other bits."""

    changes: Mapping[str, Any]
    step: int
    channels: frozenset[str]
    """Which of them it is depends on the CPU."""
    setting: str
    """What the verdict says of the settings now; empty where no library can be asked."""


STRAY = {
    "threads": Stray(
        "resume",
        {"MKL_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
        (
            "variable MKL_NUM_THREADS is '2', pinned is '1'",
            "variable OMP_NUM_THREADS is '2', pinned is '1'",
            "threads is 2, pinned is 1",
        ),
    ),
    "hash seed": Stray(
        "resume",
        {"PYTHONHASHSEED": "1"},
        ("variable PYTHONHASHSEED is '1', pinned is '0'", "hash_randomization is True, pinned is False"),
    ),
    "ATen's kernels": Stray(
        "portable-v3",
        {"ATEN_CPU_CAPABILITY": "default"},
        ("variable ATEN_CPU_CAPABILITY is 'default', pinned is 'avx2'", "aten is 'DEFAULT', pinned is 'AVX2'"),
    ),
    "oneDNN's kernels": Stray(
        "portable-v3", {"ONEDNN_MAX_CPU_ISA": "SSE41"}, ("variable ONEDNN_MAX_CPU_ISA is 'SSE41', pinned is 'AVX2'",)
    ),
    "oneMKL's kernels": Stray(
        "portable-v3",
        {"MKL_CBWR": "AUTO"},
        ("variable MKL_CBWR is 'AUTO', pinned is 'COMPATIBLE'", "mkl_branch is 2, pinned is 3"),
    ),
}
_RESUME = environment("resume", 1)
_COMPUTED = frozenset({"output", "local_grad"})
OTHER = {
    "threads": Other({"hardware__threads": 2}, 1, _COMPUTED, "; threads was 1 then, 2 now"),
    "ATen's kernels": Other(
        {"determinism__environment": _RESUME | {"ATEN_CPU_CAPABILITY": "default"}},
        0,
        frozenset({"weights"}),
        " then, DEFAULT now",
    ),
    "oneDNN's kernels": Other(
        {"determinism__environment": _RESUME | {"ONEDNN_MAX_CPU_ISA": "SSE41"}}, 1, _COMPUTED, ""
    ),
    "oneMKL's kernels": Other(
        {"determinism__environment": _RESUME | {"MKL_CBWR": "COMPATIBLE"}}, 1, _COMPUTED, " then, 3 now"
    ),
}


def refusal(folder: Path, name: str) -> tuple[int, str]:
    """Return the exit code and the message of a process with a stray variable."""
    stray = STRAY[name]
    ran = run(folder, make_spec(determinism__level=stray.level), name=f"stray {name}", environment=stray.variables)
    return ran.exit_code, ran.error()


def expected_refusal(name: str) -> tuple[int, str]:
    """Return what `refusal` must return."""
    level, _, wrong = STRAY[name]
    return 2, "\n  ".join([f"error: level {level}: {len(wrong)} settings are not as pinned", *wrong]) + "\n"


def train(folder: Path, name: str, changes: Mapping[str, Any]) -> Path:
    """Train a few steps of a small transformer in a process of their own; return its `out`."""
    if not (folder / "data").exists():
        write_data(folder / "data")
    ran = run(folder, make_spec(**CHARGPT, determinism__level="resume", **changes), name=name)
    assert ran.done["steps"] == CHARGPT["config__training__steps"]
    return ran.out


def verdict(past: Path, again: Path) -> Verdict | None:
    """Return what a comparison of two runs says."""
    with opened_traces(past, 1) as old, opened_traces(again, 1) as new:
        return first_verdict(old, new, CHARGPT["config__training__steps"])


def is_as_expected(name: str, said: Verdict | None) -> bool:
    """Say whether a verdict names what is other."""
    other = OTHER[name]
    if said is None or said.step != other.step or said.channel not in other.channels:
        return False
    return (other.setting or "pass computed other bits (") in said.message
