"""Where a container's output goes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast


def open_log(path: Path) -> BinaryIO:
    """Open a container's log to append to; a link in its place is refused."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    log = os.fdopen(descriptor, "ab", buffering=0)
    log.seek(0, os.SEEK_END)
    return cast("BinaryIO", log)


def unlogged(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """Yield what of a container's whole output is not in its log yet.

    Where the log does not begin as the output does, all of it, after a line that says so: the engine has dropped the
    begin, or keeps lines of stdout and stderr in another order than it sent them.
    """
    try:
        with path.open("rb") as log:
            for chunk in chunks:
                logged = log.read(len(chunk))
                if logged == chunk:
                    continue
                yield chunk[len(logged) :] if chunk.startswith(logged) else GAP + chunk
                break
    except FileNotFoundError:
        pass
    yield from chunks


GAP = b"\nxrun: was killed; from here on the engine's own log, all that it has kept\n"
