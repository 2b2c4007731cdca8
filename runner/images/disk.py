"""Where image building meets a disk and other programs: full disks, half-written folders, failed commands."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from runner.errors import ImageError

FREE_SPACE = "free some space, or point XRUN_HOME at a larger disk"
Say = Callable[[str], None]
"""Takes one line of progress."""

ASIDE = ".aside-"
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


def program(argv: Sequence[str], what: str, *, environment: Mapping[str, str] | None = None) -> str:
    """Run a program and return its stdout. Raises ImageError with what it said when it fails or is not there."""
    try:
        # Its messages are read below, so they must be in one language.
        spoken = {**os.environ, **(environment or {}), "LC_ALL": "C.UTF-8"}
        ended = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=spoken, check=False)
    except FileNotFoundError:
        raise ImageError(f"{what}: this machine has no {argv[0]}") from None
    if ended.returncode == 0:
        return ended.stdout
    said = (ended.stderr.strip() or ended.stdout.strip()) or f"exit code {ended.returncode}"
    if os.strerror(errno.ENOSPC) in said:
        raise ImageError(f"{what}: disk full\n{said}", hint=FREE_SPACE)
    raise ProgramFailed(f"{what}:\n{said}")


class ProgramFailed(ImageError):
    """A program ended with an error; the message holds all it said."""
