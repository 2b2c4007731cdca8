"""What a sandbox uses, read from /proc: no cgroup can be had without privileges."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner.engines.request import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """What a sandbox has more of than it may."""

    what: Literal["memory", "pids"]
    used: int
    allowed: int

    def __str__(self) -> str:
        """Return it as an outcome's detail."""
        name = "bytes of memory" if self.what == "memory" else "processes and threads"
        return f"{self.used} {name}, {self.allowed} allowed"


def excess(init: int, limits: Limits) -> Excess | None:
    """Return the first limit that a sandbox exceeds. `init` is its first process, by the host's number."""
    inside = Path(f"/proc/{init}/root")
    processes = _processes(inside / "proc")
    threads = sum(int(_status(process).get("Threads", "0")) for process in processes)
    if threads > limits.pids:
        return Excess(what="pids", used=threads, allowed=limits.pids)
    tmpfs = sum(_used_bytes(inside / place) for place in ("tmp", "dev/shm"))
    # RSS counts pages that forked processes share several times, but costs nothing; PSS is exact and walks page tables.
    if sum(map(_rss_bytes, processes)) + tmpfs <= limits.memory_bytes:
        return None
    used = _memory_bytes(processes, tmpfs)
    return Excess(what="memory", used=used, allowed=limits.memory_bytes) if used > limits.memory_bytes else None


def _memory_bytes(processes: list[Path], tmpfs: int) -> int:
    anonymous = shared = 0
    for process in processes:
        fields = _fields(process / "smaps_rollup")
        anonymous += _kib(fields, "Pss_Anon")
        shared += _kib(fields, "Pss_Shmem")
    # A mapped file of /dev/shm is in both; the larger of the two is never more than what is used.
    return anonymous + max(shared, tmpfs)


def _processes(proc: Path) -> list[Path]:
    try:
        return [entry for entry in proc.iterdir() if entry.name.isdigit()]
    except OSError:
        return []  # the sandbox has just ended


def _status(process: Path) -> dict[str, str]:
    return _fields(process / "status")


def _rss_bytes(process: Path) -> int:
    fields = _status(process)
    return _kib(fields, "RssAnon") + _kib(fields, "RssShmem")


def _used_bytes(tmpfs: Path) -> int:
    try:
        found = os.statvfs(tmpfs)
    except OSError:
        return 0
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _fields(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return {}  # the process has just ended
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _kib(fields: dict[str, str], name: str) -> int:
    return int(fields.get(name, "0 kB").split()[0]) * 1024
