"""Pins kept, moved and refused; images of one digest; nothing half-written."""

import resource
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from images.conftest import Ready
from images.mirror import RECIPE, Mirror, add_deb, add_wheel, publish, remove_deb, silent
from runner.canonical import digest_of, digest_of_file
from runner.errors import ImageError
from runner.images import downloads, wheels
from runner.images.build import BuiltImage, build_image, moved, resolve_pins, unpack_data
from runner.images.recipe import Pins
from runner.images.store import ImageStore

HINT = "xrun lock --upgrade image"


def pins_of(home: Path, kept: Pins | None = None) -> Pins:
    return resolve_pins(RECIPE, kept, home, silent)


def build(home: Path, pins: Pins, say: Callable[[str], None] = silent) -> BuiltImage:
    return build_image(RECIPE, pins, ImageStore(home), home, say)


@pytest.mark.usefixtures("mirror")
def test_pins_hold_what_is_asked_and_all_it_needs(tmp_path: Path) -> None:
    pins = pins_of(tmp_path / "home")
    assert [(pin.name, pin.version, pin.architecture) for pin in pins.packages] == [
        ("libtool", "2.0-1", "amd64"),
        ("tool", "1.0-1", "amd64"),
    ]
    assert [pin.name for pin in pins.data] == ["digits"]
    assert [(pin.name, pin.version) for pin in pins.wheels] == [("parts", "1.5"), ("sums", "1.0+cpu")]


def test_pins_are_the_digests_of_the_files(tmp_path: Path, mirror: Mirror) -> None:
    pins = pins_of(tmp_path / "home")
    deb, wheel = mirror.folder / "debs" / "tool_1.0-1_amd64.deb", mirror.folder / "wheels" / pins.wheels[0].filename
    assert (pins.packages[1].sha256, pins.packages[1].size) == (digest_of_file(deb), deb.stat().st_size)
    assert pins.wheels[0].sha256 == digest_of_file(wheel)


def test_two_builds_in_two_folders_have_one_digest(ready: Ready, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "b"
    shutil.copytree(ready.home, elsewhere)
    first, second = build(ready.home, ready.pins), build(elsewhere, ready.pins)
    assert first == second
    assert first.data == {"digits": {"train.gz": digest_of(b"1" * 200_000)}}


def test_the_root_folder_is_merged_trimmed_and_listed_for_scanners(ready: Ready) -> None:
    home, pins = ready.home, ready.pins
    store, built = ImageStore(home), build(home, pins)
    root = store.rootfs(built.pin)
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / "lib" / "libtool.so").read_bytes() == b"elf"
    assert not (root / "usr/share/man").exists()
    assert (root / "var/lib/dpkg/status.d/tool").read_text().startswith("Package: tool\nVersion: 1.0-1\n")
    assert (root / "usr/local/lib/python3.11/dist-packages/sums/data.txt").read_text() == "sums"
    assert (root / "usr/share/doc/digits/copyright").read_bytes() == b"free"


def test_unpacking_the_layers_gives_the_folder_that_was_built(ready: Ready, tmp_path: Path) -> None:
    home, pins = ready.home, ready.pins
    store, built = ImageStore(home), build(home, pins)
    assert built.pin.manifest is not None
    store.rootfs_path(built.pin.manifest).rename(tmp_path / "built")
    unpacked = store.rootfs(built.pin)
    listed = [
        sorted((str(path.relative_to(root)), path.lstat().st_mode) for path in root.rglob("*"))
        for root in (unpacked, tmp_path / "built")
    ]
    assert listed[0] == listed[1]
    assert store.verify(built.pin.manifest) == []


def test_an_image_that_is_there_is_not_built_again(ready: Ready) -> None:
    said: list[str] = []
    built = build(ready.home, ready.pins)
    assert build(ready.home, ready.pins, said.append) == built
    assert said == []


def test_a_mirror_that_moved_on_moves_only_what_it_lacks(tmp_path: Path, mirror: Mirror) -> None:
    old = pins_of(tmp_path / "home")
    add_deb(mirror, "tool", "1.1-1", {"bin/tool": b"new"}, depends="libtool")
    add_deb(mirror, "libtool", "2.1-1", {"lib/libtool.so.2": b"new"})
    remove_deb(mirror, "libtool", "2.0-1")
    new = pins_of(tmp_path / "home", old)
    assert moved(old, new) == ["libtool 2.0-1 -> 2.1-1"]


def test_packages_that_need_each_other_exactly_move_together(tmp_path: Path, mirror: Mirror) -> None:
    add_deb(mirror, "tool", "1.0-2", {"bin/tool": b"old"}, depends="libtool (= 2.0-1)")
    old = pins_of(tmp_path / "home")
    add_deb(mirror, "libtool", "2.1-1", {"lib/libtool.so.2": b"new"})
    add_deb(mirror, "tool", "1.0-3", {"bin/tool": b"new"}, depends="libtool (= 2.1-1)")
    remove_deb(mirror, "libtool", "2.0-1")
    assert moved(old, pins_of(tmp_path / "home", old)) == ["libtool 2.0-1 -> 2.1-1", "tool 1.0-2 -> 1.0-3"]


def test_every_package_that_the_mirror_lacks_is_named(tmp_path: Path, mirror: Mirror) -> None:
    pins = pins_of(tmp_path / "home")
    remove_deb(mirror, "tool", "1.0-1")
    remove_deb(mirror, "libtool", "2.0-1")
    with pytest.raises(ImageError) as refused:
        build(tmp_path / "other", pins)
    assert refused.value.message == (
        "this machine's apt sources do not have what is pinned:\n"
        "  libtool 2.0-1 is not to be had any more\n"
        "  tool 1.0-1 is not to be had any more"
    )
    assert refused.value.hint == HINT


def test_a_package_of_the_same_version_with_other_bytes_is_refused(tmp_path: Path, mirror: Mirror) -> None:
    pins = pins_of(tmp_path / "home")
    deb = add_deb(mirror, "tool", "1.0-1", {"bin/tool": b"evil"}, depends="libtool")
    with pytest.raises(ImageError) as refused:
        build(tmp_path / "other", pins)
    assert refused.value.message == (
        "this machine's apt sources do not have what is pinned:\n"
        f"  tool 1.0-1 is pinned as {pins.packages[1].sha256}, the mirror has {digest_of_file(deb)}"
    )


def test_a_package_that_is_not_what_its_index_says_is_refused(tmp_path: Path, mirror: Mirror) -> None:
    pins = pins_of(tmp_path / "home")
    deb = mirror.folder / "debs" / "tool_1.0-1_amd64.deb"
    index = (mirror.folder / "debs" / "Packages").read_text()
    deb.write_bytes(bytes(deb.stat().st_size))
    assert (mirror.folder / "debs" / "Packages").read_text() == index
    with pytest.raises(ImageError):
        build(tmp_path / "other", pins)
    assert not downloads.place(tmp_path / "other", pins.packages[1].sha256).exists()


def test_a_wheel_that_cannot_be_had_moves_and_no_other(tmp_path: Path, mirror: Mirror) -> None:
    old = pins_of(tmp_path / "home")
    add_wheel(mirror, "parts", "1.6")
    assert moved(old, pins_of(tmp_path / "home", old)) == []
    (mirror.folder / "wheels" / "parts-1.5-py3-none-any.whl").unlink()
    downloads.place(tmp_path / "home", old.wheels[0].sha256).unlink()
    assert moved(old, pins_of(tmp_path / "home", old)) == ["parts 1.5 -> 1.6"]


def test_a_wheel_with_another_digest_is_refused_and_named(tmp_path: Path, mirror: Mirror) -> None:
    pins = pins_of(tmp_path / "home")
    wheel = add_wheel(mirror, "parts", "1.5", text="evil")
    with pytest.raises(ImageError) as refused:
        build(tmp_path / "other", pins)
    assert refused.value.message == (
        "pip's sources do not have what is pinned:\n"
        f"  parts-1.5-py3-none-any.whl is pinned as {pins.wheels[0].sha256}, pip found {digest_of_file(wheel)}"
    )
    assert refused.value.hint == HINT


def test_the_recipes_own_index_is_asked_only_for_a_local_version_that_pip_lacks(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    (index / "sums").mkdir(parents=True)
    (mirror.folder / "wheels" / "sums-1.0+cpu-py3-none-any.whl").rename(
        index / "sums" / "sums-1.0+cpu-py3-none-any.whl"
    )
    page = '<a href="sums-1.0%2Bcpu-py3-none-any.whl">sums-1.0+cpu-py3-none-any.whl</a>'
    (index / "sums" / "index.html").write_text(page)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{tmp_path}/nothing")
    recipe = replace(RECIPE, wheel_index=f"file://{index}")
    pins = resolve_pins(recipe, None, tmp_path / "home", silent)
    assert [(pin.name, pin.version) for pin in pins.wheels] == [("parts", "1.5"), ("sums", "1.0+cpu")]
    assert set(wheels.fetch(recipe, pins.wheels, tmp_path / "other", silent)) == {pin.sha256 for pin in pins.wheels}
    (mirror.folder / "wheels" / "parts-1.5-py3-none-any.whl").rename(index / "sums" / "parts-1.5-py3-none-any.whl")
    with pytest.raises(ImageError, match=r"^pip's sources do not have what is pinned:\n  parts-1\.5-py3-none-any\.whl"):
        wheels.fetch(recipe, pins.wheels, tmp_path / "third", silent)


def test_a_download_that_changed_on_disk_is_fetched_again(tmp_path: Path, mirror: Mirror) -> None:
    home = tmp_path / "home"
    pins = pins_of(home)
    first = build(home, pins)
    downloads.place(home, pins.packages[0].sha256).write_bytes(b"changed")
    publish(mirror)
    assert build_image(RECIPE, pins, ImageStore(tmp_path / "second"), home, silent) == first


def test_a_disk_that_is_full_is_one_message_and_leaves_nothing(ready: Ready, tmp_path: Path) -> None:
    home, pins = ready.home, ready.pins
    unpack_data(RECIPE, pins, tmp_path / "data", home, silent)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ImageError) as refused:
            build(home, pins)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.message.startswith(f"disk full while writing {home}/images/.aside-")
    assert "/digits/train.gz: 200,000 bytes needed, " in refused.value.message
    assert refused.value.message.endswith(" free")
    assert refused.value.hint == "free some space, or point XRUN_HOME at a larger disk"
    assert [path.name for path in (home / "images").iterdir()] == ["lock"]
    assert build(home, pins).pin.manifest is not None


@pytest.mark.parametrize("phase", ["unpacking", "compiling", "syncing"])
def test_ctrl_c_in_any_phase_leaves_nothing_half_written(ready: Ready, phase: str) -> None:
    def interrupt(line: str) -> None:
        if line.startswith(phase):
            raise KeyboardInterrupt

    home, pins = ready.home, ready.pins
    with pytest.raises(KeyboardInterrupt):
        build(home, pins, interrupt)
    assert not list((home / "images").glob(".aside-*"))
    assert not (home / "images" / "rootfs").exists()
    store, built = ImageStore(home), build(home, pins)
    assert store.rootfs(built.pin).is_dir()
    assert built.pin.manifest is not None
    assert store.verify(built.pin.manifest) == []


def test_data_can_be_had_without_an_image(ready: Ready, tmp_path: Path) -> None:
    home, pins = ready.home, ready.pins
    digests = unpack_data(RECIPE, pins, tmp_path / "data", home, silent)
    assert digests == build(home, pins).data
    assert (tmp_path / "data/digits/train.gz").read_bytes() == b"1" * 200_000


def test_files_of_two_packages_at_one_place_are_refused(tmp_path: Path, mirror: Mirror) -> None:
    add_deb(mirror, "libtool", "2.0-2", {"usr/bin/tool": b"mine"})
    pins = pins_of(tmp_path / "home")
    with pytest.raises(ImageError) as refused:
        build(tmp_path / "home", pins)
    assert refused.value.message == "package tool 1.0-1 holds usr/bin/tool, which is in the image already"


def test_layers_hold_no_owner_no_time_and_no_privilege(ready: Ready) -> None:
    home, pins = ready.home, ready.pins
    store, built = ImageStore(home), build(home, pins)
    for digest in built.pin.diff_ids:
        with tarfile.open(store.blobs.path(digest)) as layer:
            facts = {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode & 0o6000, m.isdev()) for m in layer}
        assert facts <= {(0, 0, "", "", 0, 0, False)}
