"""Runs that SLURM has are ended for good: with a checkpoint if they run, at once if they wait."""

import time
from collections.abc import Sequence

from runner.prepare import Say
from runner.run_folder import RunFolder
from runner.slurm.client import Slurm
from runner.slurm.placement import cancel, end_now, settled, states
from runner.store import Run, RunStore

_LOOK_S = 0.3
# What a node program takes to commit a record when its container has ended.
_RECORD_S = 15.0


def stop_placed(runs: Sequence[Run], store: RunStore, slurm: Slurm, say: Say) -> list[Run]:
    """Stop runs that a cluster has, all at once, and return them with their records. SchedulerError, StoreError."""
    folders = [run.folder for run in runs]
    if running := cancel(folders, slurm):
        grace_s = max(_grace_s(folder, store) for folder in running)
        say(f"{_which(running)}: stopping after this step, with a checkpoint; Ctrl-C leaves that to the nodes")
        if late := _unended(running, slurm, grace_s + _RECORD_S):
            say(f"{_which(late)}: did not stop in scheduler.grace_s={grace_s}; cancelled")
            end_now(late, slurm)
    _unended(folders, slurm, _RECORD_S)
    return settled([store.look(folder) for folder in folders], store, slurm)


def _which(folders: Sequence[RunFolder]) -> str:
    return folders[0].id if len(folders) == 1 else f"{len(folders)} trials"


def _grace_s(folder: RunFolder, store: RunStore) -> int:
    conducted = store.started(folder).conducted
    return 0 if conducted is None else conducted.scheduler.grace_s


def _unended(folders: Sequence[RunFolder], slurm: Slurm, limit_s: float) -> list[RunFolder]:
    """Wait until runs have records, or their jobs have ended without; returns those of which neither is so then."""
    deadline = time.monotonic() + limit_s
    left = list(folders)
    while left and time.monotonic() < deadline:
        left = [folder for folder in left if not folder.record.exists()]
        known = states(left, slurm)
        left = [folder for folder in left if folder.id in known and not known[folder.id].has_ended]
        time.sleep(_LOOK_S)
    return left
