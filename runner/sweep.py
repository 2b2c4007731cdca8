"""The supervising loop of a sweep: each trial starts as soon as it has its lease, and none waits for another."""

import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from runner.errors import XrunError
from runner.record import Record

_LOOK_S = 0.1

Trial = TypeVar("Trial")


class Lease(Protocol):
    """What a trial holds while it runs."""

    @property
    def is_held(self) -> bool:
        """Whether it has not been let go of."""

    def release(self) -> None:
        """Let go of it, unless that is done already."""


R = TypeVar("R", bound=Lease)


class Picker(Protocol[Trial]):
    """Which trials there are, and in which order."""

    def orphans(self) -> list[Trial]:
        """Return the trials of which something may still run that a killed xrun has started."""

    def peek(self) -> Trial | None:
        """Return a trial that needs what the next one needs; None where none is to be started now."""

    def has_more(self) -> bool:
        """Say whether a trial may still come, though none is to be started now."""

    def take(self) -> Trial | None:
        """Return the next trial, picked knowing all that has ended: its lease is held. None: it need not run."""

    def end(self, trial: Trial, record: Record | None) -> None:
        """Take in how a trial ended; None: nothing was left of an orphan, and it is to be started."""


class Loop:
    """Runs a picker's trials, each in a thread of its own, until none is left."""

    def __init__(self, look: Callable[[], None], say: Callable[[str], None], *, jobs: int | None) -> None:
        self._look = look
        self._say = say
        self._jobs = jobs
        self._ended: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._leases: list[Lease | None] = []
        """Those of the trials that run; None for an orphan, whose lease the loop has not taken."""
        self._error: BaseException | None = None

    def run(
        self,
        picker: Picker[Trial],
        hold: Callable[[Trial], R | None],
        execute: Callable[[Trial, R], Record],
        adopt: Callable[[Trial], Record | None],
    ) -> None:
        """Run all trials. Raises the first error that is no trial's own, after those that run have ended.

        `hold` waits for a trial's lease and calls `settle` while it does; None where there is to be none. `execute`
        may let go of it early; else that is done when the picker knows how the trial ended. `adopt` follows an orphan,
        whose lease is still its own.
        """
        for orphan in picker.orphans():
            self._start(picker, orphan, None, partial(adopt, orphan))
        while self._error is None:
            self.settle()
            trial = None if self._is_full() else picker.peek()
            if trial is None:
                if not (self._leases or picker.has_more()):
                    return
                self.settle(_LOOK_S)
                continue
            lease = hold(trial)
            if lease is None:
                break
            self.settle()
            if self._error is not None or (trial := picker.take()) is None:
                lease.release()
            else:
                self._start(picker, trial, lease, partial(execute, trial, lease))
        self.wait()

    def wait(self) -> None:
        """Wait for the trials that run. Raises the first error that was no trial's own."""
        while self._leases:
            self.settle(_LOOK_S)
        if self._error is not None:
            raise self._error

    def settle(self, timeout_s: float = 0.0) -> None:
        """Take in the trials that have ended, waiting for one at most timeout_s."""
        self._look()
        try:
            self._ended.get(block=timeout_s > 0, timeout=timeout_s or None)()
            while True:
                self._ended.get_nowait()()
        except Empty:
            pass

    def look_again(self) -> None:
        """Have the loop see at once that a trial has let go of its lease. For any thread."""
        self._ended.put(lambda: None)

    def _is_full(self) -> bool:
        """Say whether as many trials have a lease as may; one that has let go of it has its record still written."""
        having = sum(lease is None or lease.is_held for lease in self._leases)
        return self._jobs is not None and having >= self._jobs

    def _start(
        self, picker: Picker[Trial], trial: Trial, lease: Lease | None, execute: Callable[[], Record | None]
    ) -> None:
        def work() -> None:
            try:
                record = execute()
            except BaseException as error:  # noqa: BLE001, it is raised where the sweep is waited for
                end = partial(self._fail, error)
            else:
                end = partial(picker.end, trial, record)
            self._ended.put(partial(self._end, end, lease))

        self._leases.append(lease)
        # A daemon: a second Ctrl-C does not wait for it.
        threading.Thread(target=work, daemon=True).start()

    def _end(self, end: Callable[[], None], lease: Lease | None) -> None:
        self._leases.remove(lease)
        try:
            end()
        finally:
            if lease is not None:
                lease.release()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            said = error.message if isinstance(error, XrunError) else f"{type(error).__name__}: {error}"
            self._say(f"no more trials are started: {said}")
        if self._error is None or not isinstance(error, XrunError):
            self._error = error
