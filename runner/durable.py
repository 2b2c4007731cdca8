"""Write a file so that readers, and a machine that lost power, see it whole or not at all."""

import contextlib
import os
import stat
from pathlib import Path

from runner.errors import StoreError


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put bytes at a path: written aside, synced, renamed, its folder synced.

    Returns only when the bytes are on the disk. Raises StoreError with the file and its size; then nothing is left.
    """
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            _write_all(descriptor, data)
            # A failed fsync is never tried again: the kernel may drop the pages and call the next one a success.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path} ({len(data):,} bytes): {error.strerror}") from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_read_only(folder: Path) -> None:
    """Take the write permission from every file of a tree. Its folders keep theirs, so that a user can delete it."""
    # This guards against slips; digests guard the bytes. What is odd here stays as it is.
    with contextlib.suppress(OSError, RecursionError):
        for _, _, names, parent in os.fwalk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    _refuse_writes(name, parent)


def _refuse_writes(name: str, parent: int) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & ~0o222)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
