"""Runs on a real SLURM of two nodes: submitted, disturbed in every way, and the same bits in the end."""

import json
from pathlib import Path

import pytest
from host_project import make_bench

from runner.run_folder import RunFolder
from slurm.cluster import NODES, Cluster, until
from slurm.conftest import HOST, LONG, SlurmBench, interrupt, shim

SHORT = ("training.steps=30",)


def writes_to(out: Path) -> list[int]:
    """Return the processes that were started to write to a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"XRUN_OUT={out}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-????????"))


def test_a_run_on_slurm_is_a_run_like_any_other(bench: SlurmBench) -> None:
    local = bench.record(bench.run("experiment=tiny", *SHORT))
    ran = bench.xrun(*HOST, "scheduler=slurm", *SHORT)
    record = bench.record()
    run = bench.folder_of(str(record["id"]))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"fingerprint  {local['fingerprint']}"
    assert f"{run.id}: submitted as SLURM job {bench.job(run)}, engine host\n" in ran.stderr
    assert "step 30/30" in ran.stderr
    placed = record["placed"]
    assert isinstance(placed, dict)
    assert (placed["job"], placed["attempts"]) == (bench.job(run), 1)
    assert placed["nodes"] in NODES
    assert json.loads((run.slurm / "exit.json").read_text()) == {"exit": 0, "job": bench.job(run)}
    replay = bench.replay(run.id)
    assert replay.stdout.splitlines()[2].startswith("identical: every step and the final weights")


def test_a_dry_run_prints_the_script_and_makes_nothing(bench: SlurmBench) -> None:
    bench.run("experiment=tiny", *SHORT)  # the lock, and the source snapshot
    before = bench.runs()
    printed = bench.xrun(*HOST, "scheduler=slurm", "scheduler.time='1:30:00'", "--dry-run", *SHORT, "seed=9")
    assert printed.returncode == 0, printed.stderr
    assert bench.runs() == before
    run = bench.place("scheduler.time='1:30:00'", *SHORT, "seed=9")
    assert printed.stdout == (run.slurm / "batch.sh").read_text()
    bench.ended(run)


def test_ctrl_c_leaves_the_run_to_slurm(bench: SlurmBench) -> None:
    before = set(bench.runs())
    following = bench.start(*HOST, "scheduler=slurm", *LONG, "seed=1")
    assert following.stderr is not None
    while "step 1/" not in (line := following.stderr.readline()):
        assert line, "xrun ended early"
    said = interrupt(following)
    (name,) = set(bench.runs()) - before
    run = bench.folder_of(name)
    job = bench.job(run)
    next_words = f"\nnext:\n  xrun logs {run.id} -f\n  xrun stop {run.id}\n  xrun ls\n"
    assert following.returncode == 130
    assert f"\n{run.id} goes on as SLURM job {job}\n{next_words}" in said
    assert bench.cluster.state(job) == "RUNNING"


def preempt(bench: SlurmBench, _: RunFolder) -> None:
    """Others need both nodes, and have the right to them."""
    bench.cluster.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "sleep 1")


def end_the_time(bench: SlurmBench, run: RunFolder) -> None:
    """What `--signal=B:USR1@…` does when the time limit is near."""
    bench.cluster.run("scancel", "--signal=USR1", "--batch", bench.job(run))


def lose_the_node(bench: SlurmBench, run: RunFolder) -> None:
    node = bench.cluster.run("squeue", "-h", "-j", bench.job(run), "-o", "%N").stdout.strip()
    bench.cluster.kill_node(node)
    until(lambda: not writes_to(run.out), "nothing of it runs")
    until(lambda: bench.cluster.state(bench.job(run)) != "RUNNING", "SLURM misses the node")
    bench.cluster.start_node(node)


@pytest.mark.parametrize("disturb", [preempt, end_the_time, lose_the_node])
def test_a_disturbed_run_goes_on_exactly(bench: SlurmBench, undisturbed: str, disturb: "object") -> None:
    assert callable(disturb)
    run = bench.place(*LONG)
    until(lambda: bench.has_trained(run), f"the first checkpoint; {bench.said(run)}")
    disturb(bench, run)
    record = bench.ended(run)
    assert (record["status"], record["fingerprint"]) == ("done", undisturbed), bench.said(run)
    placed = record["placed"]
    assert isinstance(placed, dict)
    assert placed["attempts"] == 2
    kept = checkpoints(run.attempt(0) / "out")[-1]
    assert f"going on after step {kept}\n" in bench.said(run)
    # A run that is asked stops after the step it is in; of one on a lost node only what was written before is left.
    assert "with a checkpoint; goes on in this job's next turn" in bench.said(run) or disturb is lose_the_node


def test_two_nodes_have_the_fingerprint_of_one(bench: SlurmBench) -> None:
    words = (*SHORT, "determinism=elastic", "determinism.virtual_ranks=4", "hardware.ranks=2")
    alone = bench.record(bench.run("experiment=tiny", *words))
    ran = bench.xrun(*HOST, "scheduler=slurm", "hardware.nodes=2", *words)
    record = bench.record()
    run = bench.folder_of(str(record["id"]))
    assert ran.returncode == 0, ran.stderr + bench.said(run)
    assert record["fingerprint"] == alone["fingerprint"]
    placed = record["placed"]
    assert isinstance(placed, dict)
    assert placed["nodes"] == "node[1-2]"
    assert bench.replay(run.id, "--ranks", "1").returncode == 0


def test_two_nodes_that_are_preempted_go_on_exactly(bench: SlurmBench) -> None:
    words = (*LONG, "determinism=elastic", "determinism.virtual_ranks=2", "hardware.ranks=2")
    alone = bench.record(bench.run("experiment=tiny", *words))
    run = bench.place("hardware.nodes=2", *words)
    until(lambda: bench.has_trained(run), f"the first checkpoint; {bench.said(run)}")
    end_the_time(bench, run)
    record = bench.ended(run)
    assert (record["status"], record["fingerprint"]) == ("done", alone["fingerprint"]), bench.said(run)


def test_a_level_that_promises_nothing_of_restarts_starts_again(bench: SlurmBench) -> None:
    run = bench.place(*LONG, "determinism=repeat")
    until(lambda: bench.has_trained(run), "the first checkpoint")
    end_the_time(bench, run)
    assert bench.ended(run)["status"] == "done"
    assert "going on after" not in bench.said(run)


def test_a_run_that_is_requeued_too_often_ends_with_its_checkpoint_and_can_be_resumed(
    bench: SlurmBench, undisturbed: str
) -> None:
    run = bench.place(*LONG, "scheduler.max_requeues=0")
    until(lambda: bench.has_trained(run), "the first checkpoint")
    end_the_time(bench, run)
    record = bench.ended(run)
    assert (record["status"], record["message"]) == (
        "timeout",
        "the time was over in attempt 1; scheduler.max_requeues is 0; asked to stop, with a checkpoint",
    )
    resumed = bench.xrun("resume", run.id)
    assert resumed.returncode == 0, resumed.stderr
    again = bench.record()
    assert (again["continues"], again["fingerprint"]) == (run.id, undisturbed)
    assert again["placed"]


def test_a_job_that_is_requeued_by_others_ends_at_the_cap(bench: SlurmBench) -> None:
    run = bench.place(*LONG, "scheduler.max_requeues=0")
    until(lambda: bench.has_trained(run), "the first checkpoint")
    bench.cluster.run("scontrol", "requeue", bench.job(run))
    record = bench.ended(run)
    assert (record["status"], record["message"]) == (
        "interrupted",
        "was requeued 1 times; scheduler.max_requeues is 0",
    )
    assert checkpoints(run.out)


def test_a_run_does_not_go_on_where_its_bits_would_be_others(bench: SlurmBench) -> None:
    run = bench.place(*LONG, "determinism=resume")
    until(lambda: bench.has_trained(run), "the first checkpoint")
    machine = json.loads((run.slurm / "machine.json").read_text())
    end_the_time(bench, run)
    until(lambda: bench.cluster.state(bench.job(run)) == "PENDING", "requeued")
    (run.slurm / "machine.json").write_text(json.dumps({**machine, "cpu": "another CPU"}))
    record = bench.ended(run)
    assert record["status"] == "failed"
    assert record["message"] == f"{run.id} cannot go on on {machine['name']} with the bits it promises:"
    assert f"hardware: cpu was another CPU, here is {machine['cpu']}; level resume needs the same\n" in bench.said(run)
    assert "hint: scheduler.constraint=<feature of nodes that are alike>\n" in bench.said(run)


def test_stop_ends_a_running_run_with_a_checkpoint_and_no_process(bench: SlurmBench) -> None:
    run = bench.place(*LONG, "seed=2")
    until(lambda: bench.has_trained(run), "the first checkpoint")
    stopped = bench.xrun("stop", run.id)
    record = bench.record(run.id)
    assert (stopped.returncode, stopped.stdout) == (0, f"{run.id}: interrupted\n"), stopped.stderr
    assert record["message"] == "cancelled: asked to stop, with a checkpoint"
    assert checkpoints(run.out)
    until(lambda: bench.cluster.state(bench.job(run)) != "COMPLETING", "the job is gone")
    assert not writes_to(run.out)


def test_stop_ends_a_waiting_run_at_once(bench: SlurmBench) -> None:
    run = bench.place(*SHORT, "scheduler.extra=[--hold]", "seed=3")
    assert bench.status(run) == "queued"
    assert bench.record(run.id)["message"] == "JobHeldUser"
    assert bench.xrun("stop", run.id).stdout == f"{run.id}: interrupted\n"
    assert bench.record(run.id)["message"] == "its SLURM job: cancelled, CANCELLED"


def test_scancel_leaves_a_checkpoint_from_which_the_run_goes_on(bench: SlurmBench, undisturbed: str) -> None:
    run = bench.place(*LONG)
    until(lambda: bench.has_trained(run), "the first checkpoint")
    bench.cluster.run("scancel", bench.job(run))
    until(lambda: bench.status(run) == "cancelled", "it is cancelled")
    assert not writes_to(run.out)
    assert not run.record.exists()
    resumed = bench.xrun("resume", run.id)
    assert resumed.returncode == 0, resumed.stderr
    assert bench.record(run.id)["status"] == "interrupted"
    assert bench.record()["fingerprint"] == undisturbed


def test_a_client_that_is_killed_after_sbatch_finds_its_job_again(bench: SlurmBench, shims: Path) -> None:
    path = shim(shims, "sbatch", 'id=$("$real" "$@"); kill -9 $PPID; echo "$id"')
    before = set(bench.runs())
    killed = bench.xrun(*HOST, "scheduler=slurm", "--detach", *SHORT, "seed=4", "scheduler.extra=[--hold]", PATH=path)
    (name,) = set(bench.runs()) - before
    run = bench.folder_of(name)
    assert killed.returncode == -9
    assert not (run.slurm / "job").exists()
    assert submit_again(bench, run) == submit_again(bench, run)
    queue = bench.cluster.run("squeue", "-h", "--name", run.id, "-o", "%i").stdout.split()
    assert queue == [bench.job(run)]
    bench.cluster.run("scontrol", "release", bench.job(run))
    assert bench.ended(run)["status"] == "done"


def test_a_client_that_is_killed_before_sbatch_leaves_a_run_that_can_be_submitted(
    bench: SlurmBench, shims: Path
) -> None:
    path = shim(shims, "sbatch", "kill -9 $PPID")
    before = set(bench.runs())
    bench.xrun(*HOST, "scheduler=slurm", "--detach", *SHORT, "seed=5", PATH=path)
    (name,) = set(bench.runs()) - before
    run = bench.folder_of(name)
    submit_again(bench, run)
    assert bench.ended(run)["status"] == "done"


def submit_again(bench: SlurmBench, run: RunFolder) -> str:
    program = (
        "import sys; from pathlib import Path; from runner.run_folder import RunFolder;"
        "from runner.slurm.client import Slurm; from runner.slurm.placement import submit;"
        "print(submit(RunFolder(path=Path(sys.argv[1])), Slurm()))"
    )
    return bench.python(program, str(run.path)).strip()


def test_a_controller_that_is_gone_is_said_so_and_nothing_is_left(bench: SlurmBench) -> None:
    run = bench.place(*SHORT, "scheduler.extra=[--hold]", "seed=6")
    bench.cluster.stop_controller()
    try:
        before = bench.runs()
        refused = bench.xrun(*HOST, "scheduler=slurm", *SHORT, "seed=7")
        listed = bench.xrun("ls")
    finally:
        bench.cluster.start_controller()
    message = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    assert (refused.returncode, refused.stderr) == (8, f"error: {message}\n\nhint: scontrol ping\n")
    assert bench.runs() == before
    assert listed.returncode == 0
    assert listed.stderr == f"SLURM does not say how its runs are: {message}\n"
    assert next(line for line in listed.stdout.splitlines() if run.id in line).split()[1] == "unknown"


def test_what_sbatch_refuses_is_recorded_in_its_words(bench: SlurmBench) -> None:
    refused = bench.xrun(*HOST, "scheduler=slurm", *SHORT, "scheduler.partition=nowhere")
    message = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    assert (refused.returncode, refused.stderr) == (8, f"error: {message}\n\nhint: sinfo -s\n")
    record = bench.record()
    assert (record["status"], record["message"]) == ("failed", f"was not submitted: {message}")


def test_where_there_is_no_slurm_it_is_said_so(bench: SlurmBench, tmp_path: Path) -> None:
    refused = bench.xrun(*HOST, "scheduler=slurm", *SHORT, PATH=str(tmp_path))
    assert (refused.returncode, refused.stderr) == (
        8,
        "error: scheduler=slurm: there is no squeue on this machine\n\nhint: scheduler=local runs here\n",
    )


def test_all_runs_are_listed_with_one_call_of_squeue_and_none_where_none_is_placed(
    cluster: Cluster, shims: Path, tmp_path: Path
) -> None:
    bench = SlurmBench(make_bench(tmp_path).folder, cluster)
    calls = tmp_path / "calls"
    path = shim(shims, "squeue", f'echo "$@" >> {calls}; exec "$real" "$@"')
    placed = [bench.place(*SHORT, "scheduler.extra=[--hold]", f"seed={seed}") for seed in (10, 11, 12)]
    lines = bench.xrun("ls", PATH=path).stdout.splitlines()
    rows = {line.split()[0]: line.split()[1] for line in lines}
    assert [rows[run.id] for run in placed] == ["queued"] * 3
    assert calls.read_text().count("\n") == 1
    for run in placed:
        bench.xrun("stop", run.id)
    calls.unlink()
    bench.xrun("ls", PATH=path)
    assert not calls.exists()


def test_a_run_whose_job_slurm_forgot_is_lost_unless_it_left_its_exit_code(bench: SlurmBench) -> None:
    run = bench.place(*SHORT, "scheduler.extra=[--hold]", "seed=13")
    bench.cluster.run("scancel", bench.job(run))
    (run.slurm / "job").write_text("987654\n")
    assert bench.status(run) == "lost"
    (run.slurm / "exit.json").write_text('{"exit":127,"job":"987654"}\n')
    assert (bench.status(run), bench.record(run.id)["message"]) == ("failed", "exit code 127")


def test_a_job_that_ends_before_its_run_begins_is_a_failed_run(bench: SlurmBench) -> None:
    ran = bench.xrun(*HOST, "scheduler=slurm", *SHORT, "seed=14", "scheduler.setup=['exit 3']")
    record = bench.record()
    assert ran.returncode == 1
    assert (record["status"], record["message"]) == ("failed", "its SLURM job: failed, FAILED")


def test_a_failing_experiment_is_told_in_its_own_words(bench: SlurmBench) -> None:
    ran = bench.xrun(*HOST, "scheduler=slurm", *SHORT, "optim.kind=Nope", "seed=15")
    record = bench.record()
    assert ran.returncode == 1
    assert record["status"] == "failed"
    assert "Nope" in str(record["message"])


def test_a_waiting_run_cannot_be_resumed(bench: SlurmBench) -> None:
    run = bench.place(*SHORT, "scheduler.extra=[--hold]", "seed=16")
    refused = bench.xrun("resume", run.id)
    assert (refused.returncode, refused.stderr) == (
        2,
        f"error: {run.id} still runs\n\nhint: xrun logs {run.id} -f\n",
    )


def test_logs_follow_a_run_to_its_end(bench: SlurmBench) -> None:
    run = bench.place(*SHORT, "seed=17")
    followed = bench.xrun("logs", run.id, "-f")
    assert followed.returncode == 0
    assert run.record.exists()


def test_a_run_has_the_gpus_that_slurm_gave_it(bench: SlurmBench) -> None:
    run = bench.place(
        *SHORT, "seed=18", "scheduler.gres='gpu:2'", "scheduler.setup=['echo gpus $CUDA_VISIBLE_DEVICES']"
    )
    assert bench.ended(run)["status"] == "done"
    assert bench.said(run).startswith("gpus 0,1\n")


def test_a_command_whose_time_is_over_is_ended(bench: SlurmBench) -> None:
    (bench.folder / "conf" / "experiment" / "sleeps.yaml").write_text(_SLEEPS)
    ran = bench.start(*HOST[:-1], "experiment=sleeps", "scheduler=slurm")
    assert ran.stderr is not None
    while "started" not in (line := ran.stderr.readline()) and "running" not in line:
        assert line, "xrun ended early"
    run = max((bench.folder_of(name) for name in bench.runs()), key=lambda run: run.path.stat().st_ctime)
    until(lambda: writes_to(run.out), "the command runs")
    end_the_time(bench, run)
    ran.communicate(timeout=180)
    record = bench.record(run.id)
    assert (record["status"], record["message"]) == (
        "timeout",
        "the time of its SLURM job was over (scheduler.time)",
    )


_SLEEPS = """\
# @package _global_
experiment: {name: sleeps, command: [sleep, "1000"], outputs: [a.txt]}
training: {steps: 1, batch_size: 1}
"""
