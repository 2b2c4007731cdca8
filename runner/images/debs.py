"""Debian packages unpacked without installing them: dpkg-deb reads the archive, no maintainer script ever runs."""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from runner.errors import ImageError
from runner.images.recipe import DebPin, Recipe
from runner.images.root import Layer, Root, blocks
from runner.images.tar import BLOCK_BYTES, Entry, file, folder, link, read_tar

_MERGED = ("bin", "lib", "lib64", "sbin")
_MOUNT_POINTS = ("data", "dev", "out", "proc", "sys", "xrun")
_FILES = {
    "etc/group": "root:x:0:\nxrun:x:65532:\nnogroup:x:65534:\n",
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "xrun:x:65532:65532:xrun:/tmp:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    ),
    "etc/resolv.conf": "",
}


def add_packages(root: Root, recipe: Recipe, pins: Sequence[DebPin], files: Mapping[str, Path]) -> Layer:
    """Unpack packages, with bin and lib below usr/, and add what every container needs beside them."""
    layer: Layer = {}
    for name in _MERGED:
        root.add(layer, folder(f"usr/{name}"))
        root.add(layer, link(name, f"usr/{name}"))
    root.add(layer, folder("tmp", 0o1777))
    for name in _MOUNT_POINTS:
        root.add(layer, folder(name))
    for path, text in _FILES.items():
        root.add_text(layer, path, text.encode())
    trims = recipe.trims()
    for pin in pins:
        _add_package(root, layer, pin, files[pin.sha256], trims)
    _link_python(root, layer, recipe)
    return layer


def _add_package(root: Root, layer: Layer, pin: DebPin, deb: Path, trims: re.Pattern[str]) -> None:
    what = f"package {pin.name} {pin.version}"
    for raw, content in members(deb, "--fsys-tarfile", what):
        entry = _as_merged(raw)
        if trims.fullmatch(entry.path):
            continue
        if entry.kind == "same":
            first = root.entries.get(entry.target)
            if first is None or first.kind != "file":
                raise ImageError(f"{what} holds {entry.path}, a hard link to {entry.target}, which is left out")
            root.add(layer, replace(first, path=entry.path), blocks(root.path / first.path), what=what)
        else:
            root.add(layer, entry, content, what=what)
    # Scanners look here for the packages of an image that has no dpkg.
    for entry, content in members(deb, "--ctrl-tarfile", what):
        if entry.path == "control":
            root.add_text(layer, f"var/lib/dpkg/status.d/{pin.name}", b"".join(content))


def _as_merged(entry: Entry) -> Entry:
    """Return an entry below usr/ where it belongs there, with one of the modes that entries of a built image have."""
    path = _merged(entry.path)
    if entry.kind == "folder":
        return folder(path, 0o1777 if entry.mode & 0o1000 else 0o755)
    if entry.kind == "file":
        return file(path, entry.size, executable=bool(entry.mode & 0o111))
    return replace(entry, path=path, target=_merged(entry.target) if entry.kind == "same" else entry.target)


def _merged(path: str) -> str:
    return f"usr/{path}" if path.partition("/")[0] in _MERGED else path


def _link_python(root: Root, layer: Layer, recipe: Recipe) -> None:
    versioned = f"python{recipe.python}"
    for path in ("usr/bin/python", "usr/bin/python3"):
        if f"usr/bin/{versioned}" in root.entries and path not in root.entries:
            root.add(layer, link(path, versioned))


def members(deb: Path, part: str, what: str) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """Yield the members of a package's files (`--fsys-tarfile`) or of its metadata (`--ctrl-tarfile`)."""
    argv = ["dpkg-deb", part, str(deb)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        for entry, content, _ in read_tar(reader.stdout, what):
            yield entry, content
        # Padding may follow the tar's end; a reader that stops early would end dpkg-deb with an error.
        while reader.stdout.read(BLOCK_BYTES):
            pass
        said = reader.stderr.read().decode("utf-8", "replace").strip()
        if reader.wait() != 0:
            raise ImageError(f"{what} cannot be unpacked: {said}")
