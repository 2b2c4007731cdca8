"""Weights & Biases beside a run, seen from the run: a child process is told, watched, and never waited for long."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from runner.canonical import canonical_bytes
from runner.config import Tracking
from runner.parse import parse, plain
from runner.record import Metrics, Record, Started, Tracked
from runner.run_folder import RunFolder
from runner.spec import RunSpec
from runner.terminal import clipped, printable
from runner.wandb_environment import child_environment, key_of

_FINISH_S = 30.0
_EXIT_S = 5.0
_MESSAGE_CAP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What the child is told at its start, on one line of stdin."""

    mode: Literal["online", "offline"]
    name: str
    project: str
    entity: str | None
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, object]
    image_digest: str
    pid: int | None
    """The container's first process, whose tree's load is logged; None where it is out of sight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the child is told at the end, on the last line of stdin."""

    status: str
    exit_code: int | None
    fingerprint: str | None
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the child tells, on one line of stdout each."""

    kind: Literal["started", "trouble", "finished"]
    message: str = ""
    id: str | None = None
    mode: Literal["online", "offline"] = "offline"
    url: str | None = None
    path: str | None = None
    """Folder of W&B's files, relative to the run's folder."""


class Tracker:
    """Follows one run. Whatever becomes of the child, the run goes on: trouble is one line to `say`."""

    def __init__(
        self,
        tracking: Tracking,
        spec: RunSpec,
        started: Started,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._tracking = tracking
        self._spec = spec
        self._started = started
        self._environment = environment
        self._say = say
        self._finish_s = _FINISH_S
        self._key = key_of(environment)
        self._child: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self._tracked = Tracked(mode="off")
        self._is_finished = False

    def begin(self, folder: RunFolder, pid: int | None) -> None:
        """Start the child, unless tracking is off. Returns at once."""
        mode = self._tracking.wandb
        if mode == "auto":
            mode = "online" if self._key else "offline"
        if mode == "off":
            return
        if mode == "online" and not self._key:
            self._trouble("tracking.wandb=online, but no key is set (WANDB_API_KEY or `wandb login`); logged offline")
            mode = "offline"
        assignment = self._assignment(folder.id, mode, pid)
        self._tracked = replace(self._tracked, mode=mode)
        try:
            folder.wandb.mkdir()
            with (folder.wandb / "stderr.txt").open("wb") as stderr:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "runner.wandb_log", str(folder.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=child_environment(self._environment, folder.wandb, self._key if mode == "online" else None),
                    start_new_session=True,  # Ctrl-C is for the run; the child ends after it
                )
            self._tell(assignment)
        except OSError as error:
            self._trouble(f"cannot be started: {error.strerror}")

    def look(self) -> None:
        """Pass on what the child has said by now. Returns at once."""
        self._hear(0.0)

    def end(self, record: Record) -> Record:
        """Tell the child how the run ended, give it half a minute, and add to the record where metrics went."""
        if self._child is None:
            return replace(record, wandb=self._tracked)
        self._tell(
            Ending(
                status=record.status,
                exit_code=record.exit_code,
                fingerprint=record.fingerprint,
                metrics=record.metrics,
            )
        )
        with suppress(OSError):
            assert self._child.stdin is not None
            self._child.stdin.close()
        try:
            self._hear(self._finish_s)
        except KeyboardInterrupt:  # Ctrl-C can no longer mean the run, which has ended: it means this wait
            self._trouble("not waited for any longer")
        self._stop()
        return replace(record, wandb=self._tracked)

    def _assignment(self, run_id: str, mode: Literal["online", "offline"], pid: int | None) -> Assignment:
        spec, started = self._spec, self._started
        facts = {
            "run": run_id,
            "spec_digest": started.spec_digest,
            "lock_digest": started.lock_digest,
            "image_digest": started.image_digest,
            "source": started.source,
            "engine": started.engine,
            "level": started.level,
            "ranks": spec.ranks,
            "hardware": plain(spec.hardware),
            "replay_of": started.replay_of,
        }
        return Assignment(
            mode=mode,
            name=run_id,
            project=self._tracking.project,
            entity=self._tracking.entity,
            group=self._tracking.group,
            job_type="replay" if started.replay_of else "train",
            tags=self._tracking.tags,
            config={**spec.config, "xrun": facts},
            image_digest=started.image_digest,
            pid=pid,
        )

    def _tell(self, value: Assignment | Ending) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        # A child that is gone says so by the end of its stdout.
        with suppress(BrokenPipeError):
            self._child.stdin.write(canonical_bytes(plain(value)) + b"\n")
            self._child.stdin.flush()

    def _hear(self, timeout_s: float) -> None:
        """Take in reports until the child has finished or is gone, for at most timeout_s."""
        if self._child is None or self._is_finished:
            return
        assert self._child.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        while not self._is_finished:
            left_s = max(deadline_s - time.monotonic(), 0.0)
            if not select.select([self._child.stdout], [], [], left_s)[0]:
                break
            data = os.read(self._child.stdout.fileno(), 65_536)
            *lines, self._heard = (self._heard + data).split(b"\n")
            for line in lines:
                self._take(parse(Report, json.loads(line)))
            if not data:
                self._is_finished = True
                self._trouble("ended early; the reason is in wandb/stderr.txt of the run")

    def _take(self, report: Report) -> None:
        match report.kind:
            case "started":
                self._tracked = replace(self._tracked, id=report.id, mode=report.mode, url=report.url, path=report.path)
                if report.url:
                    self._say(f"wandb: {printable(report.url)}")
            case "trouble":
                self._trouble(report.message)
            case _:
                self._is_finished = True

    def _stop(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        if not self._is_finished:
            sync = f"; `wandb sync` of {self._tracked.path} sends the rest" if self._tracked.path else ""
            self._trouble(f"not done {self._finish_s:.0f} s after the run and given up{sync}")
        try:
            self._child.wait(_EXIT_S if self._is_finished else 0.0)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._child.stdout.close()

    def _trouble(self, what: str) -> None:
        """Say what went wrong, once: the first trouble mostly brings the others."""
        if self._tracked.message:
            return
        if self._key:
            what = what.replace(self._key, "***")
        self._tracked = replace(self._tracked, message=clipped(printable(what), _MESSAGE_CAP))
        self._say(f"wandb: {self._tracked.message}; the run is not affected")
