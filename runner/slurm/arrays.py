"""Many runs as few SLURM arrays: each task finds its run's folder in a list, by its index."""

from collections.abc import Sequence
from dataclasses import dataclass

from runner import durable
from runner.canonical import digest_of_value
from runner.config import Scheduler
from runner.run_folder import RunFolder
from runner.slurm.client import Slurm, TooMany
from runner.slurm.order import Claim, SlurmFiles
from runner.slurm.placement import job_of
from runner.slurm.script import Batch, Runtime, Size, batch_script, size_of
from runner.store import RunStore

_ARRAYS = ".slurm"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """What one array asks for all its runs."""

    size: Size
    scheduler: Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """Where arrays are handed in."""

    store: RunStore
    slurm: Slurm
    runtime: Runtime


def submit_array(folders: Sequence[RunFolder], store: RunStore, slurm: Slurm, runtime: Runtime) -> dict[str, str]:
    """Submit prepared runs as few arrays as can be; those that are submitted already are found. Run id -> job id.

    A run that is missing in the answer is one for which SLURM has no room now: ask again later. `array_parallelism`
    is each array's own: runs that ask for different things, or more than MaxArraySize of them, are several.
    Raises SchedulerError.
    """
    queue = slurm.queue(fresh=True)
    found = {folder.id: job_of(folder, queue) for folder in folders}
    jobs = {run: job for run, job in found.items() if job is not None}
    by_ask: dict[_Ask, list[RunFolder]] = {}
    for folder in folders:
        if folder.id not in jobs:
            by_ask.setdefault(_asked(folder, store), []).append(folder)
    limit = slurm.array_limit() if by_ask else 1
    desk = _Desk(store=store, slurm=slurm, runtime=runtime)
    for ask, alike in by_ask.items():
        for at in range(0, len(alike), limit):
            jobs |= _submit(alike[at : at + limit], ask, desk)
    return jobs


def _asked(folder: RunFolder, store: RunStore) -> _Ask:
    conducted = store.started(folder).conducted
    assert conducted is not None
    size = size_of(store.load_spec(folder), conducted.nodes)
    return _Ask(size=size, scheduler=conducted.scheduler)


def _submit(folders: Sequence[RunFolder], ask: _Ask, desk: _Desk) -> dict[str, str]:
    """Submit one array; in halves where that is too much at once."""
    name = f"xrun-{digest_of_value([folder.id for folder in folders]).removeprefix('sha256:')[:8]}"
    path = desk.store.root / _ARRAYS / name
    path.mkdir(parents=True, exist_ok=True)
    script = batch_script(Batch(name=name, folder=path, runs=len(folders)), ask.size, ask.scheduler, desk.runtime)
    durable.write(path / "batch.sh", script.encode(), mode=0o755)
    durable.write(path / "runs.txt", "".join(f"{folder.path}\n" for folder in folders).encode())
    for task, folder in enumerate(folders):
        SlurmFiles(folder).keep_claim(Claim(name=name, folder=str(path), task=task))
    try:
        array = desk.slurm.submit(path / "batch.sh")
    except TooMany:
        if len(folders) == 1:
            return {}
        middle = len(folders) // 2
        taken = _submit(folders[:middle], ask, desk)
        return taken | _submit(folders[middle:], ask, desk) if len(taken) == middle else taken
    for task, folder in enumerate(folders):
        SlurmFiles(folder).keep_job(f"{array}_{task}")
    return {folder.id: f"{array}_{task}" for task, folder in enumerate(folders)}
