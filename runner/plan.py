"""What a run is decided by: config, lock, source and this machine, brought together for all runs of a command."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner import machine
from runner.arguments import RunArguments
from runner.conf.compose import Composer
from runner.config import Config, self_test_steps
from runner.container import limits_of
from runner.launch import Launch
from runner.lock import Lock
from runner.locking import Use, changes, load, lock_for_run, recorded, relock, save
from runner.machine import Machine
from runner.prepare import Workshop, pin_image
from runner.project import Project
from runner.record import Conducted
from runner.resolve import run_spec
from runner.source import Source
from runner.spec import RunSpec

# What a lock is made of; and the scheduler, without which some of it makes no sense.
_SELECTIONS = ("experiment", "hardware", "image", "scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a run is decided by."""

    config: Config
    lock: Lock
    spec: RunSpec
    source: Source
    here: Machine
    overrides: tuple[str, ...]

    @property
    def relock(self) -> str:
        """The command that pins this run's image anew."""
        return f"xrun lock experiment={self.lock.experiment} hardware={self.lock.hardware_name}"


class Planner:
    """Plans runs from one conf/, one source snapshot and this machine as it is now."""

    def __init__(self, workshop: Workshop, project: Project, use: Use, source: Callable[[], Source]) -> None:
        self.composer = Composer(project.conf)
        self.here = machine.probe()
        self._workshop = workshop
        self._project = project
        self._use = use
        # Taken when the first plan is known to be right, and once.
        self.source = functools.cache(source)
        # The trials of a sweep mostly choose alike.
        self._base = functools.cache(self.composer.compose)

    def plan(self, overrides: Sequence[str]) -> Plan:
        """Return what a command line's words decide. Raises XrunError, HardwareError where it cannot run here."""
        config = self.composer.compose(overrides)
        selections = (word for word in overrides if word.partition("=")[0].partition(".")[0] in _SELECTIONS)
        base = self._base(tuple(selections))
        lock = self._lock(base, config)
        if config.scheduler.kind == "local":  # a cluster's nodes are asked there
            path = self._project.lockfile(lock.experiment, lock.hardware_name)
            machine.require(lock.hardware, self.here, str(path))
        return Plan(
            config=config,
            lock=lock,
            spec=run_spec(lock, base, config, self.source().digest),
            source=self.source(),
            here=self.here,
            overrides=tuple(overrides),
        )

    def _lock(self, base: Config, config: Config) -> Lock:
        """Return the lock of a run, and keep what a plain run adds to it."""
        root, say = self._project.root, self._workshop.say
        path = self._project.lockfile(config.experiment.name, config.hardware.name)
        old = load(root, path)
        lock = lock_for_run(path, old, base, config, self._use)
        if lock is None:
            pin = functools.partial(pin_image, config.image, self._workshop, upgrade=False)
            lock = relock(base, None, pin, recorded(base, self.here))
        if lock != old:
            for change in changes(old, lock) if old else ["is new; commit it"]:
                say(f"{path}: {change}")
            save(root, path, lock)
        return lock


def use_of(words: RunArguments) -> Use:
    """Return how a command line wants its lock to be used."""
    return "locked" if words.locked else "frozen" if words.frozen else "plain"


def launch_of(plan: Plan, argv: tuple[str, ...]) -> Launch:
    """Return the execution of a plan."""
    config = plan.config
    conducted = Conducted(
        limits=limits_of(config.hardware),
        tracking=config.tracking,
        scheduler=config.scheduler,
        data_recipe=config.image.data_recipe,
        nodes=config.hardware.nodes,
    )
    return Launch(
        spec=plan.spec,
        source=plan.source,
        conducted=conducted,
        here=plan.here,
        argv=argv,
        overrides=plan.overrides,
        lock_digest=plan.lock.digest,
        self_test_steps=self_test_steps(config),
    )
