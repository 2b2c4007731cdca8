"""Levels of determinism: what each promises, what it sets before the interpreter starts, what it refuses.

The settings and what they were measured to do: docs/determinism.md.
"""

from runner.config import Config
from runner.errors import ConfigError

SEEDED = "seeded"
REPEAT = "repeat"
PORTABLE_V3 = "portable-v3"

# Each library dispatches by CPU on its own; all three caps together give one set of kernels on every AVX2 machine.
_PORTABLE_V3_CAPS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
}


def level_of(config: Config) -> str:
    """Return the level that a config runs at. Raises ConfigError where it asks for one it cannot keep."""
    asked = config.determinism.level
    missing = _what_portable_v3_misses(config)
    if asked == "strongest":
        return REPEAT if missing else PORTABLE_V3
    if asked == PORTABLE_V3 and missing:
        raise ConfigError(
            f"determinism.level: portable-v3 cannot be kept with {missing}",
            hint=f"xrun experiment={config.experiment.name} determinism=repeat",
        )
    return asked


def _what_portable_v3_misses(config: Config) -> str | None:
    if config.hardware.device != "cpu":
        return f"hardware.device={config.hardware.device}: a GPU's kernels are its model's own"
    if config.precision.name != "fp32":
        return f"precision={config.precision.name}: its kernels differ between CPU generations"
    if config.hardware.arch_level != "x86-64-v3":
        return f"hardware.arch_level={config.hardware.arch_level}: the hardware must require x86-64-v3"
    return None


def environment(level: str, threads: int) -> dict[str, str]:
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
    return shared | (_PORTABLE_V3_CAPS if level == PORTABLE_V3 else {})
