"""A small Debian mirror and a folder of wheels: real packages, made by dpkg-deb, read by real apt and pip."""

import hashlib
import os
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.images.recipe import DataSet, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Packages under `debs/`, wheels under `wheels/`, and the variables that point apt and pip at them."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "APT_CONFIG": str(self.folder / "apt.conf"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": str(self.folder / "wheels"),
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_NO_INDEX": "1",
        }


def silent(line: str) -> None:
    """Take progress, one line at a time."""
    assert "\n" not in line


def make_mirror(folder: Path) -> Mirror:
    (folder / "debs").mkdir(parents=True)
    (folder / "wheels").mkdir()
    (folder / "sources.list").write_text(f"deb [trusted=yes] file:{folder}/debs ./\n")
    settings = {"sourcelist": folder / "sources.list", "sourceparts": folder / "none"}
    (folder / "apt.conf").write_text("".join(f'Dir::Etc::{key} "{path}";\n' for key, path in settings.items()))
    mirror = Mirror(folder=folder)
    publish(mirror)
    return mirror


def add_deb(  # noqa: PLR0913, a package has as many facts
    mirror: Mirror,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    depends: str = "",
    links: Mapping[str, str] | None = None,
) -> Path:
    """Make a package and list it."""
    tree = mirror.folder / "tree" / f"{name}-{version}"
    control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Nobody <nobody@localhost>\n"
    control += (f"Depends: {depends}\n" if depends else "") + "Description: a package of a test\n"
    for path, content in {**files, "DEBIAN/control": control.encode()}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    for path, target in (links or {}).items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).symlink_to(target)
    deb = mirror.folder / "debs" / f"{name}_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(deb)], check=True, stdout=subprocess.DEVNULL)
    publish(mirror)
    return deb


def remove_deb(mirror: Mirror, name: str, version: str) -> None:
    """Do what a mirror does weeks after a new version."""
    (mirror.folder / "debs" / f"{name}_{version}_amd64.deb").unlink()
    publish(mirror)


def publish(mirror: Mirror) -> None:
    """Write the mirror's list of packages."""
    stanzas = []
    for deb in sorted((mirror.folder / "debs").glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "-f", str(deb)], check=True, capture_output=True, text=True).stdout
        sha256 = hashlib.sha256(deb.read_bytes()).hexdigest()
        stanzas.append(f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256}\n")
    (mirror.folder / "debs" / "Packages").write_text("\n".join(stanzas))


def add_wheel(mirror: Mirror, name: str, version: str, *, requires: str = "", text: str = "") -> Path:
    """Make a wheel of one module. Its content is a text file, so no interpreter is needed to build the image."""
    path = mirror.folder / "wheels" / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    members = {
        f"{name}/data.txt": text,
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in members.items():
            wheel.writestr(zipfile.ZipInfo(member), content)
    return path


def standard_mirror(folder: Path) -> Mirror:
    """Two packages of which one needs the other, a package of data, and two wheels of which one needs the other."""
    mirror = make_mirror(folder)
    add_deb(mirror, "tool", "1.0-1", {"bin/tool": b"#!/bin/sh\n", "usr/share/man/tool.1": b"x"}, depends="libtool")
    add_deb(mirror, "libtool", "2.0-1", {"lib/libtool.so.2": b"elf"}, links={"lib/libtool.so": "libtool.so.2"})
    add_deb(
        mirror, "digits", "3", {"usr/share/digits/train.gz": b"1" * 200_000, "usr/share/doc/digits/copyright": b"free"}
    )
    add_wheel(mirror, "sums", "1.0+cpu", requires="parts>=1", text="sums")
    add_wheel(mirror, "parts", "1.5", text="parts")
    return mirror


RECIPE = Recipe(
    name="tiny",
    platform="linux/amd64",
    python="3.11",
    packages=("tool",),
    wheels=("sums==1.0+cpu",),
    trim=("usr/share/man*",),
    data={"digits": DataSet(package="digits", folder="usr/share/digits", form="files")},
)
