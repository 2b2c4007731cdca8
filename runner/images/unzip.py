"""Wheels unpacked into the place where Debian's Python looks for packages that are not Debian's."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from runner.errors import ImageError
from runner.images.recipe import Recipe, WheelPin
from runner.images.root import Layer, Root
from runner.images.tar import BLOCK_BYTES, file, safe_path


def add_wheels(root: Root, recipe: Recipe, pins: Sequence[WheelPin], files: Mapping[str, Path]) -> Layer:
    """Unpack wheels with their dist-info. Console scripts are left out: `python3 -m` says the same."""
    layer: Layer = {}
    site = f"usr/local/lib/python{recipe.python}/dist-packages"
    trims = recipe.trims()
    for pin in pins:
        with zipfile.ZipFile(files[pin.sha256]) as wheel:
            for info in wheel.infolist():
                path = _place(safe_path(info.filename, f"wheel {pin.filename}"), site)
                if path is None or info.is_dir() or trims.fullmatch(path):
                    continue
                entry = file(path, info.file_size, executable=bool(info.external_attr >> 16 & 0o111))
                root.add(layer, entry, _content(wheel, info, pin), what=f"wheel {pin.filename}")
    return layer


def _place(name: str, site: str) -> str | None:
    """Return where a wheel's member goes, None where it is left out (PEP 427, `.data`)."""
    top, _, rest = name.partition("/")
    if not top.endswith(".data"):
        return f"{site}/{name}"
    scheme, _, inner = rest.partition("/")
    places = {"purelib": site, "platlib": site, "data": "usr/local"}
    return f"{places[scheme]}/{inner}" if scheme in places else None


def _content(wheel: zipfile.ZipFile, info: zipfile.ZipInfo, pin: WheelPin) -> Iterator[bytes]:
    try:
        with wheel.open(info) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ImageError(f"wheel {pin.filename} cannot be unpacked: {error}") from error
