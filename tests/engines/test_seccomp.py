"""The filter under a real kernel: what is refused, and that the rest is not."""

import os
import signal
import subprocess
import sys

import pytest

from runner.engines.seccomp import seccomp_filter

# Loads the filter on stdin, then makes one call; prints 'ok' or the error's name. Number and arguments are in argv.
PROBE = """
import ctypes, errno, sys
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
content = sys.stdin.buffer.read()
libc = ctypes.CDLL(None, use_errno=True)
arguments = [ctypes.c_long(int(word)) for word in sys.argv[1:]]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(content) // 8, content)), 0, 0) == 0
answer = libc.syscall(*arguments)
print("ok" if answer >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)
"""
CLONE_NEWUSER = 0x10000000
SIGCHLD = 17
AT_FDCWD = -100
O_CREAT_WRONLY = 0o101


def call(number: int, *arguments: int) -> "subprocess.CompletedProcess[bytes]":
    words = [str(word) for word in (number, *arguments)]
    return subprocess.run(
        [sys.executable, "-c", PROBE, *words], input=seccomp_filter(), capture_output=True, check=False
    )


def answer(number: int, *arguments: int) -> str:
    done = call(number, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()[0]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ptrace", 101),
        ("chroot", 161),
        ("mount", 165),
        ("init_module", 175),
        ("kexec_load", 246),
        ("add_key", 248),
        ("keyctl", 250),
        ("unshare", 272),
        ("perf_event_open", 298),
        ("setns", 308),
        ("bpf", 321),
        ("userfaultfd", 323),
        ("io_uring_setup", 425),
        ("open_tree", 428),
    ],
)
def test_what_no_training_needs_is_refused(name: str, number: int) -> None:
    assert (name, answer(number)) == (name, "EPERM")


def test_clone3_and_openat2_are_unknown_so_that_libraries_take_the_older_calls() -> None:
    assert (answer(435), answer(437)) == ("ENOSYS", "ENOSYS")


def test_a_process_may_be_cloned_but_not_into_a_namespace() -> None:
    assert answer(56, SIGCHLD) == "ok"
    assert answer(56, SIGCHLD | CLONE_NEWUSER) == "EPERM"


@pytest.mark.parametrize("bit", [0o4000, 0o2000])
def test_no_file_gets_a_setuid_or_setgid_bit(bit: int) -> None:
    refused = {
        "chmod": answer(90, 0, 0o755 | bit),
        "fchmod": answer(91, 99, 0o755 | bit),
        "fchmodat": answer(268, AT_FDCWD, 0, 0o755 | bit),
        "fchmodat2": answer(452, AT_FDCWD, 0, 0o755 | bit),
        "creat": answer(85, 0, 0o755 | bit),
        "mknod": answer(133, 0, 0o755 | bit),
        "mknodat": answer(259, AT_FDCWD, 0, 0o755 | bit),
        "open": answer(2, 0, O_CREAT_WRONLY, 0o755 | bit),
        "openat": answer(257, AT_FDCWD, 0, O_CREAT_WRONLY, 0o755 | bit),
    }
    assert set(refused.values()) == {"EPERM"}, refused


def test_the_same_calls_without_the_bits_reach_the_kernel() -> None:
    reached = {
        "chmod": answer(90, 0, 0o755),
        "fchmod": answer(91, 99, 0o755),
        "fchmodat": answer(268, AT_FDCWD, 0, 0o755),
        "open, mode unused": answer(2, 0, os.O_RDONLY, 0o4755),
        "openat, mode unused": answer(257, AT_FDCWD, 0, os.O_RDONLY, 0o4755),
        "openat": answer(257, AT_FDCWD, 0, O_CREAT_WRONLY, 0o755),
    }
    assert set(reached.values()) == {"EFAULT", "EBADF"}, reached


def test_a_call_of_another_architecture_ends_the_process() -> None:
    x32_getpid = 0x40000000 | 39
    assert call(x32_getpid).returncode == -signal.SIGSYS


def test_the_filter_is_small_enough_for_the_kernel() -> None:
    assert len(seccomp_filter()) // 8 < 4096
