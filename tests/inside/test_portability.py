"""The portable levels keep their word: other CPUs, pretended by qemu-user, compute the same bits.

qemu changes what every library detects: ATen, oneDNN, oneMKL and the C library.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from inside.jobs import make_spec, run
from inside.shipped import CHARGPT, RESNET50, write_data

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def qemu() -> str:
    program = shutil.which("qemu-x86_64")
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    assert program is not None, "CI installs qemu-user"
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable")
    write_data(folder / "data")
    return folder


def fingerprint(folder: Path, experiment: dict[str, Any], level: str, name: str, launcher: tuple[str, ...] = ()) -> str:
    spec = make_spec(**experiment, determinism__level=level, hardware__threads=2)
    return str(run(folder, spec, name=name, launcher=launcher, hang_timeout_s=900).done["fingerprint"])


def other_vendors_cpu() -> str:
    """A CPU to pretend that differs from this one most: of the other vendor."""
    return "Haswell" if "AuthenticAMD" in Path("/proc/cpuinfo").read_text() else "EPYC"


@pytest.mark.parametrize(
    ("level", "cpu"), [("portable-v3", "Haswell"), ("portable-v3", "EPYC"), ("portable-v2", "Nehalem")]
)
def test_another_cpu_trains_a_transformer_to_the_same_bits(folder: Path, qemu: str, level: str, cpu: str) -> None:
    here = fingerprint(folder, CHARGPT, level, f"chargpt-not-{cpu}")
    there = fingerprint(folder, CHARGPT, level, f"chargpt-{cpu}", (qemu, "-cpu", cpu))
    assert there == here


def test_another_vendors_cpu_trains_resnet50_to_the_same_bits(folder: Path, qemu: str) -> None:
    one_step = {**RESNET50, "config__training__steps": 1}  # minutes each, pretended
    here = fingerprint(folder, one_step, "portable-v3", "resnet50-here")
    there = fingerprint(folder, one_step, "portable-v3", "resnet50-there", (qemu, "-cpu", other_vendors_cpu()))
    assert there == here


def test_without_the_level_another_vendors_cpu_computes_other_bits(folder: Path, qemu: str) -> None:
    here = fingerprint(folder, CHARGPT, "repeat", "repeat-here")
    there = fingerprint(folder, CHARGPT, "repeat", "repeat-there", (qemu, "-cpu", other_vendors_cpu()))
    assert there != here
