"""The folder of sweeps: the only module that spells a path below `runs/sweeps/`.

What a sweep's trials became stands in their own runs, which name the sweep; here stands only what was asked for.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner import durable
from runner.canonical import canonical_bytes, digest_of, digest_of_value
from runner.errors import StoreError
from runner.held import is_held, take
from runner.parse import ParseError, parse, plain
from runner.space import Direction

VERSION = 1
_SWEEP_ID = re.compile(r"sweep-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A trial that was known when the sweep began."""

    number: int
    words: tuple[str, ...]
    """Of a command line that runs this trial alone."""
    spec_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFacts:
    """What was asked for."""

    version: int = VERSION
    xrun: str
    """Version of xrun."""
    kind: Literal["grid", "optuna"]
    words: tuple[str, ...]
    """Of the command line, after `xrun -m`."""
    swept: tuple[int, ...]
    """Places of the words that differ from trial to trial."""
    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    trials: int
    retries: int
    source: str
    """Digest of the source snapshot of every trial."""
    started_at: str
    """UTC, of the first start."""
    planned: tuple[Planned, ...]
    """A grid's trials; a search plans none ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFolder:
    """One sweep's folder, and where each thing of it lies."""

    path: Path

    @property
    def id(self) -> str:
        """The sweep's id: `sweep-<8 hex>` of all that was asked for."""
        return self.path.name

    @property
    def facts(self) -> Path:
        """What was asked for."""
        return self.path / "sweep.json"

    @property
    def leases(self) -> Path:
        """Which trial held which slots, from when to when."""
        return self.path / "leases.jsonl"

    @property
    def lock(self) -> Path:
        """The file whose kernel lock says that somebody looks after the sweep."""
        return self.path / "owner"


def sweep_id(words: Sequence[str], conf: Path, lockfiles: Sequence[Path], source: str) -> str:
    """Return the id of a sweep: the same words, conf/, locks and source are the same sweep, started again.

    How many trials there are, side by side and in all, is no part of it: a sweep can be made longer.
    """
    files = [*sorted(conf.rglob("*.yaml")), *sorted(lockfiles)]
    asked = {
        "words": [word for word in words if not word.startswith(("sweep.trials=", "sweep.jobs=", "sweep.retries="))],
        "files": [[path.relative_to(conf.parent).as_posix(), digest_of(path.read_bytes())] for path in files],
        "source": source,
    }
    return f"sweep-{digest_of_value(asked).removeprefix('sha256:')[:8]}"


class SweepStore:
    """The sweeps below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, name: str, conf: Path, lockfiles: Sequence[Path]) -> SweepFolder:
        """Return a sweep's folder, made with copies of conf/ and locks where it is new. Raises StoreError.

        So a sweep goes on as it began, whatever becomes of the files it began with.
        """
        folder = SweepFolder(path=self.root / name)
        aside = self.root / f".new-{os.urandom(4).hex()}"
        try:
            if not folder.path.exists():
                shutil.copytree(conf, aside / "conf", ignore=lambda _, names: [n for n in names if n.startswith(".")])
                (aside / "lock").mkdir()
                for path in lockfiles:
                    shutil.copy(path, aside / "lock" / path.name)
                aside.rename(folder.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # who comes second finds the same there
                raise StoreError(f"cannot make {folder.path}: {error.strerror}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return folder

    def hold(self, folder: SweepFolder) -> int:
        """Hold a sweep until the descriptor is closed or this process ends. Raises StoreError where another does."""
        try:
            descriptor = take(folder.lock)
        except OSError as error:
            raise StoreError(f"cannot hold {folder.lock}: {error.strerror}") from error
        if descriptor is None:
            raise StoreError(f"{folder.id} runs already", hint=f"xrun sweep show {folder.id}")
        return descriptor

    def save(self, folder: SweepFolder, facts: SweepFacts) -> None:
        """Write what was asked for. Raises StoreError."""
        durable.write(folder.facts, canonical_bytes(plain(facts)))

    def load(self, folder: SweepFolder) -> SweepFacts:
        """Return what was asked for. Raises StoreError where it cannot be read."""
        try:
            facts = parse(SweepFacts, json.loads(folder.facts.read_bytes()))
        except (OSError, ValueError, RecursionError, ParseError) as error:
            raise StoreError(f"{folder.facts} cannot be read: {error}") from error
        if facts.version != VERSION:
            raise StoreError(f"{folder.facts}: this xrun reads version {VERSION}, found {facts.version}")
        return facts

    def owner(self, folder: SweepFolder) -> int | None:
        """Return the process that looks after the sweep now, None where none does."""
        if not is_held(folder.lock):
            return None
        text = folder.lock.read_text(encoding="ascii", errors="replace").strip()
        return int(text) if text.isdecimal() else None

    def is_running(self, folder: SweepFolder) -> bool:
        """Say whether somebody looks after the sweep now."""
        return is_held(folder.lock)

    def find(self, text: str) -> SweepFolder:
        """Return the sweep of an id, of a unique beginning of one, or the newest (`last`). Raises StoreError."""
        folders = self.folders()
        if text == "last" and folders:
            return folders[0]
        found = [folder for folder in folders if text and folder.id.startswith((text, f"sweep-{text}"))]
        if len(found) == 1:
            return found[0]
        if found:
            raise StoreError(f"{text!r} begins the ids of {', '.join(folder.id for folder in found)}")
        raise StoreError(f"no sweep {text!r} in {self.root}", hint="xrun sweep ls")

    def folders(self) -> list[SweepFolder]:
        """Return the folders of all sweeps that have begun, the newest first."""
        found = [SweepFolder(path=path) for path in self.root.glob("sweep-*") if _SWEEP_ID.fullmatch(path.name)]
        begun = [folder for folder in found if folder.facts.exists()]
        return sorted(begun, key=lambda folder: folder.facts.stat().st_mtime_ns, reverse=True)
