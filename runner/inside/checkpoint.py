"""Checkpoints: the full state of a run after a step, whole or not there."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING, Any

import torch

from runner.inside.digests import digest_of_file, digest_of_tensors
from runner.inside.files import sync_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def generator_states() -> dict[str, Any]:
    """Return the state of this rank's random generators."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def save(folder: Path, step: int, model: Mapping[str, torch.Tensor], training: Mapping[str, Any]) -> str:
    """Write checkpoints/step-<8 digits>/ and return the digest of the weights in it.

    model.pt is the plain state_dict that any torch program loads; training.pt is the rest of the run's state.
    """
    final = folder / f"step-{step:08d}"
    aside = folder / f".{final.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, state in (("model.pt", model), ("training.pt", training)):
        with (aside / name).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    weights = digest_of_tensors(model)
    files = {
        path.name: {"size": path.stat().st_size, "digest": digest_of_file(path)} for path in sorted(aside.iterdir())
    }
    write_whole(aside / "manifest.json", {"step": step, "weights": weights, "files": files})
    aside.replace(final)
    sync_folder(folder)
    return weights
