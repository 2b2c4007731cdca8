"""Where things are: the project around the current folder, and xrun's own home."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """The folders of one project."""

    root: Path

    @property
    def conf(self) -> Path:
        """What a person asks for."""
        return self.root / "conf"

    @property
    def experiments(self) -> Path:
        """The experiments' modules."""
        return self.root / "experiments"

    @property
    def runs(self) -> Path:
        """The store."""
        return self.root / "runs"

    @property
    def sweeps(self) -> Path:
        """The sweeps' folders."""
        return self.runs / "sweeps"

    def recipe(self, name: str) -> Path:
        """Return the folder of an image's recipe."""
        return self.root / "images" / name

    def lockfile(self, experiment: str, hardware: str) -> Path:
        """Return the path of a lockfile, relative to the project."""
        return Path("lock") / f"{experiment}.{hardware}.lock"


def find_project(start: Path) -> Project:
    """Return the project that a folder is in. Raises ConfigError where there is none."""
    for folder in (start, *start.parents):
        if (folder / "conf" / "config.yaml").is_file():
            return Project(root=folder)
    raise ConfigError(f"no conf/config.yaml in {start} or above it", hint="cd <the folder that holds conf/>")


def leases(environment: Mapping[str, str]) -> Path:
    """Return where the slots of this machine are given out: XRUN_LEASES, or one folder for all of its users.

    Inside a SLURM job, whose GPUs and CPUs are its own, those of the job alone.
    """
    if chosen := environment.get("XRUN_LEASES"):
        return Path(chosen).absolute()
    job = environment.get("SLURM_JOB_ID", "")
    return Path("/run/lock", f"xrun-slurm-{job}" if job.isdecimal() else "xrun")


def home(environment: Mapping[str, str]) -> Path:
    """Return where images and caches are kept: XRUN_HOME, or the user's cache folder."""
    if chosen := environment.get("XRUN_HOME"):
        return Path(chosen).absolute()
    own = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111, Path's needs an environment that has a home
    return Path(environment.get("XDG_CACHE_HOME") or f"{own}/.cache") / "xrun"
