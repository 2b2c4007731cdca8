"""Images and data sets, pinned for a lock and made ready for a run."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from runner.canonical import is_digest
from runner.config import ImageChoice
from runner.errors import ConfigError, ImageError, LockError
from runner.images import apt, disk, wheels
from runner.images.build import BuiltImage, build_image, moved, resolve_pins, unpack_data
from runner.images.recipe import (
    Pins,
    Recipe,
    parse_pins,
    pins_path,
    read_pins,
    read_recipe,
    recipe_digest,
    write_pins,
)
from runner.images.store import ImageStore
from runner.lock import ImagePin
from runner.project import Project
from runner.resolve import PinnedImage

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where images are made and kept."""

    project: Project
    home: Path
    images: ImageStore
    say: Say


def pin_image(choice: ImageChoice, workshop: Workshop, old: ImagePin | None, *, upgrade: bool) -> PinnedImage:
    """Pin an image choice. What was pinned and can still be had stays, unless `upgrade`. Raises XrunError."""
    if choice.source == "recipe":
        built = _build_recipe(choice.ref, workshop, upgrade=upgrade)
        return PinnedImage(pin=_recipe_pin(choice, built.pin), data=built.data)
    pin = _registry_pin(choice) if choice.source == "registry" else _archive_pin(choice, workshop)
    if old is not None and old.ref == pin.ref and old.digest == pin.digest:
        pin = old  # it may hold what only a registry could tell
    return PinnedImage(pin=pin, data=_data_of(choice, workshop))


def _build_recipe(name: str, workshop: Workshop, *, upgrade: bool) -> BuiltImage:
    folder, say = workshop.project.recipe(name), workshop.say
    recipe = read_recipe(folder)
    kept = _kept_pins(folder)
    if upgrade or kept is None or kept.asked != recipe.asked or not _can_be_had(recipe, kept, workshop):
        pins = resolve_pins(recipe, None if upgrade else kept, workshop.home, say)
        for line in moved(kept, pins) if kept else ():
            say(f"moved: {line}")
        write_pins(pins, folder)
        kept = pins
    return build_image(recipe, kept, workshop.images, workshop.home, say)


def _kept_pins(folder: Path) -> Pins | None:
    path = pins_path(folder)
    return parse_pins(path.read_bytes(), path) if path.exists() else None


def _can_be_had(recipe: Recipe, pins: Pins, workshop: Workshop) -> bool:
    """Have every pinned file here, or say which ones are gone."""
    if workshop.images.built(recipe_digest(recipe, pins)):
        return True
    try:
        apt.fetch(recipe, (*pins.packages, *pins.data), workshop.home, workshop.say)
        wheels.fetch(recipe, pins.wheels, workshop.home, workshop.say)
    except ImageError as error:
        workshop.say(error.message)
        return False
    return True


def _recipe_pin(choice: ImageChoice, built: ImagePin) -> ImagePin:
    return replace(built, name=choice.name, ref=choice.ref, platform=choice.platform, python=choice.python)


def _registry_pin(choice: ImageChoice) -> ImagePin:
    digest = choice.ref.partition("@")[2]
    if not is_digest(digest):
        raise ConfigError(
            f"image.ref: {choice.ref} names no digest; a tag can mean another image tomorrow",
            hint=f"docker buildx imagetools inspect {choice.ref.partition('@')[0]}",
        )
    return _pin(choice, index=digest)


def _archive_pin(choice: ImageChoice, workshop: Workshop) -> ImagePin:
    stored = workshop.images.add_layout(workshop.project.root / choice.ref, choice.name, choice.platform)
    return replace(
        _pin(choice, manifest=stored.digest),
        config=stored.manifest.config.digest,
        diff_ids=stored.config.diff_ids,
    )


def _pin(choice: ImageChoice, *, index: str | None = None, manifest: str | None = None) -> ImagePin:
    return ImagePin(
        name=choice.name,
        ref=choice.ref,
        platform=choice.platform,
        python=choice.python,
        source=choice.source,
        index=index,
        manifest=manifest,
    )


def _data_of(choice: ImageChoice, workshop: Workshop) -> dict[str, dict[str, str]]:
    """Return the digests of the data sets that are mounted beside an image which holds none."""
    if choice.data_recipe is None:
        return {}
    with disk.aside(workshop.home / "data") as folder:
        recipe, pins = _recipe(choice.data_recipe, workshop)
        return unpack_data(recipe, pins, folder / "data", workshop.home, workshop.say)


def _recipe(name: str, workshop: Workshop) -> tuple[Recipe, Pins]:
    folder = workshop.project.recipe(name)
    recipe = read_recipe(folder)
    return recipe, read_pins(recipe, folder)


def make_ready(pin: ImagePin, workshop: Workshop, hint: str, *, offline: bool) -> None:
    """Have exactly a pinned image here, as far as it is made here: a registry's image is its engine's to pull.

    Raises ImageError where it cannot be had, LockError where the recipe is no longer the pinned one; `hint` is
    the command that helps then.
    """
    if pin.source == "registry" or workshop.images.has(pin):
        return
    if pin.source == "archive":
        workshop.images.add_layout(workshop.project.root / pin.ref, pin.name, pin.platform)
        return
    recipe, pins = _recipe(pin.ref, workshop)
    if recipe_digest(recipe, pins) != pin.recipe_digest:
        raise LockError(
            f"image {pin.name} ({pin.digest}) is not here, and images/{pin.ref} is no longer its recipe", hint=hint
        )
    if offline:
        raise ImageError(f"image {pin.name} ({pin.digest}) is not here, and --offline forbids to fetch its packages")
    built = build_image(recipe, pins, workshop.images, workshop.home, workshop.say).pin
    if (built.manifest, built.config, built.diff_ids) != (pin.manifest, pin.config, pin.diff_ids):
        raise ImageError(f"images/{pin.ref} builds {built.manifest}; pinned is {pin.manifest}", hint=hint)


def data_folder(recipe_name: str, data: Mapping[str, Mapping[str, str]], workshop: Workshop) -> Path:
    """Return a folder that holds a recipe's data sets, for runs whose image holds none.

    Raises ImageError unless they are what is pinned.
    """
    recipe, pins = _recipe(recipe_name, workshop)
    folder = workshop.home / "data" / recipe_digest(recipe, pins).removeprefix("sha256:")
    if not folder.exists():
        with disk.aside(workshop.home / "data") as aside:
            found = unpack_data(recipe, pins, aside / "data", workshop.home, workshop.say)
            if wrong := sorted(name for name in data if found.get(name) != data[name]):
                raise ImageError(f"images/{recipe_name} gives other data than the lock pins: {', '.join(wrong)}")
            # Who comes second finds the same bytes there.
            with suppress(OSError):
                (aside / "data").rename(folder)
    return folder
