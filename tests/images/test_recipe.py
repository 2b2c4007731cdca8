"""Recipes and pins: every mistake at once, every edited byte refused."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from images.mirror import RECIPE
from runner.errors import ImageError, LockError
from runner.images.recipe import (
    DebPin,
    Pins,
    WheelPin,
    parse_pins,
    pins_text,
    read_pins,
    read_recipe,
    recipe_digest,
    write_pins,
)

CPU = Path(__file__).parents[2] / "images" / "cpu"
DIGEST = "sha256:" + "1" * 64
PINS = Pins(
    asked=RECIPE.asked,
    packages=(DebPin(name="tool", version="1:1.0-1", architecture="amd64", sha256=DIGEST, size=12),),
    data=(),
    wheels=(WheelPin(name="sums", version="1.0", filename="sums-1.0-py3-none-any.whl", sha256=DIGEST),),
)


def test_pins_are_read_back_as_written() -> None:
    assert parse_pins(pins_text(PINS), Path("packages.lock")) == PINS


def test_every_flipped_bit_of_the_pins_is_refused() -> None:
    text = pins_text(PINS)
    for at in range(len(text)):
        for bit in range(8):
            changed = text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]
            with pytest.raises(LockError):
                parse_pins(changed, Path("packages.lock"))


def test_edited_pins_say_so_and_how_to_get_them_back() -> None:
    edited = dataclasses.replace(PINS, wheels=())
    text = pins_text(PINS).replace(b"1:1.0-1", b"1:1.0-2")
    with pytest.raises(LockError) as refused:
        parse_pins(text, Path("images/tiny/packages.lock"))
    moved = dataclasses.replace(PINS, packages=(dataclasses.replace(PINS.packages[0], version="1:1.0-2"),))
    assert edited.digest != PINS.digest
    assert refused.value.message == (
        f"images/tiny/packages.lock has been edited: its content has digest {moved.digest}, it says {PINS.digest}"
    )
    assert refused.value.hint == "git checkout -- images/tiny/packages.lock"


def test_a_short_digest_is_no_pin() -> None:
    short = dataclasses.replace(PINS, wheels=(dataclasses.replace(PINS.wheels[0], sha256="sha256:abc"),))
    with pytest.raises(LockError) as refused:
        parse_pins(pins_text(short), Path("packages.lock"))
    assert refused.value.message == (
        "packages.lock is not as it must be:\n"
        "  wheels[0].sha256: expected a digest (sha256:<64 hex>), found 'sha256:abc'"
    )


def test_pins_of_another_recipe_are_out_of_date(tmp_path: Path) -> None:
    write_pins(PINS, tmp_path)
    changed = dataclasses.replace(RECIPE, packages=("tool", "another"))
    assert read_pins(RECIPE, tmp_path) == PINS
    with pytest.raises(LockError) as refused:
        read_pins(changed, tmp_path)
    assert refused.value.message == (
        f"{tmp_path}/packages.lock is out of date: {tmp_path}/recipe.toml asks for something else now"
    )
    assert refused.value.hint == "xrun lock --upgrade image"


def test_missing_pins_are_a_lock_error(tmp_path: Path) -> None:
    with pytest.raises(LockError) as refused:
        read_pins(RECIPE, tmp_path)
    assert refused.value.message == f"{tmp_path}/packages.lock does not exist: nothing pins the image tiny"


def test_all_mistakes_of_a_recipe_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('platform = "linux/arm64"\npython = 3\npackages = []\nwheel = ["torch"]\n')
    with pytest.raises(ImageError) as refused:
        read_recipe(tmp_path)
    assert refused.value.message == (
        f"{tmp_path}/recipe.toml is not as it must be:\n"
        "  wheel: unknown key; did you mean wheels?\n"
        "  platform: expected one of linux/amd64, found 'linux/arm64'; did you mean linux/amd64?\n"
        "  python: expected str, found int 3"
    )


def test_the_shipped_recipe_and_its_pins_belong_together() -> None:
    recipe = read_recipe(CPU)
    pins = read_pins(recipe, CPU)
    assert {"torch"} <= {pin.name for pin in pins.wheels}
    assert not {pin.name for pin in pins.packages} & set(recipe.without)


def test_where_wheels_come_from_decides_no_image(tmp_path: Path) -> None:
    shutil.copytree(CPU, tmp_path / "cpu")
    recipe = read_recipe(tmp_path / "cpu")
    elsewhere = dataclasses.replace(recipe, wheel_index="https://localhost/")
    trimmed = dataclasses.replace(recipe, trim=())
    pins = read_pins(recipe, CPU)
    assert recipe_digest(recipe, pins) == recipe_digest(elsewhere, pins) != recipe_digest(trimmed, pins)


def test_kept_patterns_win_over_trimmed_ones() -> None:
    recipe = dataclasses.replace(RECIPE, trim=("usr/share/doc/*", "*.a"), keep=("usr/share/doc/*/copyright",))
    paths = ["usr/share/doc/tool/README", "usr/share/doc/tool/copyright", "usr/lib/x.a", "usr/lib/x.a.so"]
    assert [bool(recipe.trims().fullmatch(path)) for path in paths] == [True, False, True, False]
