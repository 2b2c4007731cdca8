"""From a recipe to pins, and from pins to an image whose digest is the same on every machine and every day."""

from dataclasses import dataclass, replace
from pathlib import Path

from runner.canonical import canonical_bytes
from runner.images import apt, data, disk, oci, unzip, wheels
from runner.images.bytecode import add_compiled, compiling
from runner.images.data import DataDigests
from runner.images.debs import add_packages
from runner.images.disk import Say
from runner.images.oci import Descriptor
from runner.images.recipe import DebPin, Pins, Recipe, WheelPin, recipe_digest
from runner.images.root import Layer, Root
from runner.images.store import RECIPE, ImageStore, StoredImage
from runner.images.tar import write_tar
from runner.images.tree import set_times
from runner.lock import ImagePin

DATA = "org.xrun.data"
"""Label of a config: the digests of the image's data sets, as canonical JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image of the store, as a lock pins it."""

    pin: ImagePin
    data: DataDigests


def resolve_pins(recipe: Recipe, kept: Pins | None, home: Path, say: Say) -> Pins:
    """Pin every file of a recipe. What `kept` pins and can still be had stays; only the rest moves."""
    apt.refresh(recipe, home, say)
    kept_debs = (*kept.packages, *kept.data) if kept else ()
    packages, data_packages = apt.resolve(recipe, kept_debs, home)
    kept_wheels = kept.wheels if kept else ()
    found_wheels = wheels.resolve(recipe, kept_wheels, home, say)
    return Pins(asked=recipe.asked, packages=packages, data=data_packages, wheels=found_wheels)


def moved(old: Pins, new: Pins) -> list[str]:
    """Return one line for every pin that differs: `libc6 2.36-9 -> 2.36-10`."""
    before, after = _by_name(old), _by_name(new)
    lines = []
    for name in sorted(set(before) | set(after)):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        versions = [pin.version if pin else "nothing" for pin in (was, now)]
        if was and now and was.version == now.version:
            versions = [f"{was.version} ({was.sha256})", f"{now.version} ({now.sha256})"]
        lines.append(f"{name} {versions[0]} -> {versions[1]}")
    return lines


def _by_name(pins: Pins) -> dict[str, DebPin | WheelPin]:
    groups: tuple[tuple[DebPin | WheelPin, ...], ...] = (pins.packages, pins.data, pins.wheels)
    return {pin.name: pin for group in groups for pin in group}


def build_image(recipe: Recipe, pins: Pins, store: ImageStore, home: Path, say: Say) -> BuiltImage:
    """Return the image of a recipe's pins, building it where the store does not have it. Raises ImageError."""
    digest = recipe_digest(recipe, pins)
    stored = store.built(digest)
    if stored is None:
        with store.locked(say):
            # Whoever held the lock may have built just this.
            stored = store.built(digest) or _build(recipe, pins, store, home, say)
    return describe(recipe, stored, digest)


def describe(recipe: Recipe, stored: StoredImage, digest: str) -> BuiltImage:
    """Return the pin of a built image, and the digests of the data in it."""
    pin = ImagePin(
        name=recipe.name,
        ref=recipe.name,
        platform=stored.config.platform,
        python="python3",
        source="recipe",
        manifest=stored.digest,
        config=stored.manifest.config.digest,
        diff_ids=stored.config.diff_ids,
        recipe_digest=digest,
    )
    return BuiltImage(pin=pin, data=read_data_label(stored))


def _build(recipe: Recipe, pins: Pins, store: ImageStore, home: Path, say: Say) -> StoredImage:
    debs = apt.fetch(recipe, (*pins.packages, *pins.data), home, say)
    files = wheels.fetch(recipe, pins.wheels, home, say)
    with disk.aside(store.folder) as aside:
        root = Root(aside / "rootfs")
        say(f"unpacking {len(pins.packages)} Debian packages, {len(recipe.data)} data sets, {len(pins.wheels)} wheels")
        packages = add_packages(root, recipe, pins.packages, debs)
        sets, digests = data.add_data(root, recipe, pins.data, debs)
        unzipped = unzip.add_wheels(root, recipe, pins.wheels, files)
        say("compiling Python files, writing layers")
        with compiling(root, recipe, aside):
            layers = [_write_layer(root, layer, store, aside) for layer in (packages, sets, unzipped)]
        layers.append(_write_layer(root, add_compiled(root, recipe), store, aside))
        stored = _list(recipe, pins, store, tuple(layers), digests)
        say("syncing the image to the disk")
        set_times(root.path, root.entries.values())
        store.adopt_rootfs(root.path, stored)
    return stored


def _write_layer(root: Root, layer: Layer, store: ImageStore, aside: Path) -> Descriptor:
    digest, size = write_tar(root.path, list(layer.values()), aside / "layer")
    store.blobs.adopt(aside / "layer", digest)
    return Descriptor(media=oci.LAYER, digest=digest, size=size)


def _list(
    recipe: Recipe, pins: Pins, store: ImageStore, layers: tuple[Descriptor, ...], digests: DataDigests
) -> StoredImage:
    labels = {DATA: canonical_bytes(digests).decode()}
    config = oci.config_bytes(recipe.platform, tuple(layer.digest for layer in layers), labels)
    manifest = oci.manifest_bytes(oci.describe(oci.CONFIG, config), layers)
    store.blobs.add(config)
    store.blobs.add(manifest)
    annotations = {oci.NAME: recipe.name, RECIPE: recipe_digest(recipe, pins)}
    return store.add(replace(oci.describe(oci.MANIFEST, manifest), platform=recipe.platform, annotations=annotations))


def unpack_data(recipe: Recipe, pins: Pins, target: Path, home: Path, say: Say) -> DataDigests:
    """Put the data sets of a recipe alone into a folder, for runs whose image holds none. Returns their digests."""
    debs = apt.fetch(recipe, pins.data, home, say)
    return data.unpack_sets(recipe, pins.data, debs, target)


def read_data_label(stored: StoredImage) -> DataDigests:
    """Return the digests of the data sets that an image holds, as its config says them."""
    return data.parse_digests(stored.config.labels.get(DATA, "{}"), f"config {stored.manifest.config.digest}")
