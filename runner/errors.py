"""What can go wrong for a user, and the exit code of each.

XrunError
├── RunFailed      1   the experiment itself failed, was stopped or ran out of memory
├── ConfigError    2   an override, a config file or the command line is wrong
├── LockError      3   the lock is missing, out of date, or has been edited
├── ImageError     4   the pinned image, package or data cannot be had, or is not what was pinned
├── EngineError    5   no engine can run the request on this machine
├── HardwareError  6   this machine misses what the lock requires
├── StoreError     7   the store or a run in it is damaged, full or unknown
├── SchedulerError 8   SLURM does not answer, or does not take a job
└── ReplayFailed  12   a replay could not run to an end

10 is a replay that diverged or two runs that differ, 11 one that could prove nothing, 70 is a bug in xrun,
130 is Ctrl-C, 143 is SIGTERM.
"""

EXIT_DIVERGED = 10
EXIT_NOT_COMPARABLE = 11
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class XrunError(Exception):
    """A user's mistake or a machine's refusal: one message, one hint, no traceback."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message as the terminal shows it: what is wrong, then what to paste."""
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"


class RunFailed(XrunError):
    """The experiment failed, was stopped, or ran out of memory."""

    exit_code = 1


class ConfigError(XrunError):
    """An override, a config file or the command line is wrong."""

    exit_code = 2


class LockError(XrunError):
    """The lock is missing, out of date, or has been edited."""

    exit_code = 3


class ImageError(XrunError):
    """The pinned image, package or data cannot be had, or is not what was pinned."""

    exit_code = 4


class EngineError(XrunError):
    """No engine can run the request on this machine."""

    exit_code = 5


class HardwareError(XrunError):
    """This machine misses what the lock requires."""

    exit_code = 6


class StoreError(XrunError):
    """The store or a run in it is damaged, full or unknown."""

    exit_code = 7


class SchedulerError(XrunError):
    """SLURM does not answer, or does not take a job."""

    exit_code = 8


class ReplayFailed(XrunError):
    """A replay could not run to an end, so it says nothing of the run."""

    exit_code = 12
