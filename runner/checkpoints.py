"""The checkpoints that a run left: which of them its record pins, and the state that each one holds."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from runner.errors import RunFailed, StoreError
from runner.hostile import opened, opened_folder
from runner.record import Record

_MANIFEST = re.compile(r"out/checkpoints/step-([0-9]{8})/manifest\.json")
_FOLDER = re.compile(r"step-[0-9]{8}")
_MANIFEST_CAP_BYTES = 1 << 20


def steps_pinned(record: Record) -> list[int]:
    """Return the steps after which a run left a checkpoint, in order."""
    return sorted(int(match[1]) for match in map(_MANIFEST.fullmatch, record.files) if match)


def has_checkpoint(out: Path) -> bool:
    """Say whether an `out` folder holds a checkpoint, whole or not: whoever reads it verifies it."""
    with suppress(OSError), os.scandir(out / "checkpoints") as entries:
        return any(_FOLDER.fullmatch(entry.name) for entry in entries)
    return False


def below(step: int) -> str:
    """Return where a checkpoint lies in a run's folder."""
    return f"out/checkpoints/step-{step:08d}/"


def state_after(out: Path, step: int) -> object:
    """Return what identifies the state after a step: its digest, and the heads of the traces. Raises StoreError."""
    path = out.parent / below(step)
    try:
        with opened_folder(path) as folder, opened(folder, "manifest.json", "manifest.json") as (file, size):
            manifest = json.loads(os.read(file, min(size, _MANIFEST_CAP_BYTES)))
            return manifest["state"], manifest["chains"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, RunFailed) as error:
        raise StoreError(f"{path}manifest.json cannot be read: {error!r:.100}") from error
