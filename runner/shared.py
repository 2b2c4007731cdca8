"""What all users of a machine share: a folder, files in it that the kernel locks, and a line in which they wait."""

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.errors import StoreError

_MODE = 0o1777
_FILE_MODE = 0o666
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# There a lock is taken for several machines, or for one of them only, or not at all.
_NETWORK = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"),
    *("nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "wekafs"),
    *("fuse.ceph", "fuse.glusterfs", "fuse.juicefs", "fuse.s3fs", "fuse.sshfs"),
}
_OCTAL = re.compile(r"\\([0-7]{3})")
CHOOSE = "export XRUN_LEASES=<a folder on a local disk, the same for every user of this machine>"


_TICKET = re.compile(r"(cpu|gpu)-([1-9][0-9]{0,17})\.ticket")
_TESTED = "locks-work"
# Another process must find locked what this one holds locked.
_SELF_TEST = """\
import fcntl, sys
try:
    fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(9)
"""
_IS_LOCKED = 9


def make_folder(folder: Path) -> None:
    """Have a folder that every user may write to, on a disk of this machine. Raises StoreError."""
    try:
        if not os.path.lexists(folder):
            _make_folder(folder)
        found = folder.lstat()
    except OSError as error:
        raise StoreError(f"cannot make {folder}: {error.strerror}", hint=_remedy(folder)) from error
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{folder} is no folder", hint=CHOOSE)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"{folder} cannot be written to by this user", hint=f"sudo chmod 1777 {folder}")
    if (kind := filesystem(folder, Path("/proc/self/mountinfo").read_text(errors="replace"))) in _NETWORK:
        raise StoreError(f"{folder} lies on {kind}: locks there are no matter of one machine", hint=CHOOSE)
    if not (folder / _TESTED).exists():
        _test_locks(folder)


def _remedy(folder: Path) -> str:
    return f"sudo install -d -m 1777 {folder}"


def _make_folder(folder: Path) -> None:
    """Make it whole: nobody may see it with the mode that the umask leaves."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}")
    aside.mkdir()
    try:
        aside.chmod(_MODE)
        aside.rename(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        # Another one was faster; its own may be another user's.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.EPERM, errno.EACCES} or not folder.is_dir():
            raise


def filesystem(path: Path, mountinfo: str) -> str:
    """Return the kind of file system that a path lies on, by the text of /proc/self/mountinfo."""
    place, deepest, kind = path.resolve(), -1, ""
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        point = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), mount.split()[4]))
        if place.is_relative_to(point) and len(point.parts) >= deepest:
            deepest, kind = len(point.parts), source.split()[0]
    return kind


def _test_locks(folder: Path) -> None:
    """Raise StoreError unless a lock that this process has taken keeps another one out."""
    path = folder / f".self-test-{os.urandom(4).hex()}"
    descriptor = made(path)
    try:
        is_locked = lock(descriptor, path)
        with path.open("rb") as again:
            other = subprocess.run([sys.executable, "-IS", "-c", _SELF_TEST], stdin=again, check=False)
    finally:
        os.close(descriptor)
        path.unlink()
    if not is_locked or other.returncode != _IS_LOCKED:
        raise StoreError(f"{folder}: a lock there keeps no other process out", hint=CHOOSE)
    with suppress(FileExistsError):
        os.close(made(folder / _TESTED))


def lock(descriptor: int, path: Path) -> bool:
    """Lock an open file until its descriptor is closed; False where another holds it. Raises StoreError."""
    from filelock import lock_descriptor  # noqa: PLC0415, it takes as long as a whole `xrun ls`

    try:
        # Not FileLock, which refuses another user's file in a sticky folder: docs/decisions/0010.
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        raise StoreError(f"{path} cannot be locked: {error.strerror}", hint=CHOOSE) from error


def lock_file(path: Path) -> int | None:
    """Open and lock a file, made where there is none; None where another holds it. Raises StoreError, OSError."""
    descriptor = opened(path)
    is_ours = False
    try:
        # Somebody may have removed the file since: a lock on it would be nobody's business.
        is_ours = lock(descriptor, path) and _is_at(descriptor, path)
    finally:
        if not is_ours:
            os.close(descriptor)
    return descriptor if is_ours else None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def place_in_line(folder: Path, kind: str) -> Iterator[int]:
    """Stand in line; yields the number of the ticket, which is given back when the block ends. Raises StoreError."""
    while True:
        number = max(_tickets(folder, kind), default=0) + 1
        path = folder / f"{kind}-{number}.ticket"
        try:
            descriptor = made(path)
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(f"cannot make {path}: {error.strerror}", hint=CHOOSE) from error
        # Who came in between took it for a dead one's, and removes it.
        if lock(descriptor, path) and _is_at(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield number
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def ahead(folder: Path, kind: str, number: int) -> int:
    """Return how many stand before a ticket, 0 for the first. The tickets of the dead are removed."""
    before = sorted(other for other in _tickets(folder, kind) if other < number)
    for place, other in enumerate(before):
        if _is_waiting(folder / f"{kind}-{other}.ticket"):
            return len(before) - place
    return 0


def _tickets(folder: Path, kind: str) -> list[int]:
    with os.scandir(folder) as entries:
        found = [_TICKET.fullmatch(entry.name) for entry in entries]
    return [int(ticket[2]) for ticket in found if ticket and ticket[1] == kind]


def _is_waiting(ticket: Path) -> bool:
    try:
        descriptor = opened_to_read(ticket)
    except (StoreError, OSError):  # it is gone, or nobody's who waits here
        return False
    try:
        if not lock(descriptor, ticket):
            return True
        with suppress(OSError):  # another user's, for that one to remove
            ticket.unlink()
    finally:
        os.close(descriptor)
    return False


def opened(path: Path) -> int:
    """Open a file for reading and writing, made for every user where there is none. Raises StoreError, OSError."""
    while True:
        # Not with O_CREAT: the kernel refuses that for another user's file in a sticky folder.
        with suppress(FileNotFoundError):
            return _checked(_open(path, os.O_RDWR), path)
        with suppress(FileExistsError):
            return made(path)


def made(path: Path) -> int:
    """Make a file that every user may read and write, whatever the umask. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    os.fchmod(descriptor, _FILE_MODE)
    return descriptor


def opened_to_read(path: Path) -> int:
    """Open a file that is there. Raises StoreError, OSError."""
    return _checked(_open(path, os.O_RDONLY), path)


def _open(path: Path, access: int) -> int:
    try:
        return os.open(path, access | _OPEN)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR}:
            raise _odd(path) from None
        raise


def _odd(path: Path) -> StoreError:
    return StoreError(f"{path} is no plain file: somebody has put it there", hint=f"rm {path}")


def _checked(descriptor: int, path: Path) -> int:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _odd(path)
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != _FILE_MODE:  # its maker was killed in between
        os.fchmod(descriptor, _FILE_MODE)
    return descriptor
