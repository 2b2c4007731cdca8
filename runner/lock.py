"""The lock: image, hardware, determinism, data and hyperparameters of an experiment, pinned. Plain values, no files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runner.canonical import digest_of_value, is_digest
from runner.inside.leaves import are_leaves
from runner.parse import Mistake, ParseError, Scalar, parse, plain

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePin:
    """One image, by every name that an engine or a registry may give it.

    A registry alone can tell the digests below `index` of a public image, so they may be open (None)
    until the first `xrun lock` that reaches it; a built image has no index.
    """

    name: str
    ref: str
    platform: str
    python: str
    source: Literal["recipe", "registry", "archive"]
    index: str | None = None
    manifest: str | None = None
    config: str | None = None
    diff_ids: tuple[str, ...] = ()
    recipe_digest: str | None = None
    """Digest of the recipe's pinned packages: what the image is built from."""

    @property
    def digest(self) -> str:
        """The digest that says which image this is: the one a pull names."""
        digest = self.index or self.manifest
        assert digest is not None
        return digest


def repository(ref: str) -> str:
    """Return a reference without its tag and digest."""
    name = ref.partition("@")[0]
    head, colon, tail = name.rpartition(":")
    return head if colon and "/" not in tail else name


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwarePin:
    """What a machine must have, or the run is refused."""

    device: Literal["cpu", "cuda"]
    arch_level: str | None = None
    threads: int
    gpu_model: str | None = None
    gpu_count: int = 0
    gpu_memory_gib: int | None = None
    driver_min: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeterminismPin:
    """The level and every variable it sets before the interpreter starts."""

    level: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """Everything pinned for one experiment on one kind of hardware."""

    version: int = VERSION
    experiment: str
    hardware_name: str
    image: ImagePin
    hardware: HardwarePin
    recorded: dict[str, Scalar]
    """Facts of the machine that made the lock; a difference is never refused."""
    determinism: DeterminismPin
    numerics: dict[str, str] | None = None
    """What the probed operators compute on this hardware, operator -> leaf. Open (None) until it was at hand."""
    data: dict[str, dict[str, str]]
    """Data set -> path below /data/<set> -> digest."""
    config: dict[str, object]
    """Resolved hyperparameters: what `conf/` said, without overrides."""

    @property
    def digest(self) -> str:
        """The lock's own digest, over all its content."""
        return digest_of_value(to_mapping(self))


def to_mapping(value: object) -> dict[str, object]:
    """Return a lock or a pin as plain mappings without the keys that are open."""
    mapping = plain(value)
    assert isinstance(mapping, dict)
    return _without_open(mapping)


def _without_open(mapping: Mapping[str, object]) -> dict[str, object]:
    cleaned = {key: _without_open(item) if isinstance(item, Mapping) else item for key, item in mapping.items()}
    return {key: item for key, item in cleaned.items() if item is not None}


def from_mapping(mapping: Mapping[str, object]) -> Lock:
    """Build a lock from plain mappings. Raises ParseError with every mistake: a key, a type, a tag for a digest."""
    lock = parse(Lock, mapping)
    mistakes = [*_version_mistakes(lock), *_digest_mistakes(lock), *_value_mistakes(lock.config, "config")]
    if lock.numerics is not None and not are_leaves(lock.numerics):
        mistakes.append(Mistake(place="numerics", what="expected operators and 16 hex digits for each"))
    if mistakes:
        raise ParseError(mistakes)
    return lock


def _version_mistakes(lock: Lock) -> list[Mistake]:
    if lock.version == VERSION:
        return []
    return [Mistake(place="version", what=f"this xrun reads version {VERSION}, found {lock.version}")]


def _digest_mistakes(lock: Lock) -> list[Mistake]:
    image = lock.image
    digests: dict[str, str | None] = {
        "image.index": image.index,
        "image.manifest": image.manifest,
        "image.config": image.config,
        "image.recipe_digest": image.recipe_digest,
    }
    digests |= {f"image.diff_ids[{i}]": digest for i, digest in enumerate(image.diff_ids)}
    digests |= {f"data.{name}.{path}": digest for name, files in lock.data.items() for path, digest in files.items()}
    mistakes = [
        Mistake(place=place, what=f"expected a digest (sha256:<64 hex>), found {digest!r}")
        for place, digest in digests.items()
        if digest is not None and not is_digest(digest)
    ]
    if image.index is None and image.manifest is None:
        mistakes.append(Mistake(place="image", what="neither index nor manifest digest; a tag pins nothing"))
    return mistakes


_SECRET = re.compile(r"\b(?:[0-9a-f]{40}|wandb_v1_\w{20,}|hf_\w{20,}|sk-\w{20,}|gh[pousr]_\w{20,}|AKIA[0-9A-Z]{16})\b")


def _value_mistakes(value: object, place: str) -> list[Mistake]:
    """Find what must never reach a lock: interpolations left open, and what looks like a key."""
    if isinstance(value, Mapping):
        return [mistake for key, item in value.items() for mistake in _value_mistakes(item, f"{place}.{key}")]
    if isinstance(value, list | tuple):
        return [mistake for i, item in enumerate(value) for mistake in _value_mistakes(item, f"{place}[{i}]")]
    if isinstance(value, str) and "${" in value:
        return [Mistake(place=place, what=f"unresolved interpolation {value!r}")]
    if isinstance(value, str) and _SECRET.search(value):
        return [Mistake(place=place, what="looks like a secret; a lock is committed and shared")]
    return []
