"""`xrun lock experiment=…`: pins, checks, and what is printed of them."""

import sys
from collections.abc import Sequence
from functools import partial

from runner import machine
from runner.arguments import LockArguments
from runner.conf.compose import compose
from runner.errors import ConfigError, LockError
from runner.locking import changes, load, recorded, relock, save
from runner.prepare import Workshop, pin_image
from runner.resolve import require_current

_PINNING = ("experiment", "hardware", "image", "determinism")


def lock_experiment(workshop: Workshop, words: LockArguments) -> int:
    """Pin an experiment, or check its lock, and return xrun's exit code. Raises XrunError."""
    _refuse_hyperparameters(words.overrides)
    config = compose(workshop.project.conf, words.overrides)
    path = workshop.project.lockfile(config.experiment.name, config.hardware.name)
    old = load(workshop.project.root, path)
    if words.check:
        asked = " ".join(words.overrides)
        if old is None:
            raise LockError(f"{path} is missing", hint=f"xrun lock {asked}")
        require_current(old, config, path, asked)
        sys.stdout.write(f"{path} is up to date\n")
        return 0
    pin = partial(pin_image, config.image, workshop, upgrade=words.upgrade is not None)
    new = relock(config, old, pin, recorded(config, machine.probe()))
    if new == old:
        sys.stdout.write(f"{path} is up to date\n")
        return 0
    for change in changes(old, new) if old else ():
        workshop.say(f"{path}: {change}")
    if old is not None and old.image != new.image:
        workshop.say("the image's digest changed, so run ids will; fingerprints are made of training content alone")
    save(workshop.project.root, path, new)
    sys.stdout.write(f"{path} is written: image {new.image.digest}\n")
    return 0


def _refuse_hyperparameters(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] not in _PINNING:
            raise ConfigError(
                f"{override}: a lock pins what conf/ says; hyperparameters are overridden at the run",
                hint=f"xrun {' '.join(overrides)}",
            )
