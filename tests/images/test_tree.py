"""Layers merged as OCI says, without ever following a link."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from runner.errors import ImageError
from runner.images.tree import differences, merge, write_tree


def layer(path: Path, *members: tuple[str, str]) -> Path:
    """Write a tar. A member's content starts with -> for a link, = for a hard link, and ends with / for a folder."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name.rstrip("/"))
            data = b""
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif content.startswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, content[2:]
            elif content.startswith("="):
                info.type, info.linkname = tarfile.LNKTYPE, content[1:]
            else:
                data = content.encode()
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def unpacked(tmp_path: Path, *layers: Path) -> dict[str, str]:
    tree = merge(layers)
    root = tmp_path / "root"
    write_tree(tree, root)
    assert differences(tree, root) == []
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_a_later_layer_wins(tmp_path: Path) -> None:
    layers = layer(tmp_path / "1", ("a/", ""), ("a/x", "old"), ("a/y", "y")), layer(tmp_path / "2", ("a/x", "new"))
    assert unpacked(tmp_path, *layers) == {"a/x": "new", "a/y": "y"}


def test_a_whiteout_removes_what_lies_below(tmp_path: Path) -> None:
    lower = layer(tmp_path / "1", ("a/x/deep", "1"), ("a/y", "2"), ("b", "3"))
    upper = layer(tmp_path / "2", ("a/.wh.x", ""), (".wh.b", ""))
    assert unpacked(tmp_path, lower, upper) == {"a/y": "2"}


def test_an_opaque_folder_keeps_what_its_own_layer_brings(tmp_path: Path) -> None:
    lower = layer(tmp_path / "1", ("a/old", "1"), ("a/c/old", "2"))
    upper = layer(tmp_path / "2", ("a/new", "3"), ("a/.wh..wh..opq", ""), ("a/newer", "4"))
    assert unpacked(tmp_path, lower, upper) == {"a/new": "3", "a/newer": "4"}


def test_a_file_replaces_a_folder_and_all_in_it(tmp_path: Path) -> None:
    layers = layer(tmp_path / "1", ("a/x", "1")), layer(tmp_path / "2", ("a", "file"))
    assert unpacked(tmp_path, *layers) == {"a": "file"}


def test_a_hard_link_has_the_content_of_its_file(tmp_path: Path) -> None:
    assert unpacked(tmp_path, layer(tmp_path / "1", ("a", "text"), ("b", "=a"))) == {"a": "text", "b": "text"}


def test_a_hard_link_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as refused:
        merge([layer(tmp_path / "1", ("b", "=etc/shadow"))])
    assert refused.value.message == "layer 1 holds 'b', a hard link to no file of the image"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_member_that_passes_through_a_link_is_refused(tmp_path: Path, layers: int) -> None:
    members = [("out", f"->{tmp_path}"), ("out/evil", "1")]
    paths = [layer(tmp_path / "1", *members)]
    if layers == 2:
        paths = [layer(tmp_path / "1", members[0]), layer(tmp_path / "2", members[1])]
    with pytest.raises(ImageError) as refused:
        merge(paths)
    assert refused.value.message == f"layer {layers} holds 'out/evil', but 'out' is no folder"
    assert not (tmp_path / "evil").exists()


def test_every_kind_of_difference_is_found(tmp_path: Path) -> None:
    tree = merge([layer(tmp_path / "1", ("d/", ""), ("d/a", "1"), ("b", "2"), ("c", "3"), ("l", "->b"), ("m", "4"))])
    root = tmp_path / "root"
    write_tree(tree, root)
    (root / "d" / "a").write_text("9")
    (root / "d" / "extra").touch()
    (root / "b").unlink()
    (root / "c").chmod(0o600)
    (root / "l").unlink()
    (root / "l").symlink_to("c")
    (root / "m").unlink()
    os.mkfifo(root / "m")
    assert differences(tree, root) == [
        "b is missing",
        "c has mode 600, not 644",
        "d/a has other content",
        "d/extra is not in the image",
        "l points to c",
        "m is not a file any more",
    ]
