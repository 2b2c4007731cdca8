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
from dataclasses import replace
from typing import Literal

from runner.canonical import canonical_bytes
from runner.config import Tracking
from runner.parse import parse, plain
from runner.record import Record, Tracked
from runner.run_folder import RunFolder
from runner.terminal import clipped, printable
from runner.tracked import Assignment, Ending, Report, Subject
from runner.wandb_environment import child_environment, key_of

_FINISH_S = 30.0
_EXIT_S = 5.0
_MESSAGE_CAP = 200


class Tracker:
    """Follows one run. Whatever becomes of the child, the run goes on: trouble is one line to `say`."""

    def __init__(
        self,
        tracking: Tracking,
        subject: Subject,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._tracking = tracking
        self._subject = subject
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
            folder.wandb.mkdir(exist_ok=True)
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
        """Tell the child how the run ended, and add to the record where metrics went."""
        ending = Ending(
            status=record.status, exit_code=record.exit_code, fingerprint=record.fingerprint, metrics=record.metrics
        )
        return replace(record, wandb=self.close(ending))

    def close(self, ending: Ending) -> Tracked:
        """Tell the child how it ended, give it half a minute, and return where metrics went."""
        if self._child is None:
            return self._tracked
        self._tell(ending)
        with suppress(OSError):
            assert self._child.stdin is not None
            self._child.stdin.close()
        try:
            self._hear(self._finish_s)
        except KeyboardInterrupt:  # Ctrl-C can no longer mean the run, which has ended: it means this wait
            self._trouble("not waited for any longer")
        self._stop()
        return self._tracked

    def _assignment(self, name: str, mode: Literal["online", "offline"], pid: int | None) -> Assignment:
        subject, tracking = self._subject, self._tracking
        facts = subject.facts if subject.job_type == "sweep" else {"run": name, **subject.facts}
        return Assignment(
            mode=mode,
            name=name,
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group or subject.group,
            job_type=subject.job_type,
            tags=tracking.tags,
            config={**subject.config, "xrun": facts},
            image_digest=subject.image_digest,
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
