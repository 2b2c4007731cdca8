"""Downloaded files, kept by digest and read back only after their bytes have been digested again."""

from pathlib import Path

from runner.canonical import digest_of_file
from runner.images.disk import room


def folder(home: Path) -> Path:
    """Return the folder of downloads."""
    return home / "downloads"


def place(home: Path, digest: str) -> Path:
    """Return where the file of a digest is kept."""
    return folder(home) / digest.replace(":", "-")


def cached(home: Path, digest: str) -> Path | None:
    """Return the kept file of a digest, or None. One that has changed since is removed."""
    path = place(home, digest)
    if not path.is_file():
        return None
    if digest_of_file(path) != digest:
        path.unlink()
        return None
    return path


def keep(home: Path, path: Path) -> str:
    """Move a file to its place among the downloads, and return its digest."""
    digest = digest_of_file(path)
    with room(place(home, digest), path.stat().st_size):
        path.replace(place(home, digest))
    return digest
