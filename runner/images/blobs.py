"""Blobs by digest: a file appears under its digest only when its bytes are verified and on the disk."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from runner import durable
from runner.canonical import digest_of, digest_of_file
from runner.errors import ImageError, StoreError
from runner.images import disk
from runner.images.oci import Descriptor
from runner.images.root import blocks


class Blobs:
    """The folder `blobs/sha256` of an OCI layout."""

    def __init__(self, layout: Path) -> None:
        self.folder = layout / "blobs" / "sha256"

    def path(self, digest: str) -> Path:
        """Return the file of a blob."""
        return self.folder / digest.removeprefix("sha256:")

    def read(self, digest: str) -> bytes:
        """Return a small blob's bytes. Raises ImageError where they are missing or not what was written."""
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise ImageError(f"blob {digest} cannot be read: {error.strerror}") from None
        if digest_of(data) != digest:
            raise ImageError(f"blob {digest} has been changed: its bytes have digest {digest_of(data)}")
        return data

    def size_problem(self, blob: Descriptor) -> str | None:
        """Say what is wrong with a blob without reading it, or None."""
        try:
            size = self.path(blob.digest).stat().st_size
        except OSError:
            return f"blob {blob.digest} is missing"
        return None if size == blob.size else f"blob {blob.digest} has {size:,} bytes, expected {blob.size:,}"

    def problem(self, blob: Descriptor) -> str | None:
        """Say what is wrong with a blob after reading all of it, or None."""
        wrong = self.size_problem(blob)
        if wrong is None and (found := digest_of_file(self.path(blob.digest))) != blob.digest:
            wrong = f"blob {blob.digest} has been changed: its bytes have digest {found}"
        return wrong

    def add(self, data: bytes) -> None:
        """Keep bytes as a blob."""
        path = self.path(digest_of(data))
        _make(path.parent)
        write(path, data)

    def copy(self, source: Path, blob: Descriptor, aside: Path) -> None:
        """Copy a file among the blobs by way of a folder aside. Raises ImageError, naming the blob, for other bytes."""
        digest, copy = hashlib.sha256(), aside / "blob"
        with disk.room(copy, blob.size), copy.open("wb") as out:
            for block in blocks(source):
                digest.update(block)
                out.write(block)
        if copy.stat().st_size != blob.size or "sha256:" + digest.hexdigest() != blob.digest:
            raise ImageError(f"blob {blob.digest} of {source.parents[2]} has other bytes than its name says")
        self.adopt(copy, blob.digest)

    def adopt(self, path: Path, digest: str) -> None:
        """Move a file that was digested while it was written among the blobs, once it is on the disk."""
        place = self.path(digest)
        _make(place.parent)
        with disk.room(place, path.stat().st_size):
            with path.open("rb") as written:
                os.fsync(written.fileno())
            path.chmod(0o644)
            path.replace(place)
            durable.sync_folder(place.parent)

    def stream(self, blob: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes. Raises ImageError, at their end at the latest, if they have changed."""
        if wrong := self.size_problem(blob):
            raise ImageError(wrong)
        digest = hashlib.sha256()
        for block in blocks(self.path(blob.digest)):
            digest.update(block)
            yield block
        if "sha256:" + digest.hexdigest() != blob.digest:
            raise ImageError(f"blob {blob.digest} has been changed: its bytes have digest sha256:{digest.hexdigest()}")


def write(path: Path, data: bytes) -> None:
    """Write a small file of the store, whole or not at all. Raises ImageError."""
    try:
        durable.write(path, data)
    except StoreError as error:
        raise ImageError(error.message, hint=disk.FREE_SPACE) from error


def _make(folder: Path) -> None:
    with disk.room(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
