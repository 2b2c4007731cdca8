"""Tar bytes that are always the same, and members that no image may hold."""

import io
import tarfile
from pathlib import Path

import pytest

from runner.errors import ImageError
from runner.images.tar import Entry, file, folder, link, read_tar, write_tar

ENTRIES = [folder("a"), file("a/b", 3), link("a/l", "b"), folder("tmp", 0o1777), file("run", 600, executable=True)]


def write(tmp_path: Path, entries: list[Entry]) -> Path:
    for entry in entries:
        path = tmp_path / "root" / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "file":
            path.write_bytes(b"x" * entry.size)
    write_tar(tmp_path / "root", entries, tmp_path / "layer")
    return tmp_path / "layer"


def tar_of(member: tarfile.TarInfo) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    stream.seek(0)
    return stream


def test_the_same_entries_in_any_order_have_one_digest(tmp_path: Path) -> None:
    first = write(tmp_path, ENTRIES)
    entries = write_tar(tmp_path / "root", ENTRIES[::-1], tmp_path / "again")
    assert first.read_bytes() == (tmp_path / "again").read_bytes()
    # A change of this digest is a change of every image: raise the version in recipe.py.
    assert entries == ("sha256:8d128c82b50c7885a3b2262238e80c1bce73b67fb61e894c1859de522d8f3958", 5120)


def test_tarfile_reads_what_was_written(tmp_path: Path) -> None:
    long, odd = "d/" * 60 + "file", "caf\u00e9"
    layer = write(tmp_path, [*ENTRIES, file(long, 1), file(odd, 2), link("long", "t" * 150)])
    with tarfile.open(layer) as archive:
        found = {member.name: (member.type, member.mode, member.size, member.linkname) for member in archive}
    assert found == {
        "a": (tarfile.DIRTYPE, 0o755, 0, ""),
        "a/b": (tarfile.REGTYPE, 0o644, 3, ""),
        "a/l": (tarfile.SYMTYPE, 0o777, 0, "b"),
        odd: (tarfile.REGTYPE, 0o644, 2, ""),
        long: (tarfile.REGTYPE, 0o644, 1, ""),
        "long": (tarfile.SYMTYPE, 0o777, 0, "t" * 150),
        "run": (tarfile.REGTYPE, 0o755, 600, ""),
        "tmp": (tarfile.DIRTYPE, 0o1777, 0, ""),
    }


@pytest.mark.parametrize("name", ["../passwd", "/etc/passwd", "a/../../b", "a/.."])
def test_a_member_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ImageError) as refused:
        list(read_tar(tar_of(tarfile.TarInfo(name)), "layer x"))
    assert refused.value.message == f"layer x holds a member that reaches out of its folder: {name!r}"


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_is_refused(kind: bytes) -> None:
    member = tarfile.TarInfo("dev/sda")
    member.type = kind
    with pytest.raises(ImageError) as refused:
        list(read_tar(tar_of(member), "layer x"))
    assert refused.value.message == (
        "layer x holds 'dev/sda', which is neither file, folder nor link; no image may hold it"
    )


def test_a_hard_link_that_leaves_its_folder_is_refused() -> None:
    member = tarfile.TarInfo("passwd")
    member.type, member.linkname = tarfile.LNKTYPE, "../../etc/passwd"
    with pytest.raises(ImageError) as refused:
        list(read_tar(tar_of(member), "layer x"))
    assert refused.value.message == "layer x holds a member that reaches out of its folder: '../../etc/passwd'"


def test_privileges_are_dropped() -> None:
    member = tarfile.TarInfo("su")
    member.mode = 0o6755
    assert [entry.mode for entry, _, _ in read_tar(tar_of(member), "layer x")] == [0o755]


def test_a_cut_tar_is_refused() -> None:
    member = tarfile.TarInfo("a")
    member.size = 5000
    whole = tar_of(member).getvalue()
    with pytest.raises(ImageError, match=r"^layer x is not a whole tar archive: "):
        [list(content) for _, content, _ in read_tar(io.BytesIO(whole[:2000]), "layer x")]
