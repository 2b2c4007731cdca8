"""Where image building meets a disk and other programs: full disks, half-written folders, failed commands."""

import errno
import inspect
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import ImageError

FREE_SPACE = "free some space, or point XRUN_HOME at a larger disk"
Say = Callable[[str], None]
"""Takes one line of progress."""

ASIDE = ".aside-"
_SAID_LINES = 10
# A quota or a limit on a file's size is a full disk to whoever meets it.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turn a failed write inside the block into one ImageError that names the file and its size."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise ImageError(f"cannot write {path}: {error.strerror}") from error
        raise ImageError(full(path, needed_bytes), hint=FREE_SPACE) from error


def full(path: Path, needed_bytes: int) -> str:
    """Return the message of a disk that is full while a file is written."""
    there = next(folder for folder in path.parents if folder.is_dir())
    return f"disk full while writing {path}: {needed_bytes:,} bytes needed, {shutil.disk_usage(there).free:,} free"


@contextmanager
def aside(parent: Path) -> Iterator[Path]:
    """Give a new folder inside `parent` that is gone when the block ends. What is to stay is moved out of it."""
    with room(parent / "aside", 0):
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=ASIDE, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: Path, say: Say | None = None) -> Iterator[None]:
    """Hold a folder for writing. What a killed holder left aside in it is removed; `say` is told of a wait."""
    import filelock  # noqa: PLC0415, only what writes needs it, and it takes as long as a whole `xrun ls`

    with room(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
    # A soft lock outlives its holder; the kernel's does not.
    known = inspect.signature(filelock.FileLock.__init__).parameters
    options: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in known else {}
    lock = filelock.FileLock(folder / "lock", **options)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if say:
            say("waiting for another xrun that writes images")
        lock.acquire()
    try:
        for left in folder.glob(f"{ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def program(  # noqa: PLR0913, a program has an argv, a name, a place, variables, and what it writes
    argv: Sequence[str],
    what: str,
    *,
    writes: Path,
    needed_bytes: int = 0,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program in a folder and return its stdout. `writes` and `needed_bytes` say where it writes and how much.

    Raises ImageError with what it said when it fails or is not there.
    """
    # Its messages are read below, so they must be in one language.
    spoken = {**os.environ, **(environment or {}), "LC_ALL": "C.UTF-8"}
    try:
        ended = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", env=spoken, cwd=folder, check=False
        )
    except FileNotFoundError:
        raise ImageError(f"{what}: this machine has no {argv[0]}") from None
    if ended.returncode == 0:
        return ended.stdout
    said = ended.stderr.strip() or ended.stdout.strip()
    if os.strerror(errno.ENOSPC) in said:
        raise ImageError(f"{what}: {full(writes, needed_bytes)}", hint=FREE_SPACE)
    raise ProgramFailed(f"{what}: {_shortened(said) or f'exit code {ended.returncode}'}")


def _shortened(said: str) -> str:
    """Return the last lines of what a program said, each once, without warnings where it names errors."""
    lines = list(dict.fromkeys(said.splitlines()))
    if any(line.startswith("E:") for line in lines):
        lines = [line for line in lines if not line.startswith("W:")]
    return "\n".join(lines[-_SAID_LINES:])


class ProgramFailed(ImageError):
    """A program ended with an error; the message holds all it said."""
