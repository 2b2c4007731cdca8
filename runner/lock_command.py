"""`xrun lock experiment=…`: pins, checks, and what is printed of them."""

import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from runner import machine, numerics
from runner.arguments import LockArguments
from runner.conf.compose import compose
from runner.config import Config
from runner.container import Conduct, limits_of
from runner.engines.select import pick
from runner.errors import ConfigError, LockError, XrunError
from runner.images import disk
from runner.levels import SEEDED
from runner.lock import Lock
from runner.locking import changes, load, recorded, relock, save
from runner.machine import Machine
from runner.prepare import Workshop, pin_image
from runner.resolve import require_current, run_spec
from runner.source import snapshot

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
    here = machine.probe()
    new = relock(config, old, pin, recorded(config, here))
    if new.numerics is None or words.upgrade == "all":
        new = _with_numerics(new, config, workshop, here)
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


def _with_numerics(lock: Lock, config: Config, workshop: Workshop, here: Machine) -> Lock:
    """Return a lock with what its image computes on this machine; as it is, and say why, where that cannot be had."""
    if config.experiment.command or lock.determinism.level == SEEDED:
        return lock
    why = ""
    if not machine.satisfies(lock.hardware, here):
        why = f"this machine is not what hardware={lock.hardware_name} requires"
    elif config.engine == "host":
        why = "engine=host runs no image"
    else:
        try:
            return replace(lock, numerics=_probed(lock, config, workshop, here))
        except XrunError as error:
            why = error.message.splitlines()[0]
    workshop.say(f"numerics: left {'open' if lock.numerics is None else 'as pinned'}: {why}")
    return lock


def _probed(lock: Lock, config: Config, workshop: Workshop, here: Machine) -> dict[str, str]:
    source = snapshot(workshop.project.experiments, workshop.project.runs)
    spec = replace(run_spec(lock, config, config, source.digest), ranks=1)
    gpus = machine.leasable(lock.hardware, here)[: min(lock.hardware.gpu_count, 1)]
    conduct = Conduct(
        nonce=secrets.token_hex(16),
        log_every_steps=1,
        hang_timeout_s=config.scheduler.hang_timeout_s,
        limits=limits_of(config.hardware),
        gpus=tuple(gpu.uuid for gpu in gpus),
    )
    with disk.aside(workshop.home / "numerics") as folder:
        return numerics.probe(spec, source, pick(config.engine, workshop.images), conduct, folder)


def _refuse_hyperparameters(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] not in _PINNING:
            raise ConfigError(
                f"{override}: a lock pins what conf/ says; hyperparameters are overridden at the run",
                hint=f"xrun {' '.join(overrides)}",
            )
