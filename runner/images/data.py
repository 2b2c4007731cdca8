"""Data sets taken out of Debian packages: the same files, whether they go into an image or into a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from runner.canonical import digest_of_file, is_digest
from runner.errors import ImageError
from runner.images import sword
from runner.images.debs import members
from runner.images.disk import aside, room
from runner.images.recipe import DataSet, DebPin, Recipe
from runner.images.root import Layer, Root
from runner.parse import ParseError, parse

DataDigests: TypeAlias = dict[str, dict[str, str]]
"""Data set -> path below /data/<set> -> digest."""


def unpack_sets(recipe: Recipe, pins: Sequence[DebPin], files: Mapping[str, Path], target: Path) -> DataDigests:
    """Put every data set of a recipe into a folder of its name below `target`, and return the files' digests."""
    by_name = {pin.name: pin for pin in pins}
    digests: DataDigests = {}
    for name, data in sorted(recipe.data.items()):
        pin = by_name[data.package]
        with room(target / name, 0):
            (target / name).mkdir(parents=True)
        _unpack_set(name, data, files[pin.sha256], target / name)
        found = sorted((target / name).iterdir())
        if not found:
            raise ImageError(f"package {pin.name} {pin.version} holds nothing in {data.folder} for data set {name}")
        digests[name] = {path.name: digest_of_file(path) for path in found}
    return digests


def _unpack_set(name: str, data: DataSet, deb: Path, target: Path) -> None:
    if data.form == "files":
        _take(data, deb, target)
        return
    with aside(target.parent) as folder:
        _take(data, deb, folder)
        _write(target / f"{name}.txt", sword.plain_text(folder))


def _take(data: DataSet, deb: Path, target: Path) -> None:
    """Copy the files that lie in the data set's folder of a package."""
    for entry, content in members(deb, "--fsys-tarfile", f"package {data.package}"):
        parent, _, file = entry.path.rpartition("/")
        if parent == data.folder and entry.kind == "file":
            _write(target / file, b"".join(content))


def _write(path: Path, content: bytes) -> None:
    with room(path, len(content)):
        path.write_bytes(content)
        path.chmod(0o644)


def add_data(
    root: Root, recipe: Recipe, pins: Sequence[DebPin], files: Mapping[str, Path]
) -> tuple[Layer, DataDigests]:
    """Add the data sets below /data, each package's copyright beside those of the other packages."""
    layer: Layer = {}
    with aside(root.path.parent) as folder:
        digests = unpack_sets(recipe, pins, files, folder)
        for name, found in digests.items():
            for path in found:
                root.add_file(layer, f"data/{name}/{path}", folder / name / path)
    for pin in pins:
        copyright_path = f"usr/share/doc/{pin.name}/copyright"
        for entry, content in members(files[pin.sha256], "--fsys-tarfile", f"package {pin.name}"):
            if entry.path == copyright_path and entry.kind == "file":
                root.add_text(layer, copyright_path, b"".join(content))
    return layer, digests


def parse_digests(text: str, what: str) -> DataDigests:
    """Read the digests of data sets back from canonical JSON. `what` names where it stands in ImageError."""
    try:
        found = parse(_Label, {"sets": json.loads(text)}).sets
    except (ValueError, ParseError) as error:
        raise ImageError(f"{what} does not say its data sets as xrun writes them: {error}") from None
    if not all(is_digest(digest) for files in found.values() for digest in files.values()):
        raise ImageError(f"{what} names data by something else than digests")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Label:
    sets: DataDigests
