"""Batch scripts, whole, as a person reads them; and the commands of runtimes that have never been run."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from sample_runs import make_spec

from runner.config import Scheduler
from runner.container import Conduct, Places, container_request
from runner.engines.cluster_argv import cluster_argv
from runner.engines.request import ContainerRequest, Limits
from runner.errors import ConfigError, ImageError
from runner.lock import HardwarePin
from runner.slurm.script import Batch, Runtime, Size, batch_script, size_of

GOLDEN = Path(__file__).parent.parent / "golden"
RUNTIME = Runtime(python="/opt/xrun/bin/python", path="/opt/xrun/lib", home="/home/ada/.cache/xrun")
PLAIN = Scheduler(kind="slurm", timeout_s=0, hang_timeout_s=600)
FULL = replace(
    PLAIN,
    partition="gpu",
    account="vision",
    qos="long",
    constraint="h100&ib",
    gres="gpu:h100:4",
    time="1-12:00:00",
    mem="64G",
    exclude="node[3,7]",
    reservation="maintenance",
    array_parallelism=4,
    setup=("module load cuda/13", "ulimit -l unlimited"),
    srun_args=("--mpi=none", "--comment=a b"),
    extra=("--mail-type=END", '--comment="all of it"'),
    grace_s=120,
)
RUN = Path("/data/project/runs/resnet50-0123abcd-1")


def held_against(name: str, text: str) -> None:
    """Compare with a golden file; XRUN_GOLDEN=write writes it instead."""
    path = GOLDEN / name
    if os.environ.get("XRUN_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize(
    ("name", "batch", "size", "scheduler"),
    [
        ("run.sh", Batch(name=RUN.name, folder=RUN), Size(nodes=1, cpus=2, gpus=0), PLAIN),
        ("run-with-all-options.sh", Batch(name=RUN.name, folder=RUN), Size(nodes=1, cpus=8, gpus=4), FULL),
        ("run-on-two-nodes.sh", Batch(name=RUN.name, folder=RUN), Size(nodes=2, cpus=8, gpus=8), PLAIN),
        (
            "array.sh",
            Batch(name="xrun-0123abcd", folder=RUN.parent / ".slurm" / "xrun-0123abcd", runs=64),
            Size(nodes=1, cpus=2, gpus=1),
            replace(PLAIN, array_parallelism=4),
        ),
        (
            "run-in-an-odd-folder.sh",
            Batch(name=RUN.name, folder=Path('/data/it\'s "odd" #1 100%j') / RUN.name),
            Size(nodes=1, cpus=1, gpus=0),
            PLAIN,
        ),
    ],
)
def test_a_batch_script_is_the_golden_one_and_bash_reads_it(
    name: str, batch: Batch, size: Size, scheduler: Scheduler
) -> None:
    script = batch_script(batch, size, scheduler, RUNTIME)
    held_against(name, script)
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_run_takes_a_cpu_for_each_thread_and_its_share_of_gpus() -> None:
    spec = replace(make_spec(), ranks=8, virtual_ranks=8, hardware=HardwarePin(device="cuda", threads=4, gpu_count=8))
    assert size_of(spec) == Size(nodes=1, cpus=32, gpus=8)
    assert size_of(spec, nodes=2) == Size(nodes=2, cpus=16, gpus=4)


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
@pytest.mark.parametrize("ref", ["pytorch/pytorch:2.13", "nvcr.io/nvidia/pytorch:26.10-py3"])
def test_the_command_of_a_clusters_runtime_is_the_golden_one(runtime: str, ref: str) -> None:
    words = cluster_argv(runtime, request(ref=ref))
    held_against(f"{runtime}-{ref.partition('/')[0]}.txt", "".join(f"{word}\n" for word in words))


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_an_image_that_no_registry_has_is_refused(runtime: str) -> None:
    with pytest.raises(ImageError) as caught:
        cluster_argv(runtime, request(ref=None))
    assert str(caught.value) == (
        "image cpu is a recipe's; Pyxis and Apptainer pull from registries\n\nhint: scheduler.container=embedded"
    )


def test_a_folder_that_a_mount_cannot_say_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        cluster_argv("pyxis", request(ref="pytorch/pytorch:2.13", out=Path("/a:b/out")))
    assert str(caught.value) == "/a:b/out cannot be mounted by Pyxis or Apptainer: it holds ':', ',' or a backslash"


def request(*, ref: str | None, out: Path = RUN / "out") -> ContainerRequest:
    spec = make_spec()
    digest = "sha256:" + "ab" * 32
    if ref is not None:
        image = replace(spec.image, source="registry", ref=f"{ref}@{digest}", index=digest)
        spec = replace(spec, image=image)
    places = Places(
        store=RUN.parent,
        source=RUN.parent / ".source" / "x",
        spec=RUN / "spec.json",
        out=out,
        control=RUN / "control",
        data=None,
    )
    limits = Limits(memory_bytes=1 << 34, pids=4096, shm_bytes=1 << 33, tmp_bytes=1 << 32)
    conduct = Conduct(nonce="0" * 32, log_every_steps=1, hang_timeout_s=600, limits=limits)
    return container_request(RUN.name, spec, places, conduct)
