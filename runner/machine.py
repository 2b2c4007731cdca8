"""What this machine is, read from /proc and nvidia-smi, and whether a lock's hardware is here."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import HardwareError
from runner.lock import HardwarePin

# x86-64 psABI, section 3.1.1 (LZCNT is shown as abm in /proc/cpuinfo).
_V2 = {"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"}
_V3 = _V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_ARCH_LEVELS = {"x86-64": set[str](), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU."""

    uuid: str
    model: str
    memory_bytes: int
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The facts of a machine that hardware pins speak of."""

    cpu: str
    flags: frozenset[str]
    memory_bytes: int
    kernel: str
    gpus: tuple[Gpu, ...]

    @property
    def arch_level(self) -> str:
        """The highest x86-64 level that this CPU reaches; the bare architecture's name on another."""
        reached = [level for level, flags in _ARCH_LEVELS.items() if flags <= self.flags]
        return reached[-1] if self.flags else platform.machine()


def probe() -> Machine:
    """Read this machine's facts."""
    cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    return Machine(
        cpu=_first_field(cpuinfo, "model name") or platform.machine(),
        flags=frozenset((_first_field(cpuinfo, "flags") or "").split()),
        memory_bytes=_memory_bytes(Path("/proc/meminfo").read_text()),
        kernel=platform.release(),
        gpus=visible(_probe_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")),
    )


def _first_field(cpuinfo: str, name: str) -> str | None:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _memory_bytes(meminfo: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemTotal:"))


def _probe_gpus() -> tuple[Gpu, ...]:
    if (nvidia_smi := shutil.which("nvidia-smi")) is None:
        return ()
    query = [nvidia_smi, "--query-gpu=uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return tuple(map(_gpu, answer.stdout.splitlines())) if answer.returncode == 0 else ()


def _gpu(line: str) -> Gpu:
    uuid, model, memory_mib, driver = (field.strip() for field in line.split(","))
    return Gpu(uuid=uuid, model=model, memory_bytes=int(memory_mib) * _MIB, driver=driver)


def visible(gpus: Sequence[Gpu], chosen: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order: numbers in nvidia-smi's order, or UUIDs.

    As CUDA reads it: what follows a word that names no GPU is not looked at.
    """
    if chosen is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for word in (word.strip() for word in chosen.split(",")):
        if word.isdecimal():
            named = list(gpus[int(word) : int(word) + 1])
        else:
            named = [gpu for gpu in gpus if word.startswith("GPU-") and gpu.uuid.startswith(word)]
        if len(named) != 1 or named[0] in found:
            break
        found += named
    return tuple(found)


def satisfies(pin: HardwarePin, machine: Machine) -> bool:
    """Say whether a machine has what a lock requires."""
    return not _missing(pin, machine)


def require(pin: HardwarePin, machine: Machine, lockfile: str) -> None:
    """Raise HardwareError, with every reason, unless a machine has what a lock requires."""
    if missing := _missing(pin, machine):
        reasons = "".join(f"\n  {reason}" for reason in missing)
        raise HardwareError(
            f"this machine is not what {lockfile} requires:{reasons}",
            hint="ls conf/hardware",
        )


def _missing(pin: HardwarePin, machine: Machine) -> list[str]:
    return _missing_cpu(pin, machine) + (_missing_gpu(pin, machine) if pin.device == "cuda" else [])


def _missing_cpu(pin: HardwarePin, machine: Machine) -> list[str]:
    if pin.arch_level is None or machine.flags >= _ARCH_LEVELS.get(pin.arch_level, {pin.arch_level}):
        return []
    lacking = " ".join(sorted(_ARCH_LEVELS.get(pin.arch_level, {pin.arch_level}) - machine.flags))
    return [f"CPU of level {pin.arch_level}: {machine.cpu} is {machine.arch_level}, it lacks {lacking}"]


def _missing_gpu(pin: HardwarePin, machine: Machine) -> list[str]:
    alike = leasable(pin, machine)
    if len(alike) < pin.gpu_count:
        here = ", ".join(sorted(gpu.model for gpu in machine.gpus)) or "no GPU"
        memory = f" with {pin.gpu_memory_gib} GiB" if pin.gpu_memory_gib else ""
        return [f"{pin.gpu_count} x {pin.gpu_model}{memory}: here is {here}"]
    old = sorted({gpu.driver for gpu in alike if _release(gpu.driver) < _release(pin.driver_min or "0")})
    return [f"NVIDIA driver {pin.driver_min} or newer: here is {', '.join(old)}"] if old else []


def leasable(pin: HardwarePin, machine: Machine) -> list[Gpu]:
    """Return the GPUs that are of the pinned model and size."""
    least_bytes = (pin.gpu_memory_gib or 0) * _GIB
    return [gpu for gpu in machine.gpus if gpu.model == pin.gpu_model and gpu.memory_bytes >= least_bytes]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def recorded(machine: Machine) -> dict[str, str]:
    """Return the facts that are written beside a run or a lock and never compared."""
    facts = {"cpu": machine.cpu, "arch_level": machine.arch_level, "kernel": machine.kernel}
    if machine.gpus:
        facts |= {"gpu": machine.gpus[0].model, "driver": machine.gpus[0].driver}
    return facts
