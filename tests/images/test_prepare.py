"""An image pinned for a lock, on the day a mirror has moved on and on the days before."""

from dataclasses import replace
from pathlib import Path

import pytest

from images.mirror import RECIPE, Mirror, add_deb, remove_deb
from runner.config import ImageChoice
from runner.errors import ConfigError, ImageError, LockError
from runner.images.store import ImageStore
from runner.parse import plain
from runner.prepare import Workshop, data_folder, make_ready, pin_image
from runner.project import Project
from runner.toml import toml_text

CHOICE = ImageChoice(name="tiny", source="recipe", ref="tiny", platform="linux/amd64", python="python3")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def workshop(tmp_path: Path, mirror: Mirror, said: list[str]) -> Workshop:
    assert mirror
    folder = tmp_path / "project" / "images" / "tiny"
    folder.mkdir(parents=True)
    recipe = {key: value for key, value in plain(RECIPE).items() if value is not None and key != "name"}
    (folder / "recipe.toml").write_text(toml_text(recipe))
    return elsewhere(tmp_path / "project", tmp_path / "home", said)


def elsewhere(project: Path, home: Path, said: list[str]) -> Workshop:
    return Workshop(project=Project(root=project), home=home, images=ImageStore(home), say=said.append)


def test_a_pinned_image_stays_on_a_machine_that_has_never_seen_it(workshop: Workshop, tmp_path: Path) -> None:
    first = pin_image(CHOICE, workshop, None, upgrade=False)
    second = pin_image(CHOICE, elsewhere(workshop.project.root, tmp_path / "other", []), first.pin, upgrade=False)
    assert second == first
    assert first.data["digits"].keys() == {"train.gz"}


def test_a_mirror_that_has_moved_on_moves_one_pin_and_says_so(
    workshop: Workshop, mirror: Mirror, tmp_path: Path
) -> None:
    first = pin_image(CHOICE, workshop, None, upgrade=False)
    add_deb(mirror, "libtool", "2.1-1", {"lib/libtool.so.2": b"new"})
    add_deb(mirror, "tool", "1.1-1", {"bin/tool": b"new"}, depends="libtool")
    remove_deb(mirror, "libtool", "2.0-1")
    said: list[str] = []
    second = pin_image(CHOICE, elsewhere(workshop.project.root, tmp_path / "other", said), first.pin, upgrade=False)
    assert second.pin.manifest != first.pin.manifest
    assert second.data == first.data
    assert [line for line in said if line.startswith("moved:")] == ["moved: libtool 2.0-1 -> 2.1-1"]
    assert "  libtool 2.0-1 is not to be had any more" in "\n".join(said).splitlines()


def test_a_new_version_alone_moves_nothing(workshop: Workshop, mirror: Mirror, tmp_path: Path) -> None:
    first = pin_image(CHOICE, workshop, None, upgrade=False)
    add_deb(mirror, "libtool", "2.1-1", {"lib/libtool.so.2": b"new"})
    assert (
        pin_image(CHOICE, elsewhere(workshop.project.root, tmp_path / "other", []), first.pin, upgrade=False) == first
    )


def test_upgrading_moves_every_pin_to_the_newest(workshop: Workshop, mirror: Mirror, said: list[str]) -> None:
    first = pin_image(CHOICE, workshop, None, upgrade=False)
    add_deb(mirror, "libtool", "2.1-1", {"lib/libtool.so.2": b"new"})
    assert pin_image(CHOICE, workshop, first.pin, upgrade=True).pin != first.pin
    assert "moved: libtool 2.0-1 -> 2.1-1" in said


def test_a_run_never_moves_a_pin(workshop: Workshop, mirror: Mirror, tmp_path: Path) -> None:
    pin = pin_image(CHOICE, workshop, None, upgrade=False).pin
    remove_deb(mirror, "libtool", "2.0-1")
    with pytest.raises(ImageError) as refusal:
        make_ready(pin, elsewhere(workshop.project.root, tmp_path / "other", []), "xrun lock", offline=False)
    assert refusal.value.message.endswith("libtool 2.0-1 is not to be had any more")


def test_offline_fetches_nothing(workshop: Workshop, tmp_path: Path) -> None:
    pin = pin_image(CHOICE, workshop, None, upgrade=False).pin
    make_ready(pin, workshop, "xrun lock", offline=True)
    with pytest.raises(ImageError) as refusal:
        make_ready(pin, elsewhere(workshop.project.root, tmp_path / "other", []), "xrun lock", offline=True)
    assert refusal.value.message == (
        f"image tiny ({pin.digest}) is not here, and --offline forbids to fetch its packages"
    )


def test_a_recipe_that_is_no_longer_the_pinned_one_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    pin = replace(pin_image(CHOICE, workshop, None, upgrade=False).pin, recipe_digest="sha256:" + "0" * 64)
    with pytest.raises(LockError) as refusal:
        make_ready(pin, elsewhere(workshop.project.root, tmp_path / "other", []), "xrun lock a=b", offline=False)
    assert str(refusal.value) == (
        f"image tiny ({pin.digest}) is not here, and images/tiny is no longer its recipe\n\nhint: xrun lock a=b"
    )


def test_data_for_an_image_without_any_is_what_the_lock_pins(workshop: Workshop) -> None:
    data = pin_image(CHOICE, workshop, None, upgrade=False).data
    assert (data_folder("tiny", data, workshop) / "digits" / "train.gz").read_bytes() == b"1" * 200_000


def test_other_data_than_the_lock_pins_is_refused(workshop: Workshop) -> None:
    pin_image(CHOICE, workshop, None, upgrade=False)
    with pytest.raises(ImageError) as refusal:
        data_folder("tiny", {"digits": {"train.gz": "sha256:" + "0" * 64}}, workshop)
    assert refusal.value.message == "images/tiny gives other data than the lock pins: digits"


def test_a_registrys_tag_pins_nothing(workshop: Workshop) -> None:
    tagged = ImageChoice(
        name="torch", source="registry", ref="example.org/torch:latest", platform="linux/amd64", python="python3"
    )
    with pytest.raises(ConfigError) as refusal:
        pin_image(tagged, workshop, None, upgrade=False)
    assert refusal.value.message == (
        "image.ref: example.org/torch:latest names no digest; a tag can mean another image tomorrow"
    )


def test_what_only_a_registry_could_tell_is_kept(workshop: Workshop) -> None:
    digest = "sha256:" + "1" * 64
    choice = ImageChoice(
        name="torch",
        source="registry",
        ref=f"example.org/torch:2@{digest}",
        platform="linux/amd64",
        python="python3",
    )
    pin = pin_image(choice, workshop, None, upgrade=False).pin
    assert (pin.index, pin.manifest) == (digest, None)
    told = replace(pin, config="sha256:" + "2" * 64)
    assert pin_image(choice, workshop, told, upgrade=False).pin == told
