"""Many runs as few arrays, on a real SLURM that takes arrays of at most 6."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from host_project import ROOT, make_bench

from slurm.cluster import Cluster, until
from slurm.conftest import HOST, SlurmBench, shim

SHORT = ("training.steps=5",)


@pytest.fixture
def bench(cluster: Cluster, tmp_path: Path) -> SlurmBench:
    return SlurmBench(make_bench(tmp_path / "project").folder, cluster)


def submitted(bench: SlurmBench, *words: str, **variables: str) -> "dict[str, str]":
    """Submit 8 trials, or those that were prepared before."""
    ran = start(bench, *words, **variables)
    stdout, stderr = ran.communicate(timeout=120)
    assert ran.returncode == 0, stderr
    return dict(json.loads(stdout))


def start(bench: SlurmBench, *words: str, **variables: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XRUN_HOME": str(bench.folder / "home")}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("trials.py")), "8", *HOST, "scheduler=slurm", *SHORT, *words],
        cwd=bench.folder,
        env={**environment, **bench.cluster.environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def arrays(jobs: "dict[str, str]") -> "list[int]":
    """Return how many runs each array has."""
    names = [job.partition("_")[0] for job in jobs.values()]
    return [names.count(name) for name in dict.fromkeys(names)]


def test_eight_trials_are_two_arrays_and_each_is_a_run_of_its_own(bench: SlurmBench) -> None:
    jobs = submitted(bench, "scheduler.array_parallelism=3")
    assert arrays(jobs) == [6, 2]
    assert submitted(bench) == jobs
    records = [bench.ended(bench.folder_of(run)) for run in jobs]
    assert [record["status"] for record in records] == ["done"] * 8
    assert len({record["fingerprint"] for record in records}) == 8
    placed = [record["placed"] for record in records]
    assert [place["job"] for place in placed if isinstance(place, dict)] == list(jobs.values())
    alone = bench.record(bench.run("experiment=tiny", *SHORT, "seed=3"))
    assert records[3]["fingerprint"] == alone["fingerprint"]


def test_an_array_whose_submitter_is_killed_is_found_again(bench: SlurmBench, shims: Path) -> None:
    # The second array's submission is the last thing that the process does.
    path = shim(
        shims, "sbatch", f'id=$("$real" "$@"); [ -e {shims}/first ] && kill -9 $PPID; : > {shims}/first; echo "$id"'
    )
    killed = start(bench, "scheduler.extra=[--hold]", PATH=path)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    jobs = submitted(bench)
    assert arrays(jobs) == [6, 2]
    queue = bench.cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()
    assert sorted(queue) == sorted(jobs.values())


def test_a_task_of_an_array_is_stopped_alone(bench: SlurmBench) -> None:
    jobs = submitted(bench, "scheduler.extra=[--hold]")
    first, *others = map(bench.folder_of, jobs)
    assert bench.xrun("stop", first.id).stdout == f"{first.id}: interrupted\n"
    assert {bench.status(run) for run in others} == {"queued"}


def test_a_limit_of_jobs_leaves_runs_for_a_later_call(accounted: Cluster, tmp_path: Path) -> None:
    bench = SlurmBench(make_bench(tmp_path / "project").folder, accounted)
    for words in ("add account ml", "add user root account=ml", "modify user root set MaxSubmitJobs=4"):
        accounted.run("sacctmgr", "-i", *words.split())
    jobs = submitted(bench, "scheduler.extra=[--hold]")
    assert sum(arrays(jobs)) == 4
    assert submitted(bench) == jobs
    accounted.run("scancel", *list(jobs.values())[:2])
    more = until(lambda: found if len(found := submitted(bench)) > len(jobs) else None, "SLURM has room again")
    assert jobs.items() <= more.items()


def test_accounts_know_a_job_that_the_queue_forgot(accounted: Cluster, tmp_path: Path, shims: Path) -> None:
    bench = SlurmBench(make_bench(tmp_path / "project").folder, accounted)
    run = bench.place(*SHORT, "scheduler.extra=[--hold]")
    accounted.run("scancel", bench.job(run))
    path = shim(shims, "squeue", "exit 0")

    def shown() -> "dict[str, object] | None":
        record = json.loads(bench.xrun("show", run.id, "--json", PATH=path).stdout)
        return record if record["status"] == "cancelled" else None

    assert until(shown, "slurmdbd has heard of it")["message"] == "CANCELLED by 0, exit code 0"
