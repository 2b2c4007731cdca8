"""What a run is held to while it runs."""

import time
from dataclasses import dataclass

from runner.record import Started, Status
from runner.spec import RunSpec

# The ranks' own watch fires first and says where they hang; this one is for ranks that cannot (SIGSTOP, no CPU).
_HOST_HANG_FACTOR = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Why a run is ended before its end."""

    status: Status
    message: str
    with_checkpoint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a run is held to, and all that is needed to judge it once its container has started."""

    started: Started
    is_command: bool
    nonce: str
    hang_timeout_s: int
    timeout_s: int
    """0 never stops the run."""
    grace_s: int
    """For a run that is asked to end: time to finish its step and write a checkpoint."""
    begun_s: float
    """When it began, on the monotonic clock."""

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begun_s

    def too_late(self) -> Halt | None:
        """Return why the run is to be ended for its age, or nothing."""
        if not self.timeout_s or self.age_s <= self.timeout_s:
            return None
        message = f"took longer than scheduler.timeout_s={self.timeout_s}"
        return Halt(status="timeout", message=message, with_checkpoint=True)

    def too_silent(self, silence_s: float) -> Halt | None:
        """Return why the run is to be ended after so long a silence, or nothing."""
        # A training says something at least every limit_s; of a program nobody knows how often it should.
        limit_s = self.hang_timeout_s
        if self.is_command or silence_s <= limit_s * _HOST_HANG_FACTOR:
            return None
        message = f"no sign of life for {silence_s:.0f} s (scheduler.hang_timeout_s={limit_s})"
        return Halt(status="timeout", message=message)


def terms_of(started: Started, spec: RunSpec, *, age_s: float = 0.0) -> Terms:
    """Return what a run is held to that began so long ago."""
    assert started.conducted is not None, "only records of an older xrun lack it, and those have ended"
    assert started.nonce is not None, "as above"
    scheduler = started.conducted.scheduler
    return Terms(
        started=started,
        is_command=spec.is_command,
        nonce=started.nonce,
        hang_timeout_s=scheduler.hang_timeout_s,
        timeout_s=scheduler.timeout_s,
        grace_s=scheduler.grace_s,
        begun_s=time.monotonic() - age_s,
    )
