"""A run that SLURM has is ended for good: with a checkpoint if it runs, at once if it waits."""

import time

from runner.prepare import Say
from runner.run_folder import RunFolder
from runner.slurm.client import Slurm
from runner.slurm.placement import cancel, end_now, settled, states
from runner.store import Run, RunStore

_LOOK_S = 0.3
# What a node program takes to commit a record when its container has ended.
_RECORD_S = 15.0


def stop_placed(run: Run, store: RunStore, say: Say) -> Run:
    """Stop a run that a cluster has, and return it with its record. Raises SchedulerError, StoreError."""
    folder, slurm = run.folder, Slurm()
    was = cancel(folder, slurm)
    if was is not None and was.word == "running":
        grace_s = _grace_s(folder, store)
        say(f"{folder.id}: stopping after this step, with a checkpoint; Ctrl-C lets it go on to stop")
        if not _has_ended(folder, slurm, grace_s + _RECORD_S):
            say(f"{folder.id}: did not stop in scheduler.grace_s={grace_s}; cancelled")
            end_now(folder, slurm)
    _has_ended(folder, slurm, _RECORD_S)
    return settled(store.look(folder), store, slurm)


def _grace_s(folder: RunFolder, store: RunStore) -> int:
    conducted = store.started(folder).conducted
    return 0 if conducted is None else conducted.scheduler.grace_s


def _has_ended(folder: RunFolder, slurm: Slurm, limit_s: float) -> bool:
    """Wait until a run has a record, or its job has ended without."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if folder.record.exists():
            return True
        state = states([folder], slurm).get(folder.id)
        if state is None or state.has_ended:
            return True
        time.sleep(_LOOK_S)
    return False
