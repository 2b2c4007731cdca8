"""The level portable-v3 keeps its word: other CPUs, pretended by qemu-user, compute the same bits.

qemu changes what every library detects: ATen, oneDNN, oneMKL and the C library.
"""

import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from inside.jobs import make_spec, run

pytestmark = pytest.mark.qemu

CHARGPT = {
    "config__experiment": {"name": "chargpt", "module": "chargpt", "command": []},
    "config__model": {"layers": 2, "heads": 4, "width": 64, "context": 32, "dropout": 0.1},
    "config__optim": {"lr": 0.003, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99},
    "config__data": {"text": "words", "test_windows": 8, "test_batch_size": 4},
    "config__training__steps": 3,
    "config__training__clip_norm": 1.0,
}
RESNET50 = {
    "config__experiment": {"name": "resnet50", "module": "resnet50", "command": []},
    "config__model": {"classes": 10, "zero_init_residual": True},
    "config__optim": {"kind": "adamw", "lr": 0.002, "momentum": 0.9, "weight_decay": 0.05},
    "config__data": {"image_size": 16, "shift": 2, "mirror": True, "test_images": 8, "test_batch_size": 4},
    "config__training__steps": 2,
}


@pytest.fixture(scope="module")
def qemu() -> str:
    program = shutil.which("qemu-x86_64")
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    assert program is not None, "CI installs qemu-user"
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets in the forms that the experiments read, made of integers."""
    folder = tmp_path_factory.mktemp("portable")
    (folder / "data" / "words").mkdir(parents=True)
    text = " ".join(f"{number * number % 997}" for number in range(2000))
    (folder / "data" / "words" / "words.txt").write_text(text)
    images = folder / "data" / "fashion-mnist"
    images.mkdir()
    for name, count in (("train", 64), ("t10k", 8)):
        pixels = bytes(pixel * pixel % 251 for pixel in range(count * 28 * 28))
        labels = bytes(image % 10 for image in range(count))
        _write_idx(images / f"{name}-images-idx3-ubyte.gz", (count, 28, 28), pixels)
        _write_idx(images / f"{name}-labels-idx1-ubyte.gz", (count,), labels)
    return folder


def _write_idx(path: Path, sizes: tuple[int, ...], content: bytes) -> None:
    header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    path.write_bytes(gzip.compress(header + content))


def fingerprint(folder: Path, experiment: dict[str, Any], level: str, name: str, launcher: tuple[str, ...] = ()) -> str:
    training = {"config__training__batch_size": 4, "config__schedule__warmup_steps": 1}
    spec = make_spec(**experiment, **training, determinism__level=level, hardware__threads=2)
    return str(run(folder, spec, name=name, launcher=launcher, hang_timeout_s=900).done["fingerprint"])


def other_vendors_cpu() -> str:
    """A CPU to pretend that differs from this one most: of the other vendor."""
    return "Haswell" if "AuthenticAMD" in Path("/proc/cpuinfo").read_text() else "EPYC"


@pytest.mark.parametrize("cpu", ["Haswell", "EPYC"])
def test_another_cpu_trains_a_transformer_to_the_same_bits(folder: Path, qemu: str, cpu: str) -> None:
    here = fingerprint(folder, CHARGPT, "portable-v3", f"chargpt-not-{cpu}")
    there = fingerprint(folder, CHARGPT, "portable-v3", f"chargpt-{cpu}", (qemu, "-cpu", cpu))
    assert there == here


@pytest.mark.parametrize("cpu", ["Haswell", "EPYC"])
def test_another_cpu_trains_resnet50_to_the_same_bits(folder: Path, qemu: str, cpu: str) -> None:
    here = fingerprint(folder, RESNET50, "portable-v3", f"resnet50-not-{cpu}")
    there = fingerprint(folder, RESNET50, "portable-v3", f"resnet50-{cpu}", (qemu, "-cpu", cpu))
    assert there == here


def test_without_the_level_another_vendors_cpu_computes_other_bits(folder: Path, qemu: str) -> None:
    here = fingerprint(folder, CHARGPT, "repeat", "repeat-here")
    there = fingerprint(folder, CHARGPT, "repeat", "repeat-there", (qemu, "-cpu", other_vendors_cpu()))
    assert there != here
