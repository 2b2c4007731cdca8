"""A recipe asks for packages, wheels and data; its pins say which files answer. Both stand in `images/<name>/`."""

import fnmatch
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from runner import durable
from runner.canonical import digest_of_value, is_digest
from runner.errors import ImageError, LockError
from runner.parse import Mistake, ParseError, parse, plain
from runner.toml import toml_text

VERSION = 1
"""Of the pins' form and of the way an image is put together: another version builds another image."""

_HEADER = "# Written by `xrun lock`. Commit it; do not edit it: its digest covers every byte.\n"
_RELOCK = "xrun lock --upgrade image"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A data set that a Debian package carries; it becomes the folder /data/<name>."""

    package: str
    folder: str
    """Where its files lie in the package."""
    form: Literal["files", "sword"]
    """files: taken as they are; sword: the text of a SWORD module, a verse a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an image is to hold: asked for, by hand. Versions may be open; the pins close them."""

    name: str
    platform: Literal["linux/amd64"]
    python: str
    """Version of the Debian package's interpreter, such as 3.11."""
    packages: tuple[str, ...]
    without: tuple[str, ...] = ()
    """Packages that only maintainer scripts or other left-out packages need: never unpacked, never pinned."""
    wheels: tuple[str, ...] = ()
    wheel_index: str | None = None
    """Asked for a wheel with a local version (+cpu) that the machine's own pip settings do not have."""
    trim: tuple[str, ...] = ()
    """Paths of the image that are left out: shell patterns whose * also spans slashes."""
    keep: tuple[str, ...] = ()
    """Patterns that `trim` does not touch."""
    data: dict[str, DataSet] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The digest of what the pins must answer."""
        packages = [self.packages, self.without, sorted(data.package for data in self.data.values())]
        return digest_of_value([self.platform, self.python, packages, self.wheels])

    def trims(self) -> re.Pattern[str]:
        """Return the pattern that matches whole the paths to leave out."""
        return re.compile(f"(?!{_any_of(self.keep)}){_any_of(self.trim)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DebPin:
    """One Debian package file."""

    name: str
    version: str
    architecture: str
    sha256: str
    """Digest of the .deb."""
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelPin:
    """One wheel file."""

    name: str
    version: str
    filename: str
    sha256: str
    """Digest of the .whl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """Every file that goes into an image, sorted by name."""

    version: int = VERSION
    asked: str
    """Digest of the part of the recipe that these pins answer."""
    packages: tuple[DebPin, ...]
    data: tuple[DebPin, ...]
    """Packages that data sets are taken from; without what they depend on."""
    wheels: tuple[WheelPin, ...]

    @property
    def digest(self) -> str:
        """The digest of all pins."""
        return digest_of_value(plain(self))


def recipe_digest(recipe: Recipe, pins: Pins) -> str:
    """Return the digest of all that decides an image's content. Where wheels come from decides nothing."""
    content = plain(recipe)
    del content["wheel_index"]
    return digest_of_value({"recipe": content, "pins": plain(pins)})


def read_recipe(folder: Path) -> Recipe:
    """Read `recipe.toml` of a folder below images/. Raises ImageError with every mistake in it."""
    path = folder / "recipe.toml"
    try:
        mapping = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ImageError(f"no recipe {folder.name}: {path} does not exist", hint="ls images") from None
    except ValueError as error:
        raise ImageError(f"{path} is not TOML: {error}") from None
    return _parse(Recipe, mapping | {"name": folder.name}, path, ImageError)


def pins_path(folder: Path) -> Path:
    """Return the file of a recipe's pins."""
    return folder / "packages.lock"


def read_pins(recipe: Recipe, folder: Path) -> Pins:
    """Read a recipe's pins. Raises LockError where they are missing, edited, or answer another recipe."""
    path = pins_path(folder)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise LockError(f"{path} does not exist: nothing pins the image {recipe.name}", hint=_RELOCK) from None
    pins = parse_pins(text, path)
    if pins.asked != recipe.asked:
        raise LockError(f"{path} is out of date: {folder / 'recipe.toml'} asks for something else now", hint=_RELOCK)
    return pins


def parse_pins(text: bytes, path: Path) -> Pins:
    """Return the pins that a text says. Raises LockError for any byte that `pins_text` would not have written."""
    hint = f"git checkout -- {path}"
    try:
        mapping = tomllib.loads(text.decode("utf-8"))
    except ValueError as error:
        raise LockError(f"{path} is not a file of pins: {error}", hint=hint) from None
    digest = mapping.pop("digest", None)
    pins = _parse(Pins, mapping, path, LockError, hint)
    mistakes = _pin_mistakes(pins)
    if mistakes:
        raise LockError(_listing(path, mistakes), hint=hint)
    if digest != pins.digest or text != pins_text(pins):
        raise LockError(f"{path} has been edited: its content has digest {pins.digest}, it says {digest}", hint=hint)
    return pins


def pins_text(pins: Pins) -> bytes:
    """Return the one text of pins: header, content sorted, and its own digest."""
    return (_HEADER + toml_text(plain(pins) | {"digest": pins.digest})).encode()


def write_pins(pins: Pins, folder: Path) -> None:
    """Write a recipe's pins. Raises StoreError."""
    durable.write(pins_path(folder), pins_text(pins))


def _pin_mistakes(pins: Pins) -> list[Mistake]:
    places: dict[str, tuple[DebPin | WheelPin, ...]]
    places = {"packages": pins.packages, "data": pins.data, "wheels": pins.wheels}
    mistakes = [
        Mistake(place=f"{place}[{i}].sha256", what=f"expected a digest (sha256:<64 hex>), found {pin.sha256!r}")
        for place, group in places.items()
        for i, pin in enumerate(group)
        if not is_digest(pin.sha256)
    ]
    if pins.version != VERSION:
        mistakes.append(Mistake(place="version", what=f"this xrun reads version {VERSION}, found {pins.version}"))
    return mistakes


def _parse(kind: type[T], value: object, path: Path, error: type[ImageError | LockError], hint: str | None = None) -> T:
    try:
        return parse(kind, value)
    except ParseError as mistakes:
        raise error(_listing(path, mistakes.mistakes), hint=hint) from None


def _listing(path: Path, mistakes: list[Mistake]) -> str:
    return "\n".join([f"{path} is not as it must be:", *(f"  {mistake}" for mistake in mistakes)])


def _any_of(patterns: tuple[str, ...]) -> str:
    return "(?:" + "|".join(fnmatch.translate(pattern) for pattern in patterns or ("",)) + ")"
