"""The level portable-v3 keeps its word: other CPUs, pretended by qemu-user, compute the same bits.

qemu changes what every library detects: ATen, oneDNN, oneMKL and the C library.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from inside.jobs import make_spec, run

CAPS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="session")
def qemu() -> str:
    program = shutil.which("qemu-x86_64")
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    assert program is not None, "CI installs qemu-user"
    return program
