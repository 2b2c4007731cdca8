"""Canonical JSON and digests: one value, one sequence of bytes, one name."""

import hashlib
import json
import re
from pathlib import Path

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BLOCK_BYTES = 1 << 20


def canonical_bytes(value: object) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, exact floats.

    Raises ValueError for NaN and infinity, which JSON cannot say.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def digest_of(data: bytes) -> str:
    """Return `sha256:<hex>` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of_value(value: object) -> str:
    """Return the digest of a value's canonical JSON."""
    return digest_of(canonical_bytes(value))


def digest_of_file(path: Path) -> str:
    """Return the digest of a file's bytes, read block by block."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            content.update(block)
    return "sha256:" + content.hexdigest()


def is_digest(text: object) -> bool:
    """Say whether a value is a full `sha256:<64 hex>` digest; a tag or a short one is not."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None
