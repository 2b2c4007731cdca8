"""The images on this machine: an OCI layout of verified blobs, and each image's unpacked root folder.

What is checked when:
- taking an image in: every blob is digested before it gets its name, and a layer's digest is the config's diff_id;
- unpacking: every layer is digested again before it is read, and the root folder appears only when it is whole;
- each run (`has`, `rootfs`): manifest and config are digested, each layer has its size, the root folder its stamp;
- `archive`: every blob is digested on its way out;
- `verify`: every blob is digested, and every file of the root folder compared with the layers, byte for byte.
A file changed inside the root folder is found by `verify` only.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from runner.canonical import canonical_bytes
from runner.errors import ImageError
from runner.images import disk, oci, tree
from runner.images.blobs import Blobs, write
from runner.images.disk import Say
from runner.images.oci import Config, Descriptor, Manifest
from runner.images.tar import END, file, folder, header, padding
from runner.lock import ImagePin

RECIPE = "org.xrun.recipe"
"""Annotation of an index entry: digest of the recipe and pins that the image was built from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """One image of the store."""

    entry: Descriptor
    manifest: Manifest
    config: Config

    @property
    def name(self) -> str:
        """The name it was taken in under; it identifies nothing."""
        return self.entry.annotations.get(oci.NAME, "")

    @property
    def digest(self) -> str:
        """The digest of its manifest."""
        return self.entry.digest

    @property
    def size(self) -> int:
        """Bytes of its layers."""
        return sum(layer.size for layer in self.manifest.layers)

    @property
    def parts(self) -> tuple[Descriptor, ...]:
        """Config and layers."""
        return (self.manifest.config, *self.manifest.layers)


class ImageStore:
    """Images under `<home>/images/`. Readers need no lock; whoever adds holds `locked`."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "images"
        self.blobs = Blobs(self.folder)

    def has(self, image: ImagePin) -> bool:
        """Say whether exactly this image is here: manifest and config digested, each layer there in its size."""
        try:
            self._pinned(image)
        except ImageError:
            return False
        return True

    def rootfs(self, image: ImagePin) -> Path:
        """Return the image's root folder, unpacking it first where it is not yet. Raises ImageError."""
        stored = self._pinned(image)
        if not self._is_unpacked(stored):
            with self.locked():
                if not self._is_unpacked(stored):
                    self._unpack(stored)
        return self.rootfs_path(stored.digest)

    def archive(self, image: ImagePin) -> Iterator[bytes]:
        """Yield a tar for `docker load` without any tag: an OCI layout with the manifest.json that old engines read."""
        stored = self._pinned(image)
        names = [f"blobs/sha256/{self.blobs.path(part.digest).name}" for part in stored.parts]
        loaded = canonical_bytes([{"Config": names[0], "Layers": names[1:], "RepoTags": None}])
        entry = replace(stored.entry, annotations={}, platform=stored.config.platform)
        yield from _member("index.json", oci.index_bytes((entry,)))
        yield from _member("manifest.json", loaded)
        yield from _member("oci-layout", oci.LAYOUT)
        yield header(folder("blobs")) + header(folder("blobs/sha256"))
        for blob in {part.digest: part for part in (entry, *stored.parts)}.values():
            yield header(file(f"blobs/sha256/{self.blobs.path(blob.digest).name}", blob.size))
            yield from self.blobs.stream(blob)
            yield padding(blob.size)
        yield END

    def verify(self, digest: str) -> list[str]:
        """Digest every blob of an image and compare its root folder with its layers. Return what is wrong.

        Raises ImageError when no such image is here or its manifest or config cannot be read.
        """
        stored = self._read(self._entry(digest))
        problems = [problem for part in stored.parts if (problem := self.blobs.problem(part))]
        if problems or not self._is_unpacked(stored):
            return problems
        root = self.rootfs_path(stored.digest)
        return [f"{root}: {line}" for line in tree.differences(tree.merge(self._layers(stored)), root)]

    def images(self) -> list[StoredImage]:
        """Return all images, by name and digest."""
        return sorted(map(self._read, self._index()), key=lambda image: (image.name, image.digest))

    def built(self, recipe_digest: str) -> StoredImage | None:
        """Return the whole image that was built from a recipe and its pins, or None."""
        for entry in self._index():
            if entry.annotations.get(RECIPE) == recipe_digest and not self._problems(entry):
                return self._read(entry)
        return None

    def add_layout(self, layout: Path, name: str, platform: str) -> StoredImage:
        """Take the image of one platform out of an OCI layout, every blob verified. Raises ImageError."""
        try:
            index = (layout / "index.json").read_bytes()
        except OSError as error:
            raise ImageError(f"{layout} is not an OCI layout: index.json: {error.strerror}") from None
        entry = oci.choose(oci.parse_index(index, f"{layout}/index.json"), platform, str(layout))
        source = Blobs(layout)
        data = source.read(entry.digest)
        with self.locked(), disk.aside(self.folder) as aside:
            manifest = oci.parse_manifest(data, f"manifest {entry.digest}")
            for part in (manifest.config, *manifest.layers):
                self.blobs.copy(source.path(part.digest), part, aside)
            self.blobs.add(data)
            return self.add(replace(entry, platform=platform, annotations={oci.NAME: name}))

    def add(self, entry: Descriptor) -> StoredImage:
        """List an image whose blobs are here."""
        stored = self._read(entry)
        others = tuple(other for other in self._index() if other.digest != entry.digest)
        write(self.folder / "oci-layout", oci.LAYOUT)
        write(self.folder / "index.json", oci.index_bytes((*others, entry)))
        return stored

    def adopt_rootfs(self, unpacked: Path, stored: StoredImage) -> None:
        """Move an unpacked root folder to its place, and stamp it when all of it is on the disk."""
        place, stamp = self.rootfs_path(stored.digest), self._stamp(stored.digest)
        with disk.room(place, stored.size):
            place.parent.mkdir(exist_ok=True)
            stamp.unlink(missing_ok=True)
            if place.exists():
                # Renamed first: a Ctrl-C must not leave half a folder under its name.
                place.rename(unpacked.with_name("old"))
            unpacked.replace(place)
            # One sync for ten thousand files: no stamp may outlive a power cut that takes files away.
            os.sync()
        write(stamp, _stamp_text(stored))

    def locked(self, say: Say | None = None) -> AbstractContextManager[None]:
        """Hold the store for writing. What a killed holder left half-written is removed."""
        return disk.locked(self.folder, say)

    def rootfs_path(self, digest: str) -> Path:
        """Return where the root folder of a manifest's image is, or will be."""
        return self.folder / "rootfs" / digest.removeprefix("sha256:")

    def _stamp(self, digest: str) -> Path:
        path = self.rootfs_path(digest)
        return path.with_name(path.name + ".json")

    def _is_unpacked(self, stored: StoredImage) -> bool:
        stamp = self._stamp(stored.digest)
        there = stamp.is_file() and self.rootfs_path(stored.digest).is_dir()
        return there and stamp.read_bytes() == _stamp_text(stored)

    def _unpack(self, stored: StoredImage) -> None:
        problems = [problem for layer in stored.manifest.layers if (problem := self.blobs.problem(layer))]
        if problems:
            raise self._damaged(stored.digest, problems)
        with disk.aside(self.folder) as aside:
            tree.write_tree(tree.merge(self._layers(stored)), aside / "rootfs")
            self.adopt_rootfs(aside / "rootfs", stored)

    def _damaged(self, digest: str, problems: list[str]) -> ImageError:
        listing = "\n".join(f"  {problem}" for problem in problems)
        return ImageError(f"image {digest} is damaged:\n{listing}", hint=f"rm -r {self.folder}")

    def _layers(self, stored: StoredImage) -> list[Path]:
        return [self.blobs.path(layer.digest) for layer in stored.manifest.layers]

    def _pinned(self, pin: ImagePin) -> StoredImage:
        """Return the image that a pin means, after the checks of each run. Raises ImageError."""
        if pin.manifest is None:
            raise ImageError(f"image {pin.name} ({pin.digest}) is not here", hint="xrun lock")
        entry = self._entry(pin.manifest)
        problems = self._problems(entry)
        if problems:
            raise self._damaged(pin.manifest, problems)
        stored = self._read(entry)
        found = (stored.manifest.config.digest, stored.config.diff_ids, stored.config.platform)
        if found != (pin.config, pin.diff_ids, pin.platform):
            raise ImageError(
                f"image {pin.name}: manifest {pin.manifest} is not of the config, layers and platform pinned"
            )
        return stored

    def _problems(self, entry: Descriptor) -> list[str]:
        try:
            stored = self._read(entry)
        except ImageError as error:
            return [error.message]
        return [problem for part in stored.parts if (problem := self.blobs.size_problem(part))]

    def _read(self, entry: Descriptor) -> StoredImage:
        manifest = oci.parse_manifest(self.blobs.read(entry.digest), f"manifest {entry.digest}")
        config = oci.parse_config(self.blobs.read(manifest.config.digest), f"config {manifest.config.digest}")
        if config.diff_ids != tuple(layer.digest for layer in manifest.layers):
            raise ImageError(f"manifest {entry.digest} lists other layers than its config")
        return StoredImage(entry=entry, manifest=manifest, config=config)

    def _entry(self, digest: str) -> Descriptor:
        for entry in self._index():
            if entry.digest == digest:
                return entry
        raise ImageError(f"image {digest} is not here", hint="xrun image build")

    def _index(self) -> tuple[Descriptor, ...]:
        path = self.folder / "index.json"
        return oci.parse_index(path.read_bytes(), str(path)) if path.is_file() else ()


def _stamp_text(stored: StoredImage) -> bytes:
    return canonical_bytes({"manifest": stored.digest, "diff_ids": list(stored.config.diff_ids)})


def _member(path: str, data: bytes) -> Iterator[bytes]:
    yield header(file(path, len(data))) + data + padding(len(data))
