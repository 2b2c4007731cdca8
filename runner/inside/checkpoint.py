"""Checkpoints: the full state of a run after a step, whole or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from runner.inside.digests import digest_of_state, digest_of_tensors
from runner.inside.files import digest_of_file, sync_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MODEL, TRAINING, MANIFEST = "model.pt", "training.pt", "manifest.json"
_NAME = re.compile(r"step-([0-9]{8})")


class Damaged(Exception):
    """A checkpoint is not as it was written."""


def save(
    folder: Path, step: int, model: Mapping[str, torch.Tensor], training: Mapping[str, Any], chains: Sequence[bytes]
) -> str:
    """Write step-<8 digits>/ and return the digest of the whole state in it.

    model.pt is the plain state_dict that any torch program loads; training.pt is the rest of the run's state.
    `chains` are the heads of all traces: with them, a checkpoint says which history it belongs to.
    """
    final = folder / f"step-{step:08d}"
    with _aside(final) as aside:
        for name, part in ((MODEL, model), (TRAINING, training)):
            with (aside / name).open("wb") as file:
                torch.save(part, file)
                file.flush()
                os.fsync(file.fileno())
        state = digest_of_state([step, model, training])
        files = {
            path.name: {"size": path.stat().st_size, "digest": digest_of_file(path)} for path in sorted(aside.iterdir())
        }
        manifest = {
            "step": step,
            "weights": digest_of_tensors(model),
            "state": state,
            "chains": [chain.hex() for chain in chains],
            "files": files,
        }
        write_whole(aside / MANIFEST, manifest)
    return state


def copy(source: Path, folder: Path) -> None:
    """Copy a checkpoint into another folder of checkpoints."""
    with _aside(folder / source.name) as aside:
        for name in (MODEL, TRAINING, MANIFEST):
            shutil.copyfile(source / name, aside / name)


@contextmanager
def _aside(final: Path) -> Iterator[Path]:
    """Yield a folder that takes its final name when all of it is there."""
    path = final.with_name(f".{final.name}.partial")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path
    path.replace(final)
    sync_folder(final.parent)


def keep_newest(folder: Path, count: int) -> None:
    """Delete all but the newest checkpoints of a folder; 0 keeps all."""
    for _, path in found(folder)[:-count] if count else ():
        shutil.rmtree(path)


def found(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a folder by their steps, the oldest first."""
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in named if match)


def verified(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest. Raises Damaged unless every file is as the manifest states."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        for name in (MODEL, TRAINING):
            stated = manifest["files"][name]
            if not (path / name).is_file():
                raise Damaged(f"{path.name}/{name} is missing")
            if {"size": (path / name).stat().st_size, "digest": digest_of_file(path / name)} != stated:
                raise Damaged(f"{path.name}/{name} is not what its manifest states")
        if f"step-{manifest['step']:08d}" != path.name:
            raise Damaged(f"{path.name} holds step {manifest['step']}")
        bytes.fromhex("".join(manifest["chains"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path.name}/{MANIFEST} cannot be read: {error!r:.100}") from error
    return manifest


def load(path: Path, manifest: Mapping[str, Any]) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
    """Return the model's state and the rest of a checkpoint that was verified. Raises Damaged."""
    model, training = (torch.load(path / name, map_location="cpu", weights_only=True) for name in (MODEL, TRAINING))
    if digest_of_state([manifest["step"], model, training]) != manifest["state"]:
        raise Damaged(f"{path.name} holds another state than its manifest states")
    return model, training
