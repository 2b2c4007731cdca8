"""Files that a container wrote, opened as the hostile things that they are.

Every name is opened relative to its folder and never through a link; nothing is waited for; nothing is unbounded.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.errors import RunFailed
from runner.record import FileFact
from runner.terminal import printable

FILES_CAP = 10_000
BYTES_CAP = 256 << 30
_DEPTH_CAP = 16
_BLOCK_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Open a folder of the container's, itself no link. Raises OSError."""
    folder = os.open(path, _READ | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


class Quota:
    """What may still be read of one container's outputs. Raises RunFailed when it is used up."""

    def __init__(self) -> None:
        self._names = FILES_CAP
        self._bytes = BYTES_CAP

    def take_name(self) -> None:
        """Count one more name."""
        self._names -= 1
        if self._names < 0:
            raise RunFailed(f"out/ holds more than {FILES_CAP:,} names")

    def take_bytes(self, size: int, place: str) -> None:
        """Count the bytes of one more file."""
        self._bytes -= size
        if self._bytes < 0:
            raise RunFailed(f"out/{place}: out/ holds more than {BYTES_CAP:,} bytes")


def facts(folder: int, quota: Quota, below: str = "", depth: int = 0) -> Iterator[tuple[str, FileFact]]:
    """Yield name, size and digest of every file in an open folder. Raises RunFailed for what is no plain file."""
    if depth > _DEPTH_CAP:
        raise RunFailed(f"out/{below} lies deeper than {_DEPTH_CAP} folders")
    for name in names(folder, below, quota):
        place = f"{below}/{name}" if below else name
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            inner = os.open(name, _READ | os.O_DIRECTORY, dir_fd=folder)
            try:
                yield from facts(inner, quota, place, depth + 1)
            finally:
                os.close(inner)
            continue
        with opened(folder, name, place) as (file, size):
            quota.take_bytes(size, place)
            yield place, fact(file, size, place)


def names(folder: int, below: str, quota: Quota) -> list[str]:
    """Return the names in an open folder, sorted. Raises RunFailed for one that could do harm where it is used."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            quota.take_name()
            if not _NAME.fullmatch(entry.name):
                place = f"{below}/{entry.name}" if below else entry.name
                raise RunFailed(f"out/{printable(place)}: a name may hold letters, digits, '.', '_' and '-' only")
            found.append(entry.name)
    return sorted(found)


@contextmanager
def opened(folder: int, name: str, place: str) -> Iterator[tuple[int, int]]:
    """Open a plain file of one name; yields its descriptor and size. Raises RunFailed, FileNotFoundError."""
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    if not stat.S_ISREG(mode):
        raise RunFailed(f"out/{place} is {_KINDS.get(stat.S_IFMT(mode), 'no plain file')}; outputs are plain files")
    file = os.open(name, _READ, dir_fd=folder)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise RunFailed(f"out/{place} has {found.st_nlink} names; an output has one")
        yield file, found.st_size
    finally:
        os.close(file)


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def fact(file: int, size: int, place: str) -> FileFact:
    """Return size and digest of an open file. Raises RunFailed if its size is another one while it is read."""
    content = hashlib.sha256()
    left = size
    while block := os.read(file, _BLOCK_BYTES):
        content.update(block)
        left -= len(block)
        if left < 0:
            break
    if left:
        raise RunFailed(f"out/{place} changes while it is read")
    return FileFact(size=size, digest="sha256:" + content.hexdigest())
