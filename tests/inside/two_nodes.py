"""Runs on several nodes: real launchers on loopback, which share `out` and meet as containers on machines do."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from inside.jobs import Ran, start
from inside.kills import below
from runner.inside.network import LOOPBACK, free_port

_PATIENCE_S = 300


class Nodes:
    """The launchers of a run's nodes. Options are those of `start`, and on_node: a node's own variables."""

    def __init__(self, folder: Path, spec: Mapping[str, Any], *, count: int = 2, **options: Any) -> None:
        port = free_port()
        self.out = folder / options.get("name", "out")
        self.processes = []
        for number in range(count):
            node = {"XRUN_NODES": count, "XRUN_NODE": number, "XRUN_MASTER_ADDRESS": LOOPBACK, "XRUN_MASTER_PORT": port}
            own = options.get("on_node", {}).get(number, {})
            variables = {name: str(value) for name, value in node.items()}
            environment = {**variables, **options.get("environment", {}), **own}
            self.processes.append(start(folder, spec, **{**options, "environment": environment}))

    def wait(self) -> list[Ran]:
        """Return what each node left, when all have ended. Kills what takes too long."""
        with ThreadPoolExecutor() as pool:
            said = list(pool.map(self._output, self.processes))
        return [Ran(process.returncode, output, self.out) for process, output in zip(self.processes, said, strict=True)]

    def _output(self, process: "subprocess.Popen[str]") -> str:
        try:
            return "".join(process.communicate(timeout=_PATIENCE_S))
        except subprocess.TimeoutExpired:
            self.kill(*range(len(self.processes)))
            return "".join(process.communicate())

    def pids(self, number: int) -> list[int]:
        """Return the processes of a node: its launcher, and what that one started."""
        return [self.processes[number].pid, *below(self.processes[number].pid)]

    def kill(self, *numbers: int) -> None:
        """End all processes of nodes at once, as if their machines were switched off."""
        for pid in [pid for number in numbers if self.processes[number].poll() is None for pid in self.pids(number)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run_on_nodes(folder: Path, spec: Mapping[str, Any], **options: Any) -> list[Ran]:
    """Run a spec on two nodes."""
    return Nodes(folder, spec, **options).wait()


def until(claim: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + _PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Say whether a process lives; on a machine whose init reaps nothing an ended one stays as a zombie."""
    with suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def first_error(out: Path) -> tuple[str, str]:
    """Return the name and the text of the error that was written first: what the host takes for the cause."""
    said = [path for path in (out / "errors").iterdir() if path.stat().st_size]
    first = min(said, key=lambda path: path.stat().st_mtime_ns)
    return first.name, first.read_text()
