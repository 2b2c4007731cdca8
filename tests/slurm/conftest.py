"""A SLURM cluster, and a project on it whose experiments run on the host."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_project import ROOT, Bench, make_bench

from runner.run_folder import RunFolder
from slurm.cluster import Cluster, packages_missing, until

HOST = ("engine=host", "image=none", "tracking=off", "hardware.threads=1", "experiment=tiny")
LONG = ("training.steps=1500", "training.checkpoint_every_steps=100", "determinism.self_test=off")
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
_ACCOUNTING = ("slurmdbd", "mariadbd")


class SlurmBench(Bench):
    """A project, and the SLURM that its runs go to."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster

    def xrun(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return super().xrun(*words, **self.cluster.environment, **variables)

    def place(self, *words: str, **variables: str) -> RunFolder:
        """Submit a run and leave it to SLURM."""
        before = set(self.runs())
        ran = self.xrun(*HOST, "scheduler=slurm", "--detach", *words, **variables)
        assert ran.returncode == 0, ran.stderr
        (new,) = set(self.runs()) - before
        return self.folder_of(new)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command whose output is read while it runs."""
        home = {"PYTHONPATH": str(ROOT), "XRUN_HOME": str(self.folder / "home")}
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *words],
            cwd=self.folder,
            env={**os.environ, **home, **self.cluster.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, program: str, *arguments: str) -> str:
        """Run a program of Python on this project, and return what it printed."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.cluster.environment}
        argv = [sys.executable, "-c", program, *arguments]
        return subprocess.run(argv, cwd=self.folder, env=environment, capture_output=True, text=True, check=True).stdout

    def runs(self) -> list[str]:
        """Return the ids of all runs."""
        return [path.name for path in (self.folder / "runs").glob("[!.]*-*-*")]

    def folder_of(self, run_id: str) -> RunFolder:
        return RunFolder(path=self.folder / "runs" / run_id)

    def job(self, run: RunFolder) -> str:
        return (run.slurm / "job").read_text().strip()

    def status(self, run: RunFolder) -> str:
        return str(self.record(run.id)["status"])

    def ended(self, run: RunFolder) -> "dict[str, object]":
        """Wait for a run's record and return it."""
        until(run.record.exists, f"{run.id} has a record; {self.said(run)}", 300)
        return self.record(run.id)

    def said(self, run: RunFolder) -> str:
        """What the job printed."""
        output = run.slurm / "output.txt"
        return output.read_text() if output.exists() else ""

    def has_trained(self, run: RunFolder, steps: int = 100) -> bool:
        """Say whether the present attempt has left a checkpoint of its own, of this step or a later one."""
        return any(int(path.name[5:]) >= steps for path in (run.out / "checkpoints").glob("step-????????"))


def _missing(programs: tuple[str, ...], packages: str) -> None:
    wanting = packages_missing(programs)
    if os.geteuid() != 0:
        wanting.append("root")
    if wanting and os.environ.get("CI") == "true":
        pytest.fail(f"CI has no {', '.join(wanting)}")
    if wanting:
        pytest.skip(f"no {', '.join(wanting)} here: apt-get install -y --no-install-recommends {packages}")


def _cluster(*, accounting: bool) -> Iterator[Cluster]:
    # Sockets have short paths, shorter than pytest's folders.
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="xrun-slurm-")), accounting=accounting)
    cluster.folder.chmod(0o755)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    _missing(_PROGRAMS, "slurmctld slurmd slurm-client munge")
    yield from _cluster(accounting=False)


@pytest.fixture(scope="module")
def accounted() -> Iterator[Cluster]:
    """A cluster that keeps accounts."""
    _missing((*_PROGRAMS, *_ACCOUNTING), "slurmctld slurmd slurm-client munge slurmdbd mariadb-server")
    yield from _cluster(accounting=True)


@pytest.fixture(scope="session")
def bench(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmBench:
    # A path with all that sbatch, a shell or squeue could take apart.
    folder = tmp_path_factory.mktemp("pro ject #1 %j |x")
    return SlurmBench(make_bench(folder).folder, cluster)


@pytest.fixture(scope="session")
def undisturbed(bench: SlurmBench) -> str:
    """The fingerprint of the long run, run on this machine without a break."""
    return str(bench.record(bench.run("experiment=tiny", *LONG))["fingerprint"])


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No job of a test is there for the next one."""
    yield
    for name in ("cluster", "accounted"):
        if name in request.fixturenames:
            cluster: Cluster = request.getfixturevalue(name)
            cluster.run("scancel", "--quiet", "--user=root", check=False)
            until(lambda: not cluster.run("squeue", "-h", check=False).stdout, "the queue is empty")  # noqa: B023


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    """A folder for programs that come before SLURM's own on the PATH."""
    folder = tmp_path / "shims"
    folder.mkdir()
    return folder


def shim(folder: Path, program: str, lines: str) -> str:
    """Put a shell script in a program's place; "$real" is the program. Returns the PATH on which it is found."""
    path = folder / program
    path.write_text(f"#!/bin/sh\nreal={shutil.which(program)}\n{lines}\n")
    path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def interrupt(process: "subprocess.Popen[str]") -> str:
    """Press Ctrl-C, and return what the command said on stderr."""
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=180)[1]
