"""What the harness says when a run must not start, must not be called done, or was asked to end."""

from __future__ import annotations

EXIT_REFUSED = 2
EXIT_STOPPED = 3


class Refused(Exception):
    """The run cannot keep what its spec promises: one message, one hint, no traceback."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"error: {message}" if hint is None else f"error: {message}\n\nhint: {hint}")


class Ended(Exception):
    """The last step that was asked for is done, and nothing is to follow it."""


class Stopped(Exception):
    """The run was asked to end, and its checkpoint is written."""


class Called(Exception):
    """The launcher of a node is to end: its host asked for it, or another node ended."""
