"""Bubblewrap's processes: started, held until their limits are set, watched, signalled."""

import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import termios
import threading
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from runner.engines.bwrap import HOSTS_CONTENT, sandbox_arguments
from runner.engines.log import open_log
from runner.engines.request import ContainerRequest, Limits, Outcome, ended
from runner.engines.seccomp import seccomp_filter
from runner.engines.usage import excess

_WATCH_EVERY_MS = 200
_MESSAGE_BYTES = 2000
_KILLED = 128 + signal.SIGKILL


class SandboxRefused(Exception):
    """Bubblewrap could not build the sandbox; its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sandbox to be started."""

    program: Path
    """bwrap."""
    request: ContainerRequest
    root: tuple[tuple[str, ...], ...]
    """root_arguments() of the request's image."""
    limits: Limits
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Processes:
    bwrap: subprocess.Popen[bytes]
    init: int
    """The sandbox's first process, by the host's number."""
    init_fd: int
    """The same by descriptor: a number may be another process's once its own has ended."""
    status: BinaryIO
    """Open as long as bwrap may write to it."""


class Sandbox:
    """A running sandbox, a Container, watched by a thread of its own.

    The kernel ends a sandbox with the thread that started it, so that thread lives as long as the sandbox.
    """

    def __init__(self, plan: Plan) -> None:
        self._ended = threading.Event()
        self._outcome = Outcome(kind="lost", exit_code=255)
        started: Future[_Processes] = Future()
        threading.Thread(
            target=self._supervise, args=(plan, started), name=f"sandbox {plan.request.name}", daemon=True
        ).start()
        self._processes = started.result()

    def _supervise(self, plan: Plan, started: "Future[_Processes]") -> None:
        try:
            processes = _start(plan)
        except (OSError, SandboxRefused) as error:
            started.set_exception(error)
            return
        started.set_result(processes)
        try:
            self._outcome = _watch(processes, plan.limits)
        finally:
            self._ended.set()
            os.close(processes.init_fd)
            processes.status.close()

    def wait(self, timeout_s: float) -> Outcome | None:
        """Return how it ended, or None if it still runs after timeout_s."""
        return self._outcome if self._ended.wait(timeout_s) else None

    def stop(self, grace_s: float) -> None:
        """Ask the program to end, and end the whole sandbox after grace_s."""
        program = None if self._ended.is_set() else _program(self._processes.init)
        if program is not None:
            with suppress(ProcessLookupError):
                os.kill(program, signal.SIGTERM)
            self._ended.wait(grace_s)
        if not self._ended.is_set():
            _kill(self._processes)
            self._ended.wait()

    def pid(self) -> int | None:
        """Return the host's process id of the sandbox's first process."""
        return None if self._ended.is_set() else self._processes.init

    def remove(self) -> None:
        """Do nothing: an ended sandbox leaves nothing behind."""


def _start(plan: Plan) -> _Processes:
    with ExitStack() as stack:
        log = stack.enter_context(open_log(plan.log))
        log_start = log.tell()
        hosts = stack.enter_context(_memory_file(HOSTS_CONTENT))
        seccomp = stack.enter_context(_memory_file(seccomp_filter()))
        status_read, status_write = _pipe()
        block_read, block_write = _pipe()
        with status_write, block_read:
            options = [
                *sandbox_arguments(plan.request, plan.limits, plan.root, hosts_fd=hosts.fileno()),
                *("--seccomp", str(seccomp.fileno())),
                *("--json-status-fd", str(status_write.fileno())),
                *("--block-fd", str(block_read.fileno())),
            ]
            # In a file, for the program can read its init's command line, and the host's paths are not its business.
            arguments = stack.enter_context(_memory_file("".join(f"{word}\0" for word in options).encode()))
            bwrap = subprocess.Popen(
                [plan.program, "--args", str(arguments.fileno()), "--", *plan.request.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={},
                pass_fds=[file.fileno() for file in (arguments, hosts, seccomp, status_write, block_read)],
                start_new_session=True,  # Ctrl-C is for xrun, which stops the program in its own way
            )
        with block_write:
            init = _read_init(status_read)
            init_fd = None if init is None else _release(init, block_write, plan.limits)
        if init is not None and init_fd is not None:
            return _Processes(bwrap=bwrap, init=init, init_fd=init_fd, status=status_read)
        bwrap.wait()
        status_read.close()
        raise SandboxRefused(plan.log.read_bytes()[log_start:][:_MESSAGE_BYTES].decode(errors="replace"))


def _memory_file(content: bytes) -> BinaryIO:
    file = os.fdopen(os.memfd_create("xrun"), "w+b", buffering=0)
    file.write(content)
    file.seek(0)
    return cast("BinaryIO", file)


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    read, write = os.pipe()
    return cast("BinaryIO", os.fdopen(read, "rb")), cast("BinaryIO", os.fdopen(write, "wb", buffering=0))


def _read_init(status: BinaryIO) -> int | None:
    line = status.readline()
    return int(json.loads(line)["child-pid"]) if line else None


def _release(init: int, block: BinaryIO, limits: Limits) -> int | None:
    """Limit a sandbox that waits, all set up, just before its program, and let it go on.

    Returns a descriptor of its first process, None where it did not get there.
    """
    try:
        init_fd = os.pidfd_open(init)
    except ProcessLookupError:
        return None
    if _goes_on(init, block, limits):
        return init_fd
    os.close(init_fd)
    return None


def _goes_on(init: int, block: BinaryIO, limits: Limits) -> bool:
    try:
        _set_limits(init, limits)
        block.write(b"\0")
    except (ProcessLookupError, BrokenPipeError):
        return False
    # No POLLOUT: only the error is awaited, which tells that every reader has closed its end.
    closed = select.poll()
    closed.register(block, 0)
    closed.poll()
    unread = fcntl.ioctl(block, termios.FIONREAD, bytes(4))
    return unread == bytes(4)


def _set_limits(init: int, limits: Limits) -> None:
    resource.prlimit(init, resource.RLIMIT_CORE, (0, 0))
    # Counted in the sandbox's user namespace since Linux 5.14, but never for root: there usage.excess() alone counts.
    hard = resource.prlimit(init, resource.RLIMIT_NPROC)[1]
    pids = limits.pids if hard == resource.RLIM_INFINITY else min(limits.pids, hard)
    resource.prlimit(init, resource.RLIMIT_NPROC, (pids, pids))


def _watch(processes: _Processes, limits: Limits) -> Outcome:
    """Wait for a sandbox to end, and end it where it takes more than its limits."""
    bwrap_fd = os.pidfd_open(processes.bwrap.pid)
    end = select.poll()
    end.register(bwrap_fd, select.POLLIN)
    found = None
    try:
        while not end.poll(_WATCH_EVERY_MS):
            if found is None and (found := excess(processes.init, limits)) is not None:
                _kill(processes)
    finally:
        os.close(bwrap_fd)
    code = processes.bwrap.wait()
    program_ran = b"exit-code" in processes.status.read()
    if found is not None:
        return Outcome(
            kind="out-of-memory" if found.what == "memory" else "killed", exit_code=_KILLED, detail=str(found)
        )
    if code < 0:
        return Outcome(kind="lost", exit_code=128 - code, detail=f"bwrap itself was ended by signal {-code}")
    if not program_ran and code == 1:
        return Outcome(kind="exited", exit_code=127, detail="the program could not be started; the log says why")
    return ended(code)


def _kill(processes: _Processes) -> None:
    """End every process of a sandbox: the kernel does, when its first one dies."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(processes.init_fd, signal.SIGKILL)


def _program(init: int) -> int | None:
    """Return the host's number of the program: the second process of the sandbox, a child of its init."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            fields = dict(
                line.split(":\t", 1) for line in status.read_text(errors="replace").splitlines() if ":\t" in line
            )
            if fields["PPid"] == str(init) and fields["NSpid"].split("\t")[-1] == "2":
                return int(fields["Pid"])
    return None
