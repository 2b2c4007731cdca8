"""The shipped CPU image, built from its committed pins: minutes, and 200 MB of packages."""

from pathlib import Path

import pytest

from runner.images.build import BuiltImage, build_image
from runner.images.recipe import read_pins, read_recipe
from runner.images.store import ImageStore
from runner.lock import Lock
from runner.lockfile import read_lock

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def built(home: Path) -> BuiltImage:
    folder = ROOT / "images" / "cpu"
    recipe = read_recipe(folder)
    return build_image(recipe, read_pins(recipe, folder), ImageStore(home), home, print)


def locks() -> list[Lock]:
    """Return the committed locks that pin this image."""
    read = [read_lock(path.read_bytes(), path) for path in sorted((ROOT / "lock").glob("*.lock"))]
    return [lock for lock in read if (lock.image.source, lock.image.ref) == ("recipe", "cpu")]


def test_the_image_is_the_one_that_the_committed_locks_pin(built: BuiltImage) -> None:
    pinned = {
        (lock.image.manifest, lock.image.config, lock.image.diff_ids, lock.image.recipe_digest) for lock in locks()
    }
    pin = built.pin
    assert pinned == {(pin.manifest, pin.config, pin.diff_ids, pin.recipe_digest)}


def test_the_data_is_what_the_committed_locks_pin(built: BuiltImage) -> None:
    pinned = {name: files for lock in locks() for name, files in lock.data.items()}
    assert pinned == {name: built.data[name] for name in pinned}
    assert pinned


def test_the_text_is_the_king_james_version(home: Path, built: BuiltImage) -> None:
    text = (ImageStore(home).rootfs(built.pin) / "data/kjv/kjv.txt").read_text("ascii")
    assert text.startswith("In the beginning God created the heaven and the earth.\n")
    assert text.endswith("The grace of our Lord Jesus Christ be with you all. Amen.\n")
    books = text.split("\n\n")
    assert (len(books), sum(len(book.splitlines()) for book in books)) == (66, 31_102)


def test_every_byte_of_the_root_folder_is_the_layers(home: Path, built: BuiltImage) -> None:
    assert built.pin.manifest is not None
    assert ImageStore(home).verify(built.pin.manifest) == []


def test_compiled_files_are_unchecked_and_know_their_place_in_the_container(home: Path, built: BuiltImage) -> None:
    root = ImageStore(home).rootfs(built.pin)
    source = root / "usr/local/lib/python3.11/dist-packages/torch/nn/modules/linear.py"
    compiled = (source.parent / "__pycache__" / "linear.cpython-311.pyc").read_bytes()
    assert compiled[4:8] == (1).to_bytes(4, "little")  # hash-based, not checked against the source (PEP 552)
    assert f"/{source.relative_to(root)}".encode() in compiled
    assert str(root).encode() not in compiled


def test_nothing_in_the_root_folder_is_privileged_or_unreadable(home: Path, built: BuiltImage) -> None:
    root = ImageStore(home).rootfs(built.pin)
    modes = {path.stat().st_mode & 0o7777 for path in root.rglob("*") if not path.is_symlink()}
    assert modes == {0o644, 0o755, 0o1777}
