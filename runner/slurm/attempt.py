"""The attempts of a run: each has an `out` of its own, and goes on from the newest checkpoint of those before it."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from runner import durable
from runner.canonical import canonical_bytes
from runner.checkpoints import has_checkpoint
from runner.errors import StoreError
from runner.machine import Gpu
from runner.parse import Scalar
from runner.run_folder import RunFolder
from runner.slurm.order import SlurmFiles


def begin_attempt(folder: RunFolder) -> None:
    """Put aside what earlier attempts left, so that `out` is empty and nothing asks the run to stop.

    May be done again after it was interrupted anywhere. Raises StoreError.
    """
    files = SlurmFiles(folder)
    try:
        for left in (files.time_is_over, files.exit_file, folder.control / "stop", *files.failures()):
            left.unlink(missing_ok=True)
        if folder.out.is_dir() and any(folder.out.iterdir()):
            earlier = folder.attempt(len(folder.outs) - 1)
            earlier.mkdir(parents=True, exist_ok=True)
            if folder.wandb.is_dir():
                folder.wandb.rename(earlier / "wandb")
            folder.out.rename(earlier / "out")
            durable.sync_folder(earlier)
        folder.out.mkdir(exist_ok=True)
        durable.write(files.nonce, secrets.token_hex(16).encode(), mode=0o600)
        files.begun.touch()
        durable.sync_folder(folder.path)
    except OSError as error:
        raise StoreError(f"{folder.id}: an attempt cannot begin: {error.filename}: {error.strerror}") from error


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """Return the `out` of the newest earlier attempt that holds a checkpoint."""
    return next((out for out in folder.outs[1:] if has_checkpoint(out)), None)


def machine_before(folder: RunFolder, facts: dict[str, Scalar], *, goes_on: bool) -> dict[str, Scalar]:
    """Return the facts of the machine whose checkpoint is gone on from; where there is none, keep these instead."""
    path = SlurmFiles(folder).machine
    if not (goes_on and path.exists()):
        durable.write(path, canonical_bytes(facts))
        return facts
    try:
        known: dict[str, Scalar] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    return known


def allotted(gpus: tuple[Gpu, ...], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return those of a node's GPUs, in nvidia-smi's order, that SLURM gave to this step.

    Where it hides all others, nvidia-smi lists just these, and numbers are relative; else they are the node's own.
    """
    names = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")
    given = next((environment[name] for name in names if environment.get(name)), "")
    wanted = [word.strip() for word in given.split(",") if word.strip()]
    if len(wanted) == len(gpus):
        return gpus
    by_word = {str(number): gpu for number, gpu in enumerate(gpus)} | {gpu.uuid: gpu for gpu in gpus}
    return tuple(by_word[word] for word in wanted if word in by_word)
