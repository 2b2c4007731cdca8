"""Trees of files: layers merged into one, written to a folder, and a folder compared with what it must be."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeAlias

from runner.errors import ImageError
from runner.images.disk import room
from runner.images.tar import BLOCK_BYTES, Entry, folder, read_tar

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An entry, and where its content lies."""

    entry: Entry
    layer: Path
    offset: int = 0


Tree: TypeAlias = dict[str, Node]


def merge(layers: Iterable[Path]) -> Tree:
    """Return the tree that layers make, the later over the earlier, whiteouts applied.

    Raises ImageError for a member that a folder cannot hold or that passes through a link.
    """
    tree: Tree = {}
    for layer in layers:
        new: set[str] = set()
        with layer.open("rb") as stream:
            for entry, _, offset in read_tar(stream, f"layer {layer.name}"):
                _place(tree, Node(entry=entry, layer=layer, offset=offset), new)
    return tree


def _place(tree: Tree, node: Node, new: set[str]) -> None:
    path = node.entry.path
    parent, _, name = path.rpartition("/")
    if name == _OPAQUE:
        _remove(tree, parent, spare=new | {parent})
        return
    if name.startswith(_WHITEOUT):
        _remove(tree, f"{parent}/{name[len(_WHITEOUT) :]}".lstrip("/"), spare=set())
        return
    _make_parents(tree, node, new)
    if node.entry.kind == "same":
        node = _same(tree, node)
    if path in tree and tree[path].entry.kind == "folder" and node.entry.kind != "folder":
        _remove(tree, path, spare=set())
    tree[path] = node
    new.add(path)


def _make_parents(tree: Tree, node: Node, new: set[str]) -> None:
    parent = node.entry.path.rpartition("/")[0]
    if not parent:
        return
    found = tree.get(parent)
    if found is None:
        made = replace(node, entry=folder(parent))
        _make_parents(tree, made, new)
        tree[parent] = made
        new.add(parent)
    elif found.entry.kind != "folder":
        raise ImageError(f"layer {node.layer.name} holds {node.entry.path!r}, but {parent!r} is no folder")


def _same(tree: Tree, node: Node) -> Node:
    first = tree.get(node.entry.target)
    if first is None or first.entry.kind != "file":
        raise ImageError(f"layer {node.layer.name} holds {node.entry.path!r}, a hard link to no file of the image")
    return replace(first, entry=replace(first.entry, path=node.entry.path))


def _remove(tree: Tree, path: str, spare: set[str]) -> None:
    for gone in [key for key in tree if (key == path or key.startswith(f"{path}/")) and key not in spare]:
        del tree[gone]


def write_tree(tree: Tree, root: Path) -> None:
    """Write a tree to a new folder."""
    with room(root, 0):
        root.mkdir()
        root.chmod(0o755)
    for layer in sorted({node.layer for node in tree.values()}):
        with layer.open("rb") as stream:
            # In the layer's own order, so that it is read once from front to back; parents stand first in `tree`.
            for node in sorted((node for node in tree.values() if node.layer == layer), key=lambda node: node.offset):
                _make_folders(root, node)
                put(root, node.entry, _section(stream, node))
    set_times(root, [node.entry for node in tree.values()])


def _make_folders(root: Path, node: Node) -> None:
    parent = (root / node.entry.path).parent
    with room(parent, 0):
        parent.mkdir(parents=True, exist_ok=True)


def _section(stream: IO[bytes], node: Node) -> Iterator[bytes]:
    stream.seek(node.offset)
    left = node.entry.size
    while left and (block := stream.read(min(left, BLOCK_BYTES))):
        left -= len(block)
        yield block


def put(root: Path, entry: Entry, content: Iterable[bytes]) -> None:
    """Write one entry into a folder that holds its parent."""
    path = root / entry.path
    with room(path, entry.size):
        if entry.kind == "folder":
            path.mkdir(exist_ok=True)
            path.chmod(entry.mode)
        elif entry.kind == "link":
            path.symlink_to(entry.target)
        else:
            with path.open("xb") as out:
                out.writelines(content)
                written = out.tell()
            if written != entry.size:
                raise ImageError(f"{entry.path} has {written:,} bytes, expected {entry.size:,}")
            path.chmod(entry.mode)


def set_times(root: Path, entries: Iterable[Entry]) -> None:
    """Give everything the time that its tar says: 0."""
    for entry in entries:
        os.utime(root / entry.path, (0, 0), follow_symlinks=False)
    os.utime(root, (0, 0))


def differences(tree: Tree, root: Path) -> list[str]:
    """Compare a folder with the tree it was written from, every byte of it. Return one line a difference, sorted."""
    problems = [_difference(node, root) for node in tree.values()]
    found = {str(path.relative_to(root)) for path in _walk(root)}
    problems += [f"{path} is not in the image" for path in found - set(tree)]
    return sorted(problem for problem in problems if problem)


def _walk(root: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(root):
        yield from (Path(place) / name for name in (*folders, *files))


def _difference(node: Node, root: Path) -> str | None:
    entry, path = node.entry, root / node.entry.path
    try:
        found = path.lstat()
    except OSError:
        return f"{entry.path} is missing"
    kinds = {"folder": stat.S_ISDIR, "file": stat.S_ISREG, "link": stat.S_ISLNK}
    if not kinds[entry.kind](found.st_mode):
        return f"{entry.path} is not a {entry.kind} any more"
    if entry.kind == "link":
        return None if str(path.readlink()) == entry.target else f"{entry.path} points to {path.readlink()}"
    if stat.S_IMODE(found.st_mode) != entry.mode:
        return f"{entry.path} has mode {stat.S_IMODE(found.st_mode):o}, not {entry.mode:o}"
    if entry.kind == "file" and not _has_content(path, node):
        return f"{entry.path} has other content"
    return None


def _has_content(path: Path, node: Node) -> bool:
    if path.stat().st_size != node.entry.size:
        return False
    with suppress(OSError), path.open("rb") as found, node.layer.open("rb") as stream:
        return all(found.read(len(block)) == block for block in _section(stream, node))
    return False
