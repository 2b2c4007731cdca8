"""Where a container's output goes."""

import os
from pathlib import Path
from typing import BinaryIO, cast


def open_log(path: Path) -> BinaryIO:
    """Open a container's log to append to; a link in its place is refused."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    log = os.fdopen(descriptor, "ab", buffering=0)
    log.seek(0, os.SEEK_END)
    return cast("BinaryIO", log)
