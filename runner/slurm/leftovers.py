"""What a run's earlier attempt left running on this node: its xrun was killed, and could not end it."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_GONE_S = 10.0


def end_processes(out: Path) -> int:
    """Kill this user's processes that were started to write to a run's `out`. Returns how many there were."""
    mine = str(out).encode()
    found = [process for process in _processes() if _speaks_of(process, mine)]
    for process in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + _GONE_S
    while any(_speaks_of(process, mine) for process in found) and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(found)


def _processes() -> list[int]:
    own = {os.getpid(), os.getppid()}
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if int(entry.name) not in own]


def _speaks_of(process: int, out: bytes) -> bool:
    """Say whether a process has a folder in its arguments (a sandbox's) or in its environment (a host process's)."""
    with suppress(OSError):
        if out in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0"):
            return True
        return b"XRUN_OUT=" + out in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return False
