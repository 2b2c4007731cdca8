"""An image store that gives the pinned bytes or an error."""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from images.conftest import Ready
from images.mirror import RECIPE, silent
from runner.errors import ImageError
from runner.images.build import BuiltImage, build_image
from runner.images.store import ImageStore


@pytest.fixture(scope="module")
def made(resolved: Ready) -> tuple[Path, BuiltImage]:
    """A store with one image; each test works on a copy of its own."""
    home = resolved.home
    return home, build_image(RECIPE, resolved.pins, ImageStore(home), home, silent)


@pytest.fixture
def store(made: tuple[Path, BuiltImage], tmp_path: Path) -> ImageStore:
    shutil.copytree(made[0] / "images", tmp_path / "images", symlinks=True)
    return ImageStore(tmp_path)


@pytest.fixture
def built(made: tuple[Path, BuiltImage]) -> BuiltImage:
    return made[1]


def manifest_of(built: BuiltImage) -> str:
    assert built.pin.manifest is not None
    return built.pin.manifest


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_whole_image_is_here_and_verifies(store: ImageStore, built: BuiltImage) -> None:
    assert store.has(built.pin)
    assert (store.rootfs(built.pin) / "data/digits/train.gz").is_file()
    assert store.verify(manifest_of(built)) == []
    assert [(image.name, image.digest) for image in store.images()] == [("tiny", manifest_of(built))]


def test_a_tampered_layer_is_refused_and_named(store: ImageStore, built: BuiltImage) -> None:
    layer = built.pin.diff_ids[1]
    flip(store.blobs.path(layer))
    (found,) = store.verify(manifest_of(built))
    assert found.startswith(f"blob {layer} has been changed: its bytes have digest sha256:")
    shutil.rmtree(store.rootfs_path(manifest_of(built)))
    with pytest.raises(ImageError) as refused:
        store.rootfs(built.pin)
    assert refused.value.message == f"image {manifest_of(built)} is damaged:\n  {found}"
    assert not store.rootfs_path(manifest_of(built)).exists()


def test_an_archive_of_a_tampered_layer_is_refused(store: ImageStore, built: BuiltImage) -> None:
    flip(store.blobs.path(built.pin.diff_ids[1]))
    with pytest.raises(ImageError, match=f"^blob {built.pin.diff_ids[1]} has been changed"):
        list(store.archive(built.pin))


def test_a_cut_layer_is_seen_at_each_run(store: ImageStore, built: BuiltImage) -> None:
    layer = store.blobs.path(built.pin.diff_ids[1])
    size = layer.stat().st_size
    with layer.open("r+b") as file:
        file.truncate(size - 1)
    assert not store.has(built.pin)
    with pytest.raises(ImageError) as refused:
        store.rootfs(built.pin)
    assert refused.value.message == (
        f"image {manifest_of(built)} is damaged:\n"
        f"  blob {built.pin.diff_ids[1]} has {size - 1:,} bytes, expected {size:,}"
    )


@pytest.mark.parametrize("which", ["manifest", "config"])
def test_a_tampered_document_is_seen_at_each_run(store: ImageStore, built: BuiltImage, which: str) -> None:
    digest = getattr(built.pin, which)
    flip(store.blobs.path(digest))
    assert not store.has(built.pin)
    with pytest.raises(ImageError, match=f"blob {digest} has been changed"):
        store.rootfs(built.pin)


def test_a_tampered_root_folder_is_found_by_verify(store: ImageStore, built: BuiltImage) -> None:
    root = store.rootfs(built.pin)
    flip(root / "data/digits/train.gz")
    assert store.verify(manifest_of(built)) == [f"{root}: data/digits/train.gz has other content"]


def test_a_root_folder_without_its_stamp_is_unpacked_again(store: ImageStore, built: BuiltImage) -> None:
    root = store.rootfs(built.pin)
    shutil.rmtree(root / "usr")
    root.with_name(root.name + ".json").unlink()
    assert store.rootfs(built.pin) == root
    assert store.verify(manifest_of(built)) == []


def test_what_a_killed_builder_left_is_removed(store: ImageStore) -> None:
    (store.folder / ".aside-dead" / "rootfs").mkdir(parents=True)
    with store.locked():
        assert not (store.folder / ".aside-dead").exists()


def test_another_image_than_the_pinned_one_is_never_given(store: ImageStore, built: BuiltImage) -> None:
    absent = dataclasses.replace(built.pin, manifest="sha256:" + "0" * 64)
    crossed = dataclasses.replace(built.pin, config="sha256:" + "0" * 64)
    assert (store.has(absent), store.has(crossed)) == (False, False)
    with pytest.raises(ImageError) as refused:
        store.rootfs(crossed)
    assert refused.value.message == (
        f"image tiny: manifest {built.pin.manifest} is not of the config, layers and platform pinned"
    )


def test_the_archive_is_an_oci_layout_that_docker_loads_without_a_tag(
    store: ImageStore, built: BuiltImage, tmp_path: Path
) -> None:
    with (tmp_path / "image.tar").open("wb") as archive:
        archive.writelines(store.archive(built.pin))
    with tarfile.open(tmp_path / "image.tar") as archive:
        archive.extraction_filter = tarfile.fully_trusted_filter  # our own archive; 3.12 warns without one
        archive.extractall(tmp_path / "layout")
    (loaded,) = json.loads((tmp_path / "layout" / "manifest.json").read_bytes())
    assert loaded["RepoTags"] is None
    taken = ImageStore(tmp_path / "other").add_layout(tmp_path / "layout", "tiny", "linux/amd64")
    assert taken.digest == manifest_of(built)
    assert ImageStore(tmp_path / "other").has(built.pin)


def test_a_layout_with_a_tampered_blob_is_refused_and_nothing_is_listed(
    store: ImageStore, built: BuiltImage, tmp_path: Path
) -> None:
    flip(store.blobs.path(built.pin.diff_ids[2]))
    other = ImageStore(tmp_path / "other")
    with pytest.raises(ImageError) as refused:
        other.add_layout(store.folder, "tiny", "linux/amd64")
    assert refused.value.message == (
        f"blob {built.pin.diff_ids[2]} of {store.folder} has other bytes than its name says"
    )
    assert other.images() == []
    assert not list(other.folder.glob(".aside-*"))
