"""The source snapshot: `experiments/` and the in-container package as one reproducible tar, kept once by digest."""

import fnmatch
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner import durable
from runner.canonical import digest_of
from runner.errors import ConfigError, StoreError

CAP_BYTES = 64 << 20
IGNORE_FILE = ".xrunignore"
_IGNORED = (".*", "__pycache__", "*.pyc", "*~", "#*#", "*.swp")
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A snapshot in the store: what a container of the run sees."""

    digest: str
    """Of the tar."""
    folder: Path
    """The unpacked tar, read-only: `experiments/…` and `runner/inside/…`."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    executable: bool


def snapshot(experiments: Path, store: Path, *, package: Path = _PACKAGE) -> Source:
    """Keep what `experiments/` and the in-container package hold right now, dirty and untracked files too.

    Raises ConfigError for links and for more than 64 MiB, StoreError where the store is full or damaged.
    """
    if not experiments.is_dir():
        raise ConfigError(f"{experiments} is not a folder; experiments are modules in it")
    paths = dict(_tree(experiments, "experiments", (*_IGNORED, *_own_patterns(experiments))))
    _refuse_too_much(experiments, paths)
    paths["runner/__init__.py"] = package / "__init__.py"
    paths |= _tree(package / "inside", "runner/inside", _IGNORED)
    try:
        data = _tar({name: _read(path) for name, path in paths.items()})
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    digest = digest_of(data)
    tar = _tar_path(store, digest)
    if not tar.exists():
        tar.parent.mkdir(parents=True, exist_ok=True)
        durable.write(tar, data, mode=0o444)
    return stored(store, digest)


def stored(store: Path, digest: str) -> Source:
    """Return a kept snapshot, every byte of it checked. Raises StoreError where it is missing or damaged."""
    tar = _tar_path(store, digest)
    try:
        data = tar.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"source snapshot {digest} is not in {tar.parent}") from None
    if digest_of(data) != digest:
        raise StoreError(f"{tar} has been edited: its digest is {digest_of(data)}", hint=f"rm -f '{tar}'")
    folder = tar.with_suffix("")
    files = _untar(data)
    if not folder.exists():
        _unpack(files, folder)
    _verify(files, folder)
    return Source(digest=digest, folder=folder)


def _tar_path(store: Path, digest: str) -> Path:
    return store / ".source" / f"{digest.replace(':', '-')}.tar"


def _own_patterns(experiments: Path) -> tuple[str, ...]:
    try:
        lines = (experiments / IGNORE_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    patterns = (line.strip().rstrip("/") for line in lines)
    return tuple(pattern for pattern in patterns if pattern and not pattern.startswith("#"))


def _tree(root: Path, prefix: str, ignored: tuple[str, ...], below: str = "") -> Iterator[tuple[str, Path]]:
    """Yield tar name and path of every file of a folder that is not ignored."""
    for entry in sorted(os.scandir(root / below), key=lambda entry: entry.name):
        relative = f"{below}/{entry.name}" if below else entry.name
        if any(fnmatch.fnmatchcase(entry.name, rule) or fnmatch.fnmatchcase(relative, rule) for rule in ignored):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _tree(root, prefix, ignored, relative)
        elif entry.is_file(follow_symlinks=False):
            yield f"{prefix}/{relative}", Path(entry.path)
        else:
            kind = "a symbolic link" if entry.is_symlink() else "neither file nor folder"
            raise ConfigError(
                f"{prefix}/{relative} is {kind}; a source snapshot holds only files",
                hint=f"echo '{relative}' >> '{root / IGNORE_FILE}'",
            )


def _refuse_too_much(experiments: Path, paths: dict[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    if sum(sizes.values()) <= CAP_BYTES:
        return
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:3]
    raise ConfigError(
        f"{experiments} holds {sum(sizes.values()):,} bytes, a source snapshot at most {CAP_BYTES:,}; the largest: "
        + ", ".join(f"{name} ({sizes[name]:,})" for name in largest),
        hint=f"echo '{largest[0].removeprefix('experiments/')}' >> '{experiments / IGNORE_FILE}'",
    )


def _read(path: Path) -> _File:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        return _File(file.read(), bool(mode & stat.S_IXUSR))


def _tar(files: dict[str, _File]) -> bytes:
    # ustar has no room for times, owners or extensions that a later Python might fill in another way.
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name].content)
            member.mode = 0o755 if files[name].executable else 0o644
            try:
                tar.addfile(member, io.BytesIO(files[name].content))
            except ValueError as error:
                raise ConfigError(f"{name}: {error}; a source snapshot cannot hold it") from error
    return buffer.getvalue()


def _untar(data: bytes) -> dict[str, _File]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is None or not set(member.name.split("/")).isdisjoint({"", ".", ".."}):
                raise StoreError(f"a source snapshot holds {member.name!r}, which no snapshot may")
            files[member.name] = _File(file.read(), bool(member.mode & stat.S_IXUSR))
    return files


def _unpack(files: dict[str, _File], folder: Path) -> None:
    """Write the files below a folder that appears whole, and of which two processes may make one."""
    aside = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}")
    try:
        for name, file in files.items():
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
            path.chmod(0o555 if file.executable else 0o444)
        for parent, _, _ in os.walk(aside, topdown=False):
            Path(parent).chmod(0o555)
        aside.rename(folder)
    except OSError as error:
        _remove(aside)
        if not folder.exists():
            size = sum(len(file.content) for file in files.values())
            raise StoreError(f"cannot unpack {folder} ({size:,} bytes): {error.strerror}") from error


def _remove(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        Path(parent).chmod(0o755)
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            Path(parent, name).unlink()
        Path(parent).rmdir()


def _verify(files: dict[str, _File], folder: Path) -> None:
    """Compare an unpacked tree with its tar, byte for byte: mode bits and times prove nothing."""
    found: dict[str, _File | None] = {}
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_symlink() or not path.is_dir():
                regular = path.is_file() and not path.is_symlink()
                found[path.relative_to(folder).as_posix()] = _read(path) if regular else None
    wrong = sorted(name for name in files.keys() | found if name not in files or found.get(name) != files[name])
    if wrong:
        raise StoreError(
            f"{folder / wrong[0]} is not what the snapshot holds",
            hint=f"chmod -R u+w '{folder}' && rm -r '{folder}'",
        )
