"""A root folder that grows layer by layer."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from runner.errors import ImageError
from runner.images.disk import room
from runner.images.tar import BLOCK_BYTES, Entry, file, folder
from runner.images.tree import put

Layer: TypeAlias = dict[str, Entry]
"""What one layer adds, by path."""


class Root:
    """The folder, and every entry in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: Layer = {}
        with room(path, 0):
            path.mkdir()
            path.chmod(0o755)

    def add(self, layer: Layer, entry: Entry, content: Iterable[bytes] = (), *, what: str = "xrun") -> None:
        """Write an entry, and the folders above it, as part of a layer.

        A folder may come twice, anything else only once, or `what` is refused with ImageError.
        """
        known = self.entries.get(entry.path)
        if known is not None:
            if known.kind == entry.kind == "folder":
                return
            raise ImageError(f"{what} holds {entry.path}, which is in the image already")
        self.adopt(layer, entry, what=what)
        put(self.path, entry, content)

    def adopt(self, layer: Layer, entry: Entry, *, what: str = "xrun") -> None:
        """Take an entry that lies in the folder already as part of a layer, and add the folders above it."""
        self._add_parent(layer, entry, what)
        layer[entry.path] = self.entries[entry.path] = entry

    def _add_parent(self, layer: Layer, entry: Entry, what: str) -> None:
        parent = entry.path.rpartition("/")[0]
        if not parent:
            return
        if parent not in self.entries:
            self.add(layer, folder(parent), what=what)
        elif self.entries[parent].kind != "folder":
            raise ImageError(f"{what} holds {entry.path}, but {parent} is no folder")

    def add_text(self, layer: Layer, path: str, text: bytes) -> None:
        """Write a file of a few bytes."""
        self.add(layer, file(path, len(text)), (text,))

    def add_file(self, layer: Layer, path: str, source: Path) -> None:
        """Write a copy of a file."""
        self.add(layer, file(path, source.stat().st_size), blocks(source), what=str(source))


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file."""
    with path.open("rb") as source:
        while block := source.read(BLOCK_BYTES):
            yield block
