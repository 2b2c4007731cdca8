"""A seccomp filter for the embedded engine: what a training never asks of a kernel is refused. x86-64.

Defence in depth only: the sandbox has neither capabilities nor a second user namespace to use most of these with.
"""

import errno
import struct
from collections.abc import Iterator

_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_FIRST = 0x4000_0000
_ALLOW = 0x7FFF_0000
_KILL_PROCESS = 0x8000_0000
_ERRNO = 0x0005_0000

# Opcodes of classic BPF: load a word of seccomp_data; jump if equal, greater or equal, any bit set; return.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16

_REFUSED = {
    "ptrace": 101, "syslog": 103, "uselib": 134, "sysfs": 139, "vhangup": 153, "pivot_root": 155, "adjtimex": 159,
    "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168,
    "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "create_module": 174,
    "init_module": 175, "delete_module": 176, "get_kernel_syms": 177, "query_module": 178, "quotactl": 179,
    "nfsservctl": 180, "lookup_dcookie": 212, "clock_settime": 227, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "fanotify_init": 300,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "kcmp": 312,
    "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "mount_setattr": 442, "quotactl_fd": 443,
    "open_tree_attr": 467,
}  # fmt: skip

# Their arguments lie behind a pointer, out of a filter's sight; libraries fall back on ENOSYS to the older call.
_UNKNOWN = {"clone3": 435, "openat2": 437}

_CLONE_NEW_ANY = 0x7E02_0000
_O_CREAT_OR_TMPFILE = 0x40_0040
_SETUID_OR_SETGID = 0o6000

# Call -> (argument, bits), refused where each of the arguments has one of its bits. A root caller's sandbox writes
# files that root owns, so one with the setuid bit would hand root to any user of the host.
_REFUSED_WITH = (
    (56, ((0, _CLONE_NEW_ANY),)),  # clone
    (90, ((1, _SETUID_OR_SETGID),)),  # chmod
    (91, ((1, _SETUID_OR_SETGID),)),  # fchmod
    (268, ((2, _SETUID_OR_SETGID),)),  # fchmodat
    (452, ((2, _SETUID_OR_SETGID),)),  # fchmodat2
    (85, ((1, _SETUID_OR_SETGID),)),  # creat
    (133, ((1, _SETUID_OR_SETGID),)),  # mknod
    (259, ((2, _SETUID_OR_SETGID),)),  # mknodat
    (2, ((1, _O_CREAT_OR_TMPFILE), (2, _SETUID_OR_SETGID))),  # open
    (257, ((2, _O_CREAT_OR_TMPFILE), (3, _SETUID_OR_SETGID))),  # openat
)


def seccomp_filter() -> bytes:
    """Return the program as the kernel takes it: an array of `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _instructions())


def _instructions() -> Iterator[tuple[int, int, int, int]]:
    """Yield (code, steps to skip if true, steps to skip if false, value)."""
    yield _LOAD, 0, 0, _ARCH_OFFSET
    yield _JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64
    yield _RETURN, 0, 0, _KILL_PROCESS
    yield _LOAD, 0, 0, _NUMBER_OFFSET
    yield _JUMP_AT_LEAST, 0, 1, _X32_FIRST
    yield _RETURN, 0, 0, _KILL_PROCESS
    for number, arguments in _REFUSED_WITH:
        yield from _refuse_with(number, arguments)
    for number in sorted(_REFUSED.values()):
        yield _JUMP_EQUAL, 0, 1, number
        yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    for number in sorted(_UNKNOWN.values()):
        yield _JUMP_EQUAL, 0, 1, number
        yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    yield _RETURN, 0, 0, _ALLOW


def _refuse_with(number: int, arguments: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int, int, int]]:
    """Refuse a call where every listed argument has one of its bits; else go on with the call's number loaded."""
    after = 2 * len(arguments) + 2
    yield _JUMP_EQUAL, 0, after, number
    for done, (argument, bits) in enumerate(arguments):
        yield _LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * argument
        yield _JUMP_ANY_BIT, 0, after - 3 - 2 * done, bits
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _LOAD, 0, 0, _NUMBER_OFFSET
