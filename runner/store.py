"""The store: the folder of runs.

No file says that a run is running. A record means that it has ended; without one, the kernel's lock on `owner` tells
a run whose xrun lives from one whose xrun died.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner import durable, record_files, spec
from runner.errors import StoreError
from runner.held import hold, is_held, take
from runner.parse import ParseError
from runner.record import Record, Started, Status, to_bytes
from runner.run_folder import RunFolder
from runner.spec import RunSpec

RunStatus = Status | Literal["running", "damaged", "submitted", "queued", "requeued", "cancelled", "unknown"]
"""`submitted`: a cluster has the run; what becomes of it there the store cannot say."""
_RUN_ID = re.compile(r"[^.].*-[0-9a-f]{8}-[1-9][0-9]*")
_NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as the store shows it now."""

    folder: RunFolder
    status: RunStatus
    facts: Record | Started | None
    """The record of a run that has ended, else what it started with; None where it is damaged."""
    problem: str = ""
    """What is damaged; empty where nothing is."""
    note: str = ""
    """What else is known of a run that has no record."""


class RunStore:
    """The runs below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self, run: RunSpec, started: Started, *, elsewhere: bool = False) -> RunFolder:
        """Make the folder of a new run and hold it until `finish` or until this process ends. Raises StoreError.

        With `elsewhere`, it is a cluster's to run.
        """
        staging = RunFolder(path=self.root / f".new-{os.urandom(4).hex()}")
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, staging.path, ignore_errors=True)
            try:
                staging.out.mkdir(parents=True)
                staging.control.mkdir()
                if elsewhere:
                    staging.slurm.mkdir()
                owner = hold(staging.lock)
            except OSError as error:
                raise StoreError(f"cannot make a run's folder below {self.root}: {error.strerror}") from error
            undo.callback(os.close, owner)
            durable.write(staging.spec, run.canonical())
            durable.write(staging.started, to_bytes(started))
            path = self._claim(staging.path, run.run_stem)
            undo.pop_all()
        return RunFolder(path=path, owner=owner)

    def _claim(self, staging: Path, stem: str) -> Path:
        """Give a whole folder the next free id. A rename onto a folder that is not empty fails: one process wins."""
        for number in itertools.count(self._next_number(stem)):
            path = self.root / f"{stem}-{number}"
            try:
                staging.rename(path)
                durable.sync_folder(self.root)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise StoreError(f"cannot make {path}: {error.strerror}") from error
            else:
                return path
        raise AssertionError("numbers do not end")

    def take(self, folder: RunFolder) -> RunFolder:
        """Hold a run that another process has made and let go of. Raises StoreError if it is held or has a record."""
        try:
            owner = take(folder.lock)
        except OSError as error:
            raise StoreError(f"{folder.id} cannot be taken: {error.strerror}") from error
        if owner is None:
            raise StoreError(f"{folder.id} cannot be taken: another process holds it")
        if folder.record.exists():
            os.close(owner)
            raise StoreError(f"{folder.id} has a record already; a run ends once")
        return RunFolder(path=folder.path, owner=owner)

    def let_go(self, folder: RunFolder) -> RunFolder:
        """Hold a run no more: another process is to go on with it."""
        assert folder.owner is not None, "only the process that holds a run lets go of it"
        os.close(folder.owner)
        return RunFolder(path=folder.path)

    def next_id(self, stem: str) -> str:
        """Return the id that the next run of a spec will have, if nobody is faster."""
        return f"{stem}-{self._next_number(stem)}"

    def _next_number(self, stem: str) -> int:
        numbers = [int(number) for begin, _, number in (name.rpartition("-") for name in self.ids()) if begin == stem]
        return max(numbers, default=0) + 1

    def finish(self, folder: RunFolder, record: Record) -> None:
        """Commit a run: its record appears, whole and last; then its files become read-only. Raises StoreError."""
        assert folder.owner is not None, "only the process that started a run finishes it"
        if folder.record.exists():
            raise StoreError(f"{folder.id} has a record already; a run ends once")
        durable.write(folder.record, to_bytes(record), mode=0o444)
        durable.make_read_only(folder.path)
        os.close(folder.owner)

    def find(self, text: str) -> RunFolder:
        """Return the run of an id, of a unique beginning of one, or the newest (`last`). Raises StoreError."""
        ids = sorted(self.ids())
        if text == "last":
            if not ids:
                raise StoreError(f"there is no run in {self.root} yet", hint="xrun experiment=resnet50")
            return self.runs(at_most=1)[0].folder
        found = [text] if text in ids else [name for name in ids if text and name.startswith(text)]
        if len(found) == 1:
            return RunFolder(path=self.root / found[0])
        if not found:
            raise StoreError(f"no run {text!r} in {self.root}", hint="xrun ls")
        more = f" and {len(found) - _NAMED_AT_MOST} more" if len(found) > _NAMED_AT_MOST else ""
        raise StoreError(f"{text!r} begins the ids of {', '.join(found[:_NAMED_AT_MOST])}{more}", hint="xrun ls")

    def load(self, folder: RunFolder) -> Record:
        """Return the record of a run that has ended. Raises StoreError where there is none or a byte of it changed."""
        record = record_files.read_record(folder.record, folder.id)
        if record is None:
            why = "still runs" if is_held(folder.lock) else "was interrupted"
            raise StoreError(f"{folder.id} has no record: it {why}", hint="xrun ls")
        return record

    def started(self, folder: RunFolder) -> Started:
        """Return what was known of a run when it started. Raises StoreError where a byte of it changed."""
        return record_files.read_started(folder.started)

    def load_spec(self, folder: RunFolder) -> RunSpec:
        """Return the spec that a run was started with. Raises StoreError where a byte of it changed."""
        try:
            data = folder.spec.read_bytes()
            run = spec.from_mapping(json.loads(data))
        except (OSError, ValueError, RecursionError, ParseError) as error:
            raise StoreError(f"{folder.spec} cannot be read: {error}") from error
        if run.canonical() != data or run.run_stem != folder.id.rpartition("-")[0]:
            raise StoreError(f"{folder.spec} has been edited: its digest is {run.digest}")
        return run

    def look(self, folder: RunFolder) -> Run:
        """Return a run as it is now. A damaged one is shown as such: one bad file must not hide the others."""
        try:
            record = record_files.read_record(folder.record, folder.id)
            is_running = record is None and is_held(folder.lock)
            if record is None and not is_running:
                # It may have ended between the two looks; the lock is freed after the record is there.
                record = record_files.read_record(folder.record, folder.id)
            if record is None:
                status: RunStatus = "running" if is_running else "interrupted"
                if folder.slurm.is_dir():
                    status = "submitted"
                return Run(folder=folder, status=status, facts=record_files.read_started(folder.started))
        except StoreError as error:
            return Run(folder=folder, status="damaged", facts=None, problem=error.message)
        return Run(folder=folder, status=record.status, facts=record)

    def runs(self, *, at_most: int | None = None) -> list[Run]:
        """Return runs, the newest first. With at_most, no more than these are read: a store may hold thousands."""
        folders = [RunFolder(path=self.root / name) for name in self.ids()]
        folders.sort(key=lambda folder: (record_files.started_at(folder.started), folder.id), reverse=True)
        return [self.look(folder) for folder in folders[:at_most]]

    def ids(self) -> list[str]:
        """Return the ids of all runs, in no order."""
        try:
            with os.scandir(self.root) as entries:
                return [entry.name for entry in entries if _RUN_ID.fullmatch(entry.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.root} cannot be read: {error.strerror}") from error
