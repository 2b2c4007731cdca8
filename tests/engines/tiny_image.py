"""A tiny image for the engines' tests: one static busybox, as a root folder and as an archive."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.errors import ImageError
from runner.lock import ImagePin

APPLETS = (
    "cat",
    "chmod",
    "dd",
    "env",
    "grep",
    "hostname",
    "id",
    "ls",
    "nc",
    "ps",
    "seq",
    "sh",
    "sleep",
    "stat",
    "touch",
)
ENVIRONMENT = ("PATH=/hostile", "LD_PRELOAD=/hostile.so", "NVIDIA_VISIBLE_DEVICES=all")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyImage:
    """An image on disk, and the pin that names it."""

    pin: ImagePin
    root: Path
    blobs: Mapping[str, bytes]


class TinyImages:
    """Images of one image."""

    def __init__(self, image: TinyImage) -> None:
        self._image = image

    def has(self, image: ImagePin) -> bool:
        return image.manifest == self._image.pin.manifest

    def rootfs(self, image: ImagePin) -> Path:
        if not self.has(image):
            raise ImageError(f"no image {image.manifest}")
        return self._image.root

    def archive(self, image: ImagePin) -> Iterator[bytes]:
        assert self.has(image)
        yield docker_archive(self._image)


def busybox(folder: Path) -> Path:
    """Return a static busybox from the distribution's package, got with the machine's own apt settings."""
    subprocess.run(["apt-get", "-qq", "download", "busybox-static"], cwd=folder, check=True, capture_output=True)
    (package,) = folder.glob("busybox-static_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "package"], check=True)
    return next(path for path in (folder / "package").rglob("busybox") if path.is_file() and path.parent.name == "bin")


def make_image(folder: Path, program: Path, *, marker: str = "tiny") -> TinyImage:
    """Build an image whose config tries what a hostile one would. Images of other markers have other digests."""
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    for name in ("data", "etc", "out", "tmp", "var"):
        (root / name).mkdir()
    shutil.copy(program, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/marker").write_text(marker)
    for path in (folder, root, *(path for path in root.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    layer = _layer(root)
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": list(ENVIRONMENT),
                "Entrypoint": ["/bin/sh", "-c", "echo hostile entrypoint"],
                "Volumes": {"/var": {}},
                "Healthcheck": {"Test": ["CMD-SHELL", "touch /var/healthcheck"], "Interval": 1_000_000_000},
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    pin = ImagePin(
        name="tiny",
        ref="tiny",
        platform="linux/amd64",
        python="python3",
        source="recipe",
        manifest=digest(manifest),
        config=digest(config),
        diff_ids=(digest(layer),),
    )
    return TinyImage(pin=pin, root=root, blobs={digest(blob): blob for blob in (layer, config, manifest)})


def docker_archive(image: TinyImage, *, tags: tuple[str, ...] = (), config: bytes | None = None) -> bytes:
    """Return what `docker load` takes. A test may add tags or another config: a forged archive."""
    assert image.pin.config is not None
    config = image.blobs[image.pin.config] if config is None else config
    (layer_digest,) = image.pin.diff_ids
    entries = {
        "config.json": config,
        "layer.tar": image.blobs[layer_digest],
        "manifest.json": _json([{"Config": "config.json", "RepoTags": list(tags), "Layers": ["layer.tar"]}]),
    }
    return _tar(entries)


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _tar(entries: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def _layer(root: Path) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(root.rglob("*"), key=os.fspath):
            tar.add(path, arcname=os.fspath(path.relative_to(root)), recursive=False, filter=_of_root)
    return target.getvalue()


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member
