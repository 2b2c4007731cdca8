"""`xrun image build|ls|verify`."""

import sys

from runner.errors import ConfigError, ImageError
from runner.images.build import build_image
from runner.images.recipe import read_pins, read_recipe
from runner.prepare import Workshop


def build(workshop: Workshop, name: str | None) -> int:
    """Build a recipe's pinned image and print its digest."""
    recipes = sorted(path.parent.name for path in (workshop.project.root / "images").glob("*/recipe.toml"))
    if name is None:
        raise ConfigError(
            f"build which recipe? images/ holds {', '.join(recipes) or 'none'}", hint="xrun image build cpu"
        )
    folder = workshop.project.recipe(name)
    recipe = read_recipe(folder)
    built = build_image(recipe, read_pins(recipe, folder), workshop.images, workshop.home, workshop.say)
    sys.stdout.write(f"{built.pin.digest}\n")
    return 0


def ls(workshop: Workshop, name: str | None) -> int:
    """List the images on this machine."""
    for image in workshop.images.images():
        if name in (None, image.name):
            sys.stdout.write(f"{image.name:<16} {image.digest}  {image.size / 1e6:,.0f} MB\n")
    return 0


def verify(workshop: Workshop, name: str | None) -> int:
    """Compare every byte of the images, or of one by name or digest, with its digest. Raises ImageError."""
    here = workshop.images.images()
    chosen = [image for image in here if name in (None, image.name, image.digest)]
    if not chosen:
        raise ImageError(f"image {name} is not here" if name else "no image is here", hint="xrun image ls")
    problems = {image.digest: workshop.images.verify(image.digest) for image in chosen}
    for image in chosen:
        state = "damaged" if problems[image.digest] else "whole"
        sys.stdout.write(f"{image.name:<16} {image.digest}  {state}\n")
    if found := [problem for each in problems.values() for problem in each]:
        listing = "\n".join(f"  {problem}" for problem in found)
        raise ImageError(f"this is not what was stored:\n{listing}", hint=f"rm -r {workshop.images.folder}")
    return 0
