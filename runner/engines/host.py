"""The host engine: the request as processes of this host, with its own Python. Only where it is asked for.

It enforces no image, no network, no read-only folder and no limit; its runs say that no image pins their environment.
"""

import os
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runner.engines.log import open_log
from runner.engines.request import Container, ContainerRequest, Mount, Outcome, Remains, ended
from runner.errors import EngineError
from runner.lock import ImagePin
from runner.processes import with_variable

# By what is in its environment a process is known to be a run's.
_MARK = "XRUN_OUT"
_UNSEEN_CODE = 255
_OF_THE_HOST = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH")


class HostEngine:
    """Runs requests as plain processes."""

    name = "host"

    def __init__(self, python: str | None = None) -> None:
        self._python = python or sys.executable

    def require(self, image: ImagePin) -> None:
        """Require nothing: this engine has no images."""

    def start(self, request: ContainerRequest, log: Path) -> Container:
        """Start the program in a session of its own, its output appended to a file. Raises EngineError."""
        argv = host_argv(request, self._python)
        try:
            with open_log(log) as output:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=_on_host(request.workdir, request.mounts),
                    env=host_environment(request, os.environ),
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(f"engine=host cannot start {argv[0]}: {error.strerror}") from error
        return _HostProcess(process)

    def attach(self, remains: Remains) -> Container | None:
        """Take up the processes of a dead xrun; None where none is left."""
        first = _first(remains)
        try:
            return None if first is None else _TakenUp(first, remains)
        except ProcessLookupError:
            return None
        finally:
            if first is None:
                _kill_all(remains)

    def is_running(self, remains: Remains) -> bool:
        """Say whether the program of a dead xrun still runs."""
        return _first(remains) is not None


def _first(remains: Remains) -> int | None:
    """Return the program itself: of the processes that were started for a run, the leader of their session."""
    for pid in with_variable(_MARK, str(remains.out)):
        with suppress(ProcessLookupError):
            if os.getsid(pid) == pid:
                return pid
    return None


def _kill_all(remains: Remains) -> None:
    for pid in with_variable(_MARK, str(remains.out)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def host_argv(request: ContainerRequest, python: str) -> list[str]:
    """Return a request's argv with this host's Python and paths."""
    program, *arguments = request.argv
    program = python if program == request.image.python else _on_host(program, request.mounts)
    return [program, *(_on_host(argument, request.mounts) for argument in arguments)]


def host_environment(request: ContainerRequest, host: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """Return a request's environment with this host's paths, and the search paths for programs that this host has."""
    wanted = {name: _on_host(value, request.mounts) for name, value in request.environment}
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(request.gpus)}
    # Nothing is mounted read-only here, and the source snapshot must stay as it is.
    visible["PYTHONDONTWRITEBYTECODE"] = "1"
    return wanted | visible | {name: host[name] for name in _OF_THE_HOST if name in host}


def _on_host(value: str, mounts: Sequence[Mount]) -> str:
    """Return a container path as the host's; the deepest mount that holds it decides."""
    for mount in sorted(mounts, key=lambda mount: len(mount.target), reverse=True):
        if value == mount.target or value.startswith(mount.target.rstrip("/") + "/"):
            return str(mount.source) + value[len(mount.target) :]
    return value


class _HostProcess:
    """A started process and those of its group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait(self, timeout_s: float) -> Outcome | None:
        """Return how it ended, or None if it still runs after timeout_s. What it left behind is ended too."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._kill_group()
        return ended(code if code >= 0 else 128 - code)

    def stop(self, grace_s: float) -> None:
        """Ask the program to end, and end its whole group after grace_s."""
        self._process.terminate()
        if self.wait(grace_s) is None:
            self._kill_group()
            self._process.wait()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def pid(self) -> int | None:
        """Return the program's process id."""
        return self._process.pid if self._process.poll() is None else None

    def remove(self) -> None:
        """Do nothing: an ended process leaves nothing behind."""


class _TakenUp:
    """The processes of a dead xrun. Their exit code is their parent's to have, which this process is not."""

    def __init__(self, first: int, remains: Remains) -> None:
        self._pid = first
        self._remains = remains
        self._descriptor = os.pidfd_open(first)
        weakref.finalize(self, os.close, self._descriptor)
        self._end = select.poll()
        self._end.register(self._descriptor, select.POLLIN)

    def wait(self, timeout_s: float) -> Outcome | None:
        """Return that it has ended, or None if it still runs after timeout_s. What it left behind is ended too."""
        if not self._end.poll(timeout_s * 1000):
            return None
        _kill_all(self._remains)
        return Outcome(kind="unseen", exit_code=_UNSEEN_CODE)

    def stop(self, grace_s: float) -> None:
        """Ask the program to end, and end all of its processes after grace_s."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)
        if self.wait(grace_s) is None:
            _kill_all(self._remains)
            self._end.poll()

    def pid(self) -> int | None:
        """Return the program's process id."""
        return None if self._end.poll(0) else self._pid

    def remove(self) -> None:
        """Do nothing: an ended process leaves nothing behind."""
