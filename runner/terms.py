"""What a run is held to while it runs."""

import time
from dataclasses import dataclass

from runner.record import Started
from runner.spec import RunSpec

# The ranks' own watch fires first and says where they hang; this one is for ranks that cannot (SIGSTOP, no CPU).
_HOST_HANG_FACTOR = 1.5


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

    def too_late(self) -> str:
        """Return why the run is to be stopped for its age, or nothing."""
        limit_s = self.timeout_s
        return f"took longer than scheduler.timeout_s={limit_s}" if limit_s and self.age_s > limit_s else ""

    def too_silent(self, silence_s: float) -> str:
        """Return why the run is to be stopped after so long a silence, or nothing."""
        limit_s = self.hang_timeout_s
        if silence_s > limit_s * _HOST_HANG_FACTOR:
            return f"no sign of life for {silence_s:.0f} s (scheduler.hang_timeout_s={limit_s})"
        return ""


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
