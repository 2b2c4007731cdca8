"""Lockfile text and the Lock it says, both ways, byte for byte. Opens no file."""

import tomllib
from pathlib import PurePath

from runner import lock as locks
from runner.errors import LockError
from runner.lock import Lock
from runner.parse import ParseError
from runner.toml import toml_text

_HEADER = "# Written by `xrun lock`. Commit it; do not edit it: its digest covers every byte.\n"


def lock_text(lock: Lock) -> str:
    """Return the one text of a lock: header, content sorted, and its own digest."""
    return _HEADER + toml_text(locks.to_mapping(lock) | {"digest": lock.digest})


def read_lock(text: bytes, path: PurePath) -> Lock:
    """Return the lock that a lockfile says.

    Raises LockError for any byte that `lock_text` would not have written: an edit, an unknown key, a tag
    where a digest belongs, a float that lost digits. `path` names the file in the message.
    """
    hint = f"git checkout -- {path}"
    try:
        mapping = tomllib.loads(text.decode("utf-8"))
    except ValueError as error:
        raise LockError(f"{path} is not a lockfile: {error}", hint=hint) from None
    digest = mapping.pop("digest", None)
    try:
        lock = locks.from_mapping(mapping)
    except ParseError as error:
        mistakes = "\n".join(f"  {mistake}" for mistake in error.mistakes)
        raise LockError(f"{path} is not a lock that xrun wrote:\n{mistakes}", hint=hint) from None
    if digest != lock.digest:
        raise LockError(f"{path} has been edited: its content has digest {lock.digest}, it says {digest}", hint=hint)
    written = lock_text(lock).encode()
    if text != written:
        raise LockError(f"{path} has been edited: {_first_difference(text, written)}", hint=hint)
    return lock


def _first_difference(found: bytes, written: bytes) -> str:
    """Say where two texts first differ; they mean the same, so only form is left to differ."""
    pairs = zip(found.split(b"\n"), written.split(b"\n"), strict=False)
    number = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), found.count(b"\n") + 1)
    return f"line {number} is not as xrun writes it"
