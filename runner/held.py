"""A file that the kernel holds for a process, and lets go of when the process ends in whatever way."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

# Whoever looks holds the file for an instant, which must not be taken for more.
_TRIES = 50
_TRY_S = 0.02


def hold(path: Path) -> int:
    """Make a file and hold it; returns the descriptor that does. Programs that are started do not inherit it.

    What stands in it is the number of the process that holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _say_who(descriptor)
    return descriptor


def take(path: Path) -> int | None:
    """Hold a file that may have been held before; None where a living process holds it. It is made if need be."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _say_who(descriptor)
            return descriptor
        time.sleep(_TRY_S)
    os.close(descriptor)
    return None


def _say_who(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def is_held(path: Path) -> bool:
    """Say whether a living process holds a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at once do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
