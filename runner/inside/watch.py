"""A rank that finishes no step for too long is given up, with the place where it hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

# A rank that waits for others is given this much longer, so that the one they wait for is named first.
_WAITING_GRACE_S = 5.0


class Watch:
    """Writes the stack to errors/rank<k>.txt and ends the process, unless it is armed again in time.

    The clock is a C thread of faulthandler's: it also fires while the interpreter is stuck in a library.
    """

    def __init__(self, path: Path, timeout_s: float, *, alone: bool) -> None:
        path.parent.mkdir(exist_ok=True)
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._timeout_s = timeout_s
        self._deadline = time.monotonic()
        faulthandler.enable(self._file)
        if not alone:
            # The launcher ends the other ranks of a failed run with SIGTERM: each says where it was.
            faulthandler.register(signal.SIGTERM, self._file, chain=True)

    def __enter__(self) -> Self:
        self.arm()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the clock, and leave no empty file behind."""
        if self._file.closed:
            return
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(signal.SIGTERM)
        faulthandler.disable()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()
            with contextlib.suppress(OSError):  # not empty: another rank's is in there
                self._path.parent.rmdir()

    def arm(self) -> None:
        """Start the time anew: something was finished."""
        self._deadline = time.monotonic() + self._timeout_s
        self._set(self._timeout_s)

    def wait(self) -> None:
        """Say that from here on others may be what is waited for."""
        self._set(max(0.0, self._deadline - time.monotonic()) + _WAITING_GRACE_S)

    def _set(self, timeout_s: float) -> None:
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=self._file)
