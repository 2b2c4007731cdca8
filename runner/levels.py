"""Levels of determinism: what each promises, what it sets before the interpreter starts, what it refuses.

The settings and what they were measured to do: docs/determinism.md.
"""

from runner.config import Config
from runner.errors import ConfigError

SEEDED = "seeded"
REPEAT = "repeat"
RESUME = "resume"
ELASTIC = "elastic"
_PORTABLE = "portable"

# Each library dispatches by CPU on its own; all three caps together give one set of kernels on every machine of a
# level. Of oneMKL's branches only COMPATIBLE is the same on Intel's and AMD's CPUs.
_CAPS = {
    "portable-v2": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "portable-v3": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"},
    "portable-v4": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_CBWR": "COMPATIBLE"},
}
# What a level was measured to cost (docs/determinism.md).
PRICES = {"portable-v3": "resnet50 takes 1.0 to 1.5 times as long as at other levels, chargpt 2.4 times"}


def level_of(config: Config) -> str:
    """Return the level that a config runs at. Raises ConfigError where it asks for one it cannot keep."""
    asked, reached = config.determinism.level, config.hardware.arch_level or ""
    if asked == "strongest":
        strongest = reached.replace("x86-64", _PORTABLE)
        return strongest if strongest in _CAPS and not _what_portable_misses(config, strongest) else RESUME
    if asked in _CAPS and (missing := _what_portable_misses(config, asked)):
        raise ConfigError(
            f"determinism.level: {asked} cannot be kept with {missing}",
            hint=f"xrun experiment={config.experiment.name} determinism={ELASTIC}",
        )
    return asked


def is_portable(level: str) -> bool:
    """Say whether a level promises the same bits on other CPUs."""
    return level in _CAPS


def is_elastic(level: str) -> bool:
    """Say whether a level promises the same bits on any number of ranks."""
    return level == ELASTIC or is_portable(level)


def is_resumable(level: str) -> bool:
    """Say whether a run of a level may go on after it was stopped. `repeat` promises nothing of that."""
    return level != REPEAT


def _what_portable_misses(config: Config, level: str) -> str | None:
    if config.hardware.device != "cpu":
        return f"hardware.device={config.hardware.device}: a GPU's kernels are its model's own"
    if config.precision.name != "fp32":
        return f"precision={config.precision.name}: its kernels differ between CPU generations"
    needed = level.replace(_PORTABLE, "x86-64")
    if (config.hardware.arch_level or "") < needed:
        return f"hardware.arch_level={config.hardware.arch_level}: the hardware must require {needed}"
    return None


def environment(level: str, threads: int, precision: str = "fp32") -> dict[str, str]:
    """Return the variables that decide bits and are read too early to be set by the program itself."""
    shared = {
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Left dynamic, both libraries take fewer threads on a busy machine and sum in another order.
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        # cuBLAS reads this once, at its first handle.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if precision in {"bf16", "fp16"} and level != SEEDED:
        # oneDNN's weight gradients in half precision hold memory that it never wrote, where a convolution's stride is
        # larger than its input. With 255, glibc hands out memory that is zero, and so is that gradient, as it should.
        shared["MALLOC_PERTURB_"] = "255"
    return shared | _CAPS.get(level, {})
