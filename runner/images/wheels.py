"""Wheels through pip, with the machine's own settings, for the image's Python instead of the one that runs xrun."""

import importlib.util
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from runner.errors import ImageError
from runner.images import downloads
from runner.images.disk import ProgramFailed, Say, aside, program
from runner.images.recipe import Recipe, WheelPin

_RELOCK = "xrun lock --upgrade image"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_GOT = re.compile(r"Got\s+([0-9a-f]{64})")


def resolve(recipe: Recipe, kept: Sequence[WheelPin], home: Path, say: Say) -> tuple[WheelPin, ...]:
    """Pin the wheels that a recipe asks for with all they depend on. A kept pin that can still be had stays."""
    if not recipe.wheels:
        return ()
    say("resolving wheels")
    stays = [f"{pin.name}=={pin.version}" for pin in kept if not _problem(recipe, pin, home)]
    with aside(downloads.folder(home)) as folder:
        constraints = folder / "kept"
        constraints.write_text("\n".join(stays))
        local = folder / "local"
        local.mkdir()
        _local_wheels(recipe, kept, home, local)
        closure = ["-c", str(constraints), "--find-links", str(local), *recipe.wheels]
        _pip(recipe, folder / "wheels", closure)
        pins = [_pin(path, home) for path in sorted((folder / "wheels").glob("*.whl"))]
    return tuple(sorted(pins, key=lambda pin: pin.name))


def _local_wheels(recipe: Recipe, kept: Sequence[WheelPin], home: Path, folder: Path) -> None:
    """Put wheels with a local version into a folder where the machine's own settings do not have them."""
    for wheel in recipe.wheels:
        if "+" not in wheel or recipe.wheel_index is None:
            continue
        here = [pin for pin in kept if f"{pin.name}=={pin.version}" == wheel and downloads.cached(home, pin.sha256)]
        if here:
            (folder / here[0].filename).hardlink_to(downloads.place(home, here[0].sha256))
            continue
        try:
            _pip(recipe, folder, ["--no-deps", wheel])
        except ProgramFailed:
            _pip(recipe, folder, ["--no-deps", "--index-url", recipe.wheel_index, wheel])


def _pin(path: Path, home: Path) -> WheelPin:
    with zipfile.ZipFile(path) as wheel:
        named = next(name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = wheel.read(named).decode("utf-8", "replace").partition("\n\n")[0]
    fields = dict(line.split(": ", 1) for line in metadata.splitlines() if ": " in line)
    name = re.sub(r"[-_.]+", "-", fields["Name"]).lower()
    return WheelPin(name=name, version=fields["Version"], filename=path.name, sha256=downloads.keep(home, path))


def fetch(recipe: Recipe, pins: Sequence[WheelPin], home: Path, say: Say) -> dict[str, Path]:
    """Return the file of each pin by its digest, downloading what is not here yet.

    Raises ImageError that names every wheel which cannot be had, or only with another digest.
    """
    missing = [pin for pin in pins if not downloads.cached(home, pin.sha256)]
    if missing:
        say(f"downloading {len(missing)} wheels")
        _download(recipe, [pin for pin in missing if "+" not in pin.version], home)
        _download(recipe, [pin for pin in missing if "+" in pin.version], home)
    return {pin.sha256: downloads.place(home, pin.sha256) for pin in pins}


def _download(recipe: Recipe, pins: Sequence[WheelPin], home: Path) -> None:
    """Download wheels together; where that fails, one by one, to name all that fail."""
    if not pins:
        return
    if len(pins) > 1:
        try:
            _download_pinned(recipe, pins, home, [])
        except ProgramFailed:
            pass
        else:
            return
    problems = [problem for pin in pins if (problem := _problem(recipe, pin, home))]
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise ImageError(f"pip's sources do not have what is pinned:\n{listing}", hint=_RELOCK)


def _problem(recipe: Recipe, pin: WheelPin, home: Path) -> str | None:
    """Have one pinned wheel among the downloads, or say why it cannot be had."""
    if downloads.cached(home, pin.sha256):
        return None
    # Only a wheel with a local version may live on an index of its own, and the machine's settings come first.
    indexes = [recipe.wheel_index] if recipe.wheel_index and "+" in pin.version else []
    said = []
    for options in [[], *(["--index-url", index] for index in indexes)]:
        try:
            _download_pinned(recipe, [pin], home, options)
        except ProgramFailed as failed:
            said.append(failed.message)
        else:
            return None
    other = next((match[1] for text in said if (match := _GOT.search(text))), None)
    if other:
        return f"{pin.filename} is pinned as {pin.sha256}, pip found sha256:{other}"
    return f"{pin.filename} ({pin.sha256}) cannot be had: {said[-1].splitlines()[-1]}"


def _download_pinned(recipe: Recipe, pins: Sequence[WheelPin], home: Path, options: Sequence[str]) -> None:
    with aside(downloads.folder(home)) as folder:
        asked = folder / "asked"
        asked.write_text("".join(f"{pin.name}=={pin.version} --hash={pin.sha256}\n" for pin in pins))
        _pip(recipe, folder / "wheels", ["--no-deps", "--require-hashes", *options, "-r", str(asked)])
        for path in (folder / "wheels").glob("*.whl"):
            downloads.keep(home, path)


def _pip(recipe: Recipe, target: Path, arguments: Sequence[str]) -> None:
    """Run `pip download` for the image's Python and platform into a folder."""
    python = ["--python-version", recipe.python, "--implementation", "cp"]
    abis = [f"cp{recipe.python.replace('.', '')}", "abi3", "none"]
    target_options = [*python, *_each("--abi", abis), *_each("--platform", _PLATFORMS)]
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--only-binary=:all:", "--dest", str(target)]
    # pip unpacks and checks in its own temporary folder, which on many machines is too small for torch.
    temporary = {"TMPDIR": str(target.parent)}
    argv = [*_pip_program(), "download", *options, *target_options, *arguments]
    program(argv, "pip download", environment=temporary, writes=target)


def _pip_program() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3")
    if found is None:
        raise ImageError(
            "building an image takes pip, and this machine has none", hint=f"{sys.executable} -m ensurepip"
        )
    return [found]


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
