"""Processes of this machine, read from /proc."""

import os
import pwd
from pathlib import Path

from runner.note import Process

_ENDED = {"Z", "X"}


def process(pid: int) -> Process | None:
    """Return the process that has a number now, None where there is none or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The program's name comes second, in parentheses, and may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in _ENDED else Process(pid=pid, start=int(fields[18]))


def lives(past: Process) -> bool:
    """Say whether a process has not ended yet."""
    return process(past.pid) == past


def with_variable(name: str, value: str) -> list[int]:
    """Return the processes of this user (of all, for root) that were started with an environment variable."""
    wanted = os.fsencode(f"{name}={value}")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has ended, or is another user's
            continue
    return sorted(found)


def user_name() -> str:
    """Return the name of the user that this process runs as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
