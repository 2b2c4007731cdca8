"""Tar files: written so that one tree has one sequence of bytes, read so that no member can reach out of its folder."""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from runner.errors import ImageError
from runner.images.disk import room

_UNIT_BYTES = 512
BLOCK_BYTES = 1 << 20
_NAME_BYTES = 100
_SIZE_LIMIT = 8**11
Kind = Literal["folder", "file", "link", "same"]
_TYPES: dict[Kind, bytes] = {"folder": b"5", "file": b"0", "link": b"2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member of a tree or tar. Owner, group and times are always 0."""

    path: str
    """Below the root: no leading slash, no dot parts."""
    kind: Kind
    """same: a hard link, read but never written."""
    mode: int
    size: int = 0
    """Bytes of a file."""
    target: str = ""
    """Where a link points; which path a `same` repeats."""


def folder(path: str, mode: int = 0o755) -> Entry:
    """Return the entry of a folder."""
    return Entry(path=path, kind="folder", mode=mode)


def link(path: str, target: str) -> Entry:
    """Return the entry of a symbolic link."""
    return Entry(path=path, kind="link", mode=0o777, target=target)


def file(path: str, size: int, *, executable: bool = False) -> Entry:
    """Return the entry of a file with one of the only two modes that files of a built image have."""
    return Entry(path=path, kind="file", mode=0o755 if executable else 0o644, size=size)


def safe_path(name: str, what: str) -> str:
    """Return a member's path below the root. Raises ImageError for one that is absolute or has `..`, naming `what`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\n" in name:
        raise ImageError(f"{what} holds a member that reaches out of its folder: {name!r}")
    return "" if str(path) == "." else str(path)


def read_tar(stream: IO[bytes], what: str) -> Iterator[tuple[Entry, Iterator[bytes], int]]:
    """Yield the members of a plain tar, each with its content and where that starts. `what` names the tar in errors.

    Raises ImageError for devices, pipes, sparse files, and names that leave the folder.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:" if stream.seekable() else "r|") as archive:
            for member in archive:
                entry = _entry(member, what)
                if entry.path:
                    yield entry, _member_content(archive, member, what), member.offset_data
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ImageError(f"{what} is not a whole tar archive: {error}") from error


def _member_content(archive: tarfile.TarFile, member: tarfile.TarInfo, what: str) -> Iterator[bytes]:
    content = archive.extractfile(member) if member.isreg() else None
    try:
        while content is not None and (block := content.read(BLOCK_BYTES)):
            yield block
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(f"{what} is not a whole tar archive: {error}") from error


def _entry(member: tarfile.TarInfo, what: str) -> Entry:
    path = safe_path(member.name, what)
    if member.isreg() and not member.issparse():
        # Setuid bits are dropped, and whoever unpacks can read, enter and delete what he has unpacked.
        return Entry(path=path, kind="file", mode=member.mode & 0o777 | 0o400, size=member.size)
    if member.isdir():
        return folder(path, member.mode & 0o1777 | 0o700)
    if member.issym():
        return link(path, member.linkname)
    if member.islnk():
        target = safe_path(member.linkname, what)
        return Entry(path=path, kind="same", mode=0o644, target=target)
    raise ImageError(f"{what} holds {member.name!r}, which is neither file, folder nor link; no image may hold it")


def header(entry: Entry) -> bytes:
    """Return the header of an entry: USTAR, with a PAX record before it only for a long or non-ASCII name.

    Written here, because the bytes must be the format's own and not those of one Python release.
    """
    name = entry.path + ("/" if entry.kind == "folder" else "")
    records = b"".join(
        _record(key, value)
        for key, value in (("path", name), ("linkpath", entry.target))
        if len(value) > _NAME_BYTES or not value.isascii()
    )
    extra = b""
    if records:
        extra = _ustar(b"././@PaxHeader", 0o644, len(records), b"x", b"") + _padded(records)
    assert entry.size < _SIZE_LIMIT
    return extra + _ustar(name.encode(), entry.mode, entry.size, _TYPES[entry.kind], entry.target.encode())


def padding(size: int) -> bytes:
    """Return the zeros that follow content of `size` bytes."""
    return bytes(-size % _UNIT_BYTES)


END = bytes(2 * _UNIT_BYTES)
"""What closes a tar."""


def write_tar(root: Path, entries: Sequence[Entry], path: Path) -> tuple[str, int]:
    """Write the entries of a tree to a new tar, sorted, and return the tar's digest and size."""
    content = hashlib.sha256()
    total = sum(entry.size for entry in entries)
    with room(path, total), path.open("wb") as out:
        for block in _blocks(root, sorted(entries, key=lambda entry: entry.path)):
            content.update(block)
            out.write(block)
        return "sha256:" + content.hexdigest(), out.tell()


def _blocks(root: Path, entries: Sequence[Entry]) -> Iterator[bytes]:
    for entry in entries:
        yield header(entry)
        if entry.kind == "file":
            yield from _content(root / entry.path)
            yield padding(entry.size)
    yield END


def _content(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while block := source.read(BLOCK_BYTES):
            yield block


def _ustar(name: bytes, mode: int, size: int, kind: bytes, target: bytes) -> bytes:
    fields = [
        name[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % 0,
        b"%07o\0" % 0,
        b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,
        kind,
        target[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"),
        b"ustar\00000",
    ]
    block = b"".join(fields).ljust(_UNIT_BYTES, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: str, value: str) -> bytes:
    """Return a PAX record; its length counts its own digits."""
    body = f" {key}={value}\n".encode()
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return str(length).encode() + body


def _padded(data: bytes) -> bytes:
    return data + padding(len(data))
