"""Which lock a run uses, and how a lock is made: uv's words (`--locked`, `--frozen`, `lock --check`, `--upgrade`)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Literal

from runner import durable, machine
from runner.config import Config
from runner.errors import LockError
from runner.inside.leaves import differing, listed
from runner.lock import ImagePin, Lock, to_mapping
from runner.lockfile import lock_text, read_lock
from runner.machine import Machine
from runner.parse import Scalar
from runner.resolve import (
    PinnedImage,
    differences,
    hardware_pin,
    numerics_of,
    refreshed,
    require_current,
    require_pins,
    resolve,
)

Use = Literal["plain", "locked", "frozen"]
PinImage = Callable[[ImagePin | None], PinnedImage]
"""Pins the config's image, keeping what an old lock pinned where that can still be had."""

NOT_YET_RUN: Mapping[str, Scalar] = {"run": "not yet, on this hardware"}


def lock_for_run(path: PurePath, lock: Lock | None, base: Config, config: Config, use: Use) -> Lock | None:
    """Return the lock that a run uses, None where a plain run has yet to make it; no pin of it has moved.

    `base` is what `conf/` says, `config` the same with the command line's overrides. A plain run takes over
    hyperparameters that `conf/` has changed. Raises LockError.
    """
    asked = f"experiment={config.experiment.name} hardware={config.hardware.name}"
    if lock is None:
        if use == "plain":
            return None
        raise LockError(f"{path} is missing", hint=f"xrun lock {asked}")
    require_pins(lock, config, path, asked)
    if use == "frozen":
        return lock
    if use == "locked":
        require_current(lock, base, path, asked)
    return refreshed(lock, base)


def relock(config: Config, old: Lock | None, pin_image: PinImage, recorded: Mapping[str, Scalar]) -> Lock:
    """Pin a config anew, keeping what can still be had. The old lock itself comes back where no pin moved."""
    pinned = pin_image(old.image if old else None)
    new = resolve(config, pinned, recorded)
    if old is not None and (old.image.digest, old.hardware) == (new.image.digest, new.hardware):
        new = replace(new, numerics=numerics_of(old, new.determinism, new.config))
    if old is None or replace(new, recorded=old.recorded) != old:
        return new
    return new if old.recorded == NOT_YET_RUN else old


def changes(old: Lock, new: Lock) -> list[str]:
    """Say what moved between two locks: `image.manifest: sha256:… -> sha256:…`."""
    before, after = (to_mapping(replace(lock, numerics=None)) for lock in (old, new))
    moved = [f"{place}: {was} -> {now}" for place, was, now in differences(before, after)]
    return moved if old.numerics == new.numerics else [*moved, f"numerics: {_moved_numerics(old, new)}"]


def _moved_numerics(old: Lock, new: Lock) -> str:
    if old.numerics is None or new.numerics is None:
        return " -> ".join(
            "open" if pins is None else f"{len(pins)} operators" for pins in (old.numerics, new.numerics)
        )
    others = differing(old.numerics, new.numerics)
    return f"{len(others)} of {len(new.numerics)} operators compute other bits: {listed(others)}"


def recorded(config: Config, here: Machine) -> dict[str, Scalar]:
    """Return a machine's facts where it is what a config requires: another one says nothing of that hardware."""
    return dict(machine.recorded(here) if machine.satisfies(hardware_pin(config.hardware), here) else NOT_YET_RUN)


def load(root: Path, path: PurePath) -> Lock | None:
    """Return the lock of a lockfile, None where there is none. Raises LockError for one that was edited."""
    try:
        text = (root / path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LockError(f"cannot read {path}: {error.strerror}") from None
    return read_lock(text, path)


def save(root: Path, path: PurePath, lock: Lock) -> None:
    """Write a lockfile. Raises StoreError."""
    (root / path).parent.mkdir(exist_ok=True)
    durable.write(root / path, lock_text(lock).encode())
