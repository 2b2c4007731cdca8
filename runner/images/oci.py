"""OCI manifests, configs and indexes: written as canonical JSON, read strictly. Bytes and values only, no files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.canonical import canonical_bytes, digest_of, is_digest
from runner.errors import ImageError

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
NAME = "org.opencontainers.image.ref.name"
_ATTESTATION = "vnd.docker.reference.type"
_CREATED = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What names a blob: its kind, digest and size."""

    media: str
    digest: str
    size: int
    platform: str | None = None
    """os/architecture, in an index only."""
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image of one platform: a config, and layers from the lowest up."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the config says that xrun uses; the rest of it, such as an entrypoint, is never obeyed."""

    platform: str
    diff_ids: tuple[str, ...]
    labels: dict[str, str]


def describe(media: str, data: bytes) -> Descriptor:
    """Return the descriptor of bytes."""
    return Descriptor(media=media, digest=digest_of(data), size=len(data))


def config_bytes(platform: str, diff_ids: tuple[str, ...], labels: Mapping[str, str]) -> bytes:
    """Return the config of a built image: no entrypoint, a user without privileges, the time 0."""
    system, _, architecture = platform.partition("/")
    inside = {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"],
        "Labels": dict(labels),
        "User": "65532",
        "WorkingDir": "/",
    }
    return canonical_bytes(
        {
            "architecture": architecture,
            "config": inside,
            "created": _CREATED,
            "history": [{"created": _CREATED, "created_by": "xrun"} for _ in diff_ids],
            "os": system,
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
    )


def manifest_bytes(config: Descriptor, layers: tuple[Descriptor, ...]) -> bytes:
    """Return a manifest."""
    content = {"config": _mapping(config), "layers": [_mapping(layer) for layer in layers]}
    return canonical_bytes({"schemaVersion": 2, "mediaType": MANIFEST, **content})


def index_bytes(manifests: tuple[Descriptor, ...]) -> bytes:
    """Return an index."""
    listed = [_mapping(manifest) for manifest in manifests]
    return canonical_bytes({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})


def _mapping(descriptor: Descriptor) -> dict[str, object]:
    mapping: dict[str, object] = {
        "mediaType": descriptor.media,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        mapping["annotations"] = descriptor.annotations
    if descriptor.platform:
        system, _, architecture = descriptor.platform.partition("/")
        mapping["platform"] = {"os": system, "architecture": architecture}
    return mapping


def parse_index(data: bytes, what: str) -> tuple[Descriptor, ...]:
    """Return the entries of an index. `what` names it in ImageError."""
    entries = _field(_document(data, what), "manifests", list, what)
    return tuple(_descriptor(entry, what) for entry in entries)


def parse_manifest(data: bytes, what: str) -> Manifest:
    """Return a manifest. `what` names it in ImageError."""
    document = _document(data, what)
    config = _descriptor(_field(document, "config", dict, what), what)
    layers = tuple(_descriptor(layer, what) for layer in _field(document, "layers", list, what))
    for layer in layers:
        if layer.media != LAYER:
            raise ImageError(f"{what}: layer {layer.digest} is {layer.media!r}; this store takes plain {LAYER!r} only")
    return Manifest(config=config, layers=layers)


def parse_config(data: bytes, what: str) -> Config:
    """Return a config. `what` names it in ImageError."""
    document = _document(data, what)
    platform = f"{_field(document, 'os', str, what)}/{_field(document, 'architecture', str, what)}"
    diff_ids = _field(_field(document, "rootfs", dict, what), "diff_ids", list, what)
    for diff_id in diff_ids:
        _check(is_digest(diff_id), what, f"{diff_id!r} is no digest")
    labels = _field(document, "config", dict, what).get("Labels") or {}
    _check(isinstance(labels, dict), what, "labels are no mapping")
    return Config(platform=platform, diff_ids=tuple(diff_ids), labels={str(k): str(v) for k, v in labels.items()})


def choose(entries: tuple[Descriptor, ...], platform: str, what: str) -> Descriptor:
    """Return the one manifest of a platform. Attestations stand in an index, too, but are no images."""
    images = [entry for entry in entries if _ATTESTATION not in entry.annotations]
    fitting = [entry for entry in images if entry.platform in (platform, None)]
    if len(fitting) != 1:
        has = ", ".join(str(entry.platform) for entry in images) or "nothing"
        raise ImageError(f"{what} holds {len(fitting)} images for {platform}, expected 1; it holds {has}")
    return fitting[0]


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not as OCI writes it: {error}") from None
    _check(isinstance(document, dict), what, "it is no mapping")
    _check(document.get("schemaVersion", 2) == 2, what, "unknown schemaVersion")  # noqa: PLR2004, OCI's own number
    return dict(document)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _descriptor(value: object, what: str) -> Descriptor:
    _check(isinstance(value, dict), what, f"{value!r} is no descriptor")
    assert isinstance(value, dict)
    digest = _field(value, "digest", str, what)
    _check(is_digest(digest), what, f"{digest!r} is no digest")
    size = _field(value, "size", int, what)
    _check(size >= 0, what, f"size {size}")
    platform = value.get("platform")
    named = f"{platform.get('os')}/{platform.get('architecture')}" if isinstance(platform, dict) else None
    annotations = value.get("annotations") or {}
    _check(isinstance(annotations, dict), what, "annotations are no mapping")
    return Descriptor(
        media=_field(value, "mediaType", str, what),
        digest=digest,
        size=size,
        platform=named,
        annotations={str(key): str(item) for key, item in annotations.items()},
    )


def _field(mapping: Mapping[str, Any], key: str, kind: type, what: str) -> Any:
    value = mapping.get(key)
    _check(type(value) is kind, what, f"{key} is {value!r}")
    return value


def _check(holds: bool, what: str, wrong: str) -> None:  # noqa: FBT001, an assertion's shape
    if not holds:
        raise ImageError(f"{what} is not as OCI writes it: {wrong}")
