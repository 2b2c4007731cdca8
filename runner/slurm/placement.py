"""Runs on SLURM: prepared, submitted alone or as arrays, looked at, cancelled, and settled where no node could.

All of it may be done again after a process that did it was killed: a run's claim is kept before its job exists, and
the queue is asked for a claimed job before another is submitted.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runner import durable
from runner.canonical import canonical_bytes
from runner.errors import SchedulerError
from runner.outputs import fact_of
from runner.parse import Scalar
from runner.record import Conducted, Placed, Record, Started, Status, timestamp
from runner.run_folder import RunFolder
from runner.slurm.client import Slurm
from runner.slurm.order import Claim, Order, SlurmFiles
from runner.slurm.script import Batch, Runtime, batch_script, size_of
from runner.slurm.states import JobState, QueuedJob, left_behind
from runner.spec import RunSpec
from runner.store import Run, RunStatus, RunStore

_AS_RECORDED: Mapping[str, Status] = {
    "cancelled": "interrupted",
    "timeout": "timeout",
    "out-of-memory": "out-of-memory",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One run as it is given to SLURM."""

    spec: RunSpec
    started: Started
    order: Order
    conducted: Conducted
    machine: Mapping[str, Scalar] | None = None
    """Facts of the machine whose checkpoint is gone on from; None where the run begins with its first step."""


def script_of(placement: Placement, folder: Path, runtime: Runtime) -> str:
    """Return the batch script of a run of its own."""
    batch = Batch(name=folder.name, folder=folder)
    conducted = placement.conducted
    return batch_script(batch, size_of(placement.spec, conducted.nodes), conducted.scheduler, runtime)


def prepare(placement: Placement, store: RunStore, runtime: Runtime) -> RunFolder:
    """Make a run's folder, complete but for its job. Raises StoreError."""
    folder = store.start(placement.spec, placement.started, elsewhere=True)
    files = SlurmFiles(folder)
    files.keep_order(placement.order)
    if placement.machine is not None:
        durable.write(files.machine, canonical_bytes(dict(placement.machine)))
    durable.write(files.script, script_of(placement, folder.path, runtime).encode(), mode=0o755)
    return store.let_go(folder)


def submit(folder: RunFolder, slurm: Slurm) -> str:
    """Submit a prepared run unless it is submitted already; returns its job's id. Raises SchedulerError, StoreError."""
    files = SlurmFiles(folder)
    if (job := job_of(folder, slurm.queue(fresh=True))) is None:
        files.keep_claim(Claim(name=folder.id, folder=str(folder.path), task=None))
        job = slurm.submit(files.script)
        files.keep_job(job)
    return job


def job_of(folder: RunFolder, queue: Sequence[QueuedJob]) -> str | None:
    """Return a run's job, also one whose submitter died before it kept the id. Raises SchedulerError if it is over."""
    files = SlurmFiles(folder)
    if (job := files.job()) is not None:
        return job
    if (claim := files.claim()) is None:
        return None
    if (found := _claimed(claim, queue)) is not None:
        files.keep_job(found.id)
        return found.id
    if folder.record.exists() or files.begun.exists():
        raise SchedulerError(f"{folder.id} was submitted, and its job has ended", hint=f"xrun show {folder.id}")
    return None


def _claimed(claim: Claim | None, queue: Sequence[QueuedJob]) -> QueuedJob | None:
    for job in queue if claim else ():
        assert claim is not None
        is_task = claim.task is None or job.id.endswith(f"_{claim.task}")
        if is_task and (job.name, job.folder) == (claim.name, claim.folder):
            return job
    return None


def states(folders: Sequence[RunFolder], slurm: Slurm, *, fresh: bool = False) -> dict[str, JobState]:
    """Return how runs without a record are, by run id: of all of them by one call of squeue. Raises SchedulerError.

    A run that nobody began to submit is missing. `fresh` asks even if the last answer is some seconds old.
    """
    queue = slurm.queue(fresh=fresh)
    by_id = {job.id: job for job in queue}
    found: dict[str, JobState] = {}
    gone: dict[str, str | None] = {}
    for folder in folders:
        files = SlurmFiles(folder)
        claim, job = files.claim(), files.job()
        queued = by_id.get(job) if job else _claimed(claim, queue)
        if queued is not None:
            if job is None:
                files.keep_job(queued.id)
            found[folder.id] = _as_begun(queued.state, files, slurm.asked_at)
        elif claim is not None:
            gone[folder.id] = job
    accounts = slurm.accounts({job for job in gone.values() if job})
    for folder in folders:
        if folder.id in gone:
            job = gone[folder.id]
            found[folder.id] = accounts.get(job or "") or _forgotten(SlurmFiles(folder))
    return found


def _forgotten(files: SlurmFiles) -> JobState:
    """Return how a job is that SLURM knows no more: of an array, it forgets at once a task that never ran."""
    exit_code = files.exit_code()
    if exit_code is None and files.is_cancelled.exists():
        return JobState(word="cancelled", reason="before it began")
    return left_behind(exit_code)


def _as_begun(state: JobState, files: SlurmFiles, asked_at: float) -> JobState:
    """Return a waiting job as one that was requeued if an attempt began before the queue was asked, else as running."""
    if state.word != "queued" or not files.begun.exists():
        return state
    if files.begun.stat().st_mtime > asked_at:
        return JobState(word="running")
    return replace(state, word="requeued")


def seen(runs: Sequence[Run], slurm: Slurm, say: Callable[[str], None]) -> list[Run]:
    """Return runs with what SLURM says of those that it has; no call at all where it has none."""
    placed = [run.folder for run in runs if run.status == "submitted"]
    if not placed:
        return list(runs)
    try:
        known = states(placed, slurm)
    except SchedulerError as error:
        say(f"SLURM does not say how its runs are: {error.message}")
        return [replace(run, status="unknown") if run.status == "submitted" else run for run in runs]
    return [_as_seen(run, known.get(run.folder.id)) if run.status == "submitted" else run for run in runs]


def _as_seen(run: Run, state: JobState | None) -> Run:
    if state is None:
        return replace(run, status="interrupted", note="was not submitted")
    # Done, and no record: the node's words are on their way through the file system, or will never come.
    status: RunStatus = "lost" if state.word == "done" else state.word
    return replace(run, status=status, note=state.reason)


def cancel(
    folders: Sequence[RunFolder], slurm: Slurm, why: str = "", *, status: Status = "interrupted"
) -> list[RunFolder]:
    """Ask runs to end for good: running ones by their node programs, with a checkpoint; waiting ones at once.

    Their records will say `why`, and have the status. Returns those that run. Raises SchedulerError.
    """
    for folder in folders:
        SlurmFiles(folder).keep_cancelled(status, why)
    known = states(folders, slurm, fresh=True)
    ids = {run for run, state in known.items() if state.word == "running"}
    running = [folder for folder in folders if folder.id in ids]
    for folder in running:
        folder.ask_to_stop()
    end_now([folder for folder in folders if folder.id not in ids], slurm)
    return running


def end_now(folders: Sequence[RunFolder], slurm: Slurm) -> None:
    """Cancel the jobs of runs by SLURM itself: their processes get SIGTERM, and after SLURM's KillWait SIGKILL."""
    jobs = [SlurmFiles(folder).job() for folder in folders]
    slurm.cancel([job for job in jobs if job is not None])


def commit(folder: RunFolder, store: RunStore, status: Status, message: str, placed: Placed) -> Record:
    """Commit the record of a run that has no container now. Raises StoreError if it has a record, or is held."""
    held = folder if folder.owner is not None else store.take(folder)
    log = {folder.log.name: fact_of(folder.log)} if folder.log.exists() else {}
    record = Record(
        **store.started(folder).facts(),
        id=folder.id,
        status=status,
        exit_code=None,
        message=message,
        finished_at=timestamp(time.time()),
        duration_s=0.0,
        placed=placed,
        files=log,
    )
    store.finish(held, record)
    return record


def settled(runs: Sequence[Run], store: RunStore, slurm: Slurm) -> list[Run]:
    """Return runs as they are now, their records committed if their jobs ended without. Raises SchedulerError."""
    placed = [run.folder for run in runs if run.status == "submitted"]
    known = states(placed, slurm, fresh=True) if placed else {}
    return [_settled(run, store, known.get(run.folder.id)) if run.status == "submitted" else run for run in runs]


def _settled(run: Run, store: RunStore, state: JobState | None) -> Run:
    if state is not None and not state.has_ended:
        return _as_seen(run, state)
    status: Status = "interrupted" if state is None else _AS_RECORDED.get(state.word, "lost")
    message = "was not submitted to SLURM" if state is None else f"its SLURM job: {state.word}, {state.reason}"
    placed = Placed(job=SlurmFiles(run.folder).job() or "", attempts=len(run.folder.outs))
    if not run.folder.record.exists():
        commit(run.folder, store, status, message, placed)
    return store.look(run.folder)
