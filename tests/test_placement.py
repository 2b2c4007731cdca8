"""What a run needs of a machine, and which of a machine's GPUs are a user's to ask for."""

from dataclasses import replace
from pathlib import Path

import pytest
from sample_runs import make_spec

from runner.leases import Need
from runner.lock import HardwarePin
from runner.machine import Gpu, Machine, visible
from runner.placement import need_of
from runner.project import leases

GPUS = tuple(
    Gpu(uuid=f"GPU-{letter * 8}-0000", model=model, memory_bytes=80 << 30, driver="580.1")
    for letter, model in (("a", "H100"), ("b", "A100"), ("c", "H100"), ("d", "H100"))
)
HERE = Machine(cpu="EPYC", flags=frozenset(), memory_bytes=1, kernel="6", gpus=GPUS)


def test_a_run_on_cpus_needs_a_slot_a_thread() -> None:
    spec = replace(make_spec(), ranks=3)
    assert need_of(spec, None, HERE) == Need(cpu_slots=6)
    assert need_of(spec, 1, HERE) == Need(cpu_slots=2)


def test_a_run_on_gpus_needs_as_many_of_its_kind_and_no_cpu_slot() -> None:
    pin = HardwarePin(device="cuda", threads=8, gpu_model="H100", gpu_count=2)
    spec = replace(make_spec(), hardware=pin, ranks=2)
    like = (GPUS[0].uuid, GPUS[2].uuid, GPUS[3].uuid)
    assert need_of(spec, None, HERE) == Need(gpus=like, gpu_count=2)
    assert need_of(spec, 1, HERE) == Need(gpus=like, gpu_count=1)


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, "abcd"),
        ("", ""),
        ("-1", ""),
        ("0", "a"),
        ("3,1", "db"),
        ("0, 2", "ac"),
        ("GPU-b", "b"),
        ("GPU-dddddddd-0000,0", "da"),
        # What follows a word that names nothing, or again the same, is not looked at.
        ("1,9,2", "b"),
        ("2,2,1", "c"),
        ("GPU-,0", ""),
        ("MIG-aaaa", ""),
        ("nonsense", ""),
    ],
)
def test_only_the_gpus_that_cuda_would_see_are_there(chosen: "str | None", left: str) -> None:
    assert "".join(gpu.uuid[4] for gpu in visible(GPUS, chosen)) == left


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "/run/lock/xrun"),
        ({"XRUN_LEASES": "/srv/slots"}, "/srv/slots"),
        ({"SLURM_JOB_ID": "17"}, "/run/lock/xrun-slurm-17"),
        ({"SLURM_JOB_ID": "17", "XRUN_LEASES": "/srv/slots"}, "/srv/slots"),
        ({"SLURM_JOB_ID": "../x"}, "/run/lock/xrun"),
    ],
)
def test_inside_a_slurm_job_the_slots_are_those_of_the_job_alone(environment: dict[str, str], folder: str) -> None:
    assert leases(environment) == Path(folder)
