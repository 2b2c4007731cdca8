"""The embedded engine: bubblewrap, without a daemon and without root.

Its containers die with the process that started them: nobody else would look after their limits. One gap is left:
while a sandbox is being built (about 30 ms), bubblewrap does not see its parent die, and a SIGKILL of xrun in that
time leaves the sandbox running.
"""

import functools
import os
import platform
import subprocess
from pathlib import Path

from runner.engines.bwrap import HOSTS, bwrap_program, probe_argv, root_arguments
from runner.engines.request import Container, ContainerRequest, Images, Remains, fit
from runner.engines.sandbox import Plan, Sandbox, SandboxRefused
from runner.errors import EngineError
from runner.lock import ImagePin


class EmbeddedEngine:
    """Runs containers in bubblewrap sandboxes."""

    name = "embedded"

    def __init__(self, images: Images) -> None:
        self._images = images
        # Asked once: what a machine allows it allows every sandbox, and asking takes longer than starting one.
        self._require_sandbox = functools.cache(lambda: _require_sandbox(bwrap_program()))

    def require(self, image: ImagePin) -> None:
        """Have the image unpacked and verified, and a sandbox possible. Raises ImageError, EngineError."""
        self._require_sandbox()
        self._images.rootfs(image)

    def start(self, request: ContainerRequest, log: Path) -> Container:
        """Start a container whose output is appended to a file. Raises EngineError, ImageError."""
        if request.gpus:
            raise EngineError(
                "engine=embedded has no GPUs: the driver's libraries come with a container runtime",
                hint="use engine=docker",
            )
        root = root_arguments(self._images.rootfs(request.image), (HOSTS, *(mount.target for mount in request.mounts)))
        limits = fit(request.limits, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        plan = Plan(program=bwrap_program(), request=request, root=root, limits=limits, log=log)
        try:
            return Sandbox(plan)
        except SandboxRefused as refused:
            raise _refusal(str(refused)) from None

    def attach(self, remains: Remains) -> Container | None:  # noqa: ARG002, whatever is asked for
        """Find nothing: a sandbox ends with its xrun."""
        return None

    def is_running(self, remains: Remains) -> bool:  # noqa: ARG002, as above
        """Say that it does not: a sandbox ends with its xrun."""
        return False


def _require_sandbox(program: Path) -> None:
    if platform.machine() != "x86_64":
        raise EngineError(f"engine=embedded runs on x86-64, this is {platform.machine()}", hint="use engine=docker")
    answer = subprocess.run(
        probe_argv(program), env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    if answer.returncode != 0:
        raise _refusal(answer.stderr.decode(errors="replace"))


def _refusal(words: str) -> EngineError:
    said = words.strip().removeprefix("bwrap: ")
    return EngineError(f"this machine refuses a sandbox: {said}", hint=_remedy())


def _remedy() -> str:
    """Return what to do where user namespaces are refused, as far as the kernel's settings tell."""
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "sudo apt install bubblewrap (it comes with an AppArmor profile), or use engine=docker"
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "sudo sysctl kernel.unprivileged_userns_clone=1, or use engine=docker"
    if _setting("user/max_user_namespaces") == "0":
        return "sudo sysctl user.max_user_namespaces=10000, or use engine=docker"
    return "use engine=docker; inside a container, start that one with --security-opt seccomp=unconfined"


def _setting(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None
