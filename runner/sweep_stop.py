"""`xrun sweep stop`: whoever looks after a sweep ends its trials; those that a cluster has are ended here."""

import os
import signal
import time
from contextlib import suppress

from runner.prepare import Say
from runner.slurm.client import Slurm
from runner.slurm_stop import stop_placed
from runner.store import RunStore
from runner.sweeps import SweepFolder, SweepStore
from runner.trials import runs_of

_LOOK_S = 0.2


def stop_sweep(store: RunStore, sweeps: SweepStore, text: str, say: Say) -> None:
    """End all trials of a sweep, those that run with a checkpoint, and wait until they have ended. Raises XrunError."""
    sweep = sweeps.find(text)
    _end_owner(sweeps, sweep, say)
    placed = [run for runs in runs_of(store, sweep.id).values() for run in runs if run.status == "submitted"]
    if placed:
        stop_placed(placed, store, Slurm(), say)
    say(f"stopped; to go on: xrun sweep resume {sweep.id}")


def _end_owner(sweeps: SweepStore, sweep: SweepFolder, say: Say) -> None:
    pid = sweeps.owner(sweep)
    if pid is None:
        say(f"no xrun looks after {sweep.id} now")
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    say(f"{sweep.id}: asked process {pid} to end it")
    while sweeps.owner(sweep) == pid:
        time.sleep(_LOOK_S)
