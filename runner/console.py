"""Where progress is shown: a terminal, or whatever stands in its place."""

import os
from contextlib import suppress
from typing import TextIO


def show(stream: TextIO, text: str) -> None:
    """Write at once. A terminal that was closed must not end what it shows."""
    with suppress(OSError):
        stream.write(text)
        stream.flush()


def columns(stream: TextIO) -> int:
    """Return how wide a terminal is; 80 for what is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80
