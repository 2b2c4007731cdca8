"""Slots of a machine, held by real processes."""

import errno
import getpass
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from lease_process import ROOT, LeaseProcess

from runner import note as notes
from runner import shared
from runner.errors import StoreError
from runner.leases import Lease, Need, lease, listed, retake
from runner.note import NOTE_BYTES, Note
from runner.shared import filesystem

USER = getpass.getuser()
_PATIENCE_S = 60
_NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "xrun"


@pytest.fixture
def container() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that stands for a container's first."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def until(claim: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def give_up(_why: str) -> bool:
    return False


def taken(folder: Path, need: Need, slots: int = 4) -> Lease:
    held = lease(folder, need, slots, waiting=give_up)
    assert held is not None
    return held


def why_not(folder: Path, need: Need, slots: int = 4) -> str:
    """Return why a need cannot be met now."""
    said: list[str] = []

    def waiting(why: str) -> bool:
        said.append(why)
        return False

    assert lease(folder, need, slots, waiting=waiting) is None
    return said[0]


def test_two_leases_share_no_slot(folder: Path) -> None:
    with taken(folder, Need(cpu_slots=2)) as one, taken(folder, Need(cpu_slots=2)) as other:
        assert (one.cpu_slots, other.cpu_slots) == ((0, 1), (2, 3))
        assert (one.label, other.label) == ("cpu 0,1", "cpu 2,3")


def test_what_is_held_cannot_be_had_before_it_is_let_go(folder: Path) -> None:
    one = taken(folder, Need(cpu_slots=3))
    assert lease(folder, Need(cpu_slots=2), 4, waiting=give_up) is None
    one.release()
    assert taken(folder, Need(cpu_slots=2)).cpu_slots == (0, 1)


def test_whoever_waits_is_told_who_holds_the_slots(folder: Path) -> None:
    with taken(folder, Need(cpu_slots=1), 1) as held:
        assert why_not(folder, Need(cpu_slots=1), 1) == (f"cpu slot 0 is taken ({USER}, pid {os.getpid()})")
        held.note(Path("/store/said-0123abcd-1"), "host", None)
        assert why_not(folder, Need(cpu_slots=1), 1) == (
            f"cpu slot 0 is held by said-0123abcd-1 ({USER}, pid {os.getpid()})"
        )


def test_of_many_slots_a_few_are_named(folder: Path) -> None:
    with taken(folder, Need(cpu_slots=6), 6):
        assert why_not(folder, Need(cpu_slots=1), 6).endswith("; 3 more are held")


def test_a_need_for_more_cpus_than_there_are_is_met_with_all(folder: Path) -> None:
    with taken(folder, Need(cpu_slots=8), 2) as held:
        assert held.cpu_slots == (0, 1)


def test_gpus_are_given_in_the_order_of_preference_and_by_their_uuids(folder: Path) -> None:
    uuids = ("GPU-5f2a0000-0000", "GPU-1b3c0000-0000", "GPU-77770000-0000")
    with taken(folder, Need(gpus=uuids, gpu_count=2)) as one, taken(folder, Need(gpus=uuids, gpu_count=1)) as other:
        assert (one.gpus, other.gpus) == (uuids[:2], uuids[2:])
        assert (one.label, one.cpu_slots) == ("GPU-5f2a…,GPU-1b3c…", ())
        assert why_not(folder, Need(gpus=uuids[:1], gpu_count=1)).startswith("GPU-5f2a000… is taken")


def test_a_run_on_cpus_does_not_wait_behind_one_that_waits_for_a_gpu(folder: Path) -> None:
    holder, waiter = (LeaseProcess(folder, gpus=["GPU-1"], gpu_count=1) for _ in range(2))
    until(lambda: len(list(folder.glob("gpu-*.ticket"))) == 1)
    with taken(folder, Need(cpu_slots=1)) as held:
        assert held.cpu_slots == (0,)
    for process in (holder, waiter):
        process.kill()


def test_a_run_that_needs_nothing_holds_nothing(folder: Path) -> None:
    with taken(folder, Need()) as held:
        assert (held.gpus, held.cpu_slots, held.label) == ((), (), "")


def test_the_first_to_come_is_the_first_to_be_served(folder: Path) -> None:
    holder = LeaseProcess(folder, 1, cpu_slots=1)
    holder.got()
    waiters = []
    for count in range(1, 5):
        waiters.append(LeaseProcess(folder, 1, cpu_slots=1))
        until(lambda count=count: len(list(folder.glob("cpu-*.ticket"))) == count)  # type: ignore[misc]
    holder.let_go()
    for waiter in waiters:
        # Were it another's turn, this would wait for ever: nobody else lets go before.
        assert waiter.got() == "cpu 0"
        waiter.let_go()


def test_a_request_for_two_slots_is_not_starved_by_requests_for_one(folder: Path) -> None:
    first = [LeaseProcess(folder, 2, cpu_slots=1) for _ in range(2)]
    for process in first:
        process.got()
    large = LeaseProcess(folder, 2, cpu_slots=2)
    until(lambda: len(list(folder.glob("cpu-*.ticket"))) == 1)
    small = [LeaseProcess(folder, 2, cpu_slots=1) for _ in range(3)]
    until(lambda: len(list(folder.glob("cpu-*.ticket"))) == 4)
    first[0].let_go()
    # One slot is free, and would do for any of the small ones; the one that came first keeps it.
    until(lambda: "is taken" in why_not(folder, Need(cpu_slots=1), 2))
    first[1].let_go()
    assert large.got() == "cpu 0,1"
    large.let_go()
    for process in small[:2]:
        process.got()
    for process in small:
        process.kill()


def test_a_holder_that_is_killed_frees_its_slots_at_once(folder: Path) -> None:
    holder = LeaseProcess(folder, cpu_slots=4)
    holder.got()
    holder.kill()
    with taken(folder, Need(cpu_slots=4)) as held:
        assert held.cpu_slots == (0, 1, 2, 3)


def test_the_ticket_of_a_waiter_that_was_killed_is_removed(folder: Path) -> None:
    with taken(folder, Need(cpu_slots=1), 1):
        waiters = [LeaseProcess(folder, 1, cpu_slots=1) for _ in range(3)]
        until(lambda: len(list(folder.glob("cpu-*.ticket"))) == 3)
        for waiter in waiters:
            waiter.kill()
    taken(folder, Need(cpu_slots=1), 1).release()
    assert list(folder.glob("*.ticket")) == []


def test_a_slot_is_busy_while_the_container_of_a_killed_xrun_lives(
    folder: Path, container: "subprocess.Popen[bytes]"
) -> None:
    holder = LeaseProcess(folder, 1, cpu_slots=1)
    holder.got()
    holder.note(Path("/store/said-0123abcd-1"), "host", container.pid)
    holder.kill()
    assert why_not(folder, Need(cpu_slots=1), 1) == (
        "cpu slot 0 is held by the container of said-0123abcd-1, whose xrun was killed; "
        "xrun resume said-0123abcd-1 takes it up, xrun stop said-0123abcd-1 ends it"
    )
    container.kill()
    container.wait()
    taken(folder, Need(cpu_slots=1), 1).release()


def test_a_process_with_the_number_of_a_container_that_has_ended_keeps_no_slot(folder: Path) -> None:
    holder = LeaseProcess(folder, 1, cpu_slots=1)
    holder.got()
    path = folder / "cpu-0.lock"
    said = notes.from_bytes(path.read_bytes())
    assert said is not None
    holder.kill()
    other = notes.Process(pid=os.getpid(), start=1)
    path.write_bytes(notes.to_bytes(Note(user=USER, pid=1, since="", run="/s/a-1", engine="host", container=other)))
    taken(folder, Need(cpu_slots=1), 1).release()


def test_a_container_that_only_its_engine_knows_of_is_asked_for(folder: Path) -> None:
    holder = LeaseProcess(folder, 1, cpu_slots=1)
    holder.got()
    holder.note(Path("/store/said-0123abcd-1"), "docker", None)
    holder.kill()
    need = Need(cpu_slots=1)
    asked: list[Note] = []

    def outlives(note: Note) -> bool:
        asked.append(note)
        return len(asked) < 2

    assert lease(folder, need, 1, waiting=give_up) is None
    held = lease(folder, need, 1, waiting=lambda _: True, outlives=outlives)
    assert held is not None
    assert asked[0].run == "/store/said-0123abcd-1"
    held.release()


def test_a_lease_that_ends_while_its_container_lives_leaves_the_slot_busy(
    folder: Path, container: "subprocess.Popen[bytes]"
) -> None:
    with taken(folder, Need(cpu_slots=1), 1) as held:
        held.note(Path("/store/said-0123abcd-1"), "host", container.pid)
    assert "whose xrun was killed" in why_not(folder, Need(cpu_slots=1), 1)


def test_the_slots_of_a_killed_xrun_are_taken_up_for_its_run(
    folder: Path, container: "subprocess.Popen[bytes]"
) -> None:
    holder = LeaseProcess(folder, cpu_slots=2)
    holder.got()
    holder.note(Path("/store/said-0123abcd-1"), "host", container.pid)
    holder.kill()
    assert retake(folder, Path("/store/other-0123abcd-1")).cpu_slots == ()
    with retake(folder, Path("/store/said-0123abcd-1")) as held:
        assert held.cpu_slots == (0, 1)
        assert [slot.is_held for slot in listed(folder)] == [True, True]


def test_forty_processes_at_once_never_share_a_slot(folder: Path) -> None:
    processes = [LeaseProcess(folder, 4, cpu_slots=1 + number % 2) for number in range(40)]
    guard = threading.Lock()
    busy: set[str] = set()
    overlaps: list[str] = []
    served: list[str] = []

    def serve(process: LeaseProcess) -> None:
        slots = process.got().removeprefix("cpu ").split(",")
        with guard:
            overlaps.extend(busy & set(slots))
            busy.update(slots)
            served.extend(slots)
        time.sleep(0.02)  # the work that a slot is for
        with guard:
            busy.difference_update(slots)
        if process.pid % 3:
            process.let_go()
        else:
            process.kill()

    threads = [threading.Thread(target=serve, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE_S * 5)
        assert not thread.is_alive(), "a process got no slot"
    assert overlaps == []
    assert len(served) == 60
    assert list(folder.glob("*.ticket")) == []


def test_a_link_in_the_place_of_a_lock_file_is_refused(folder: Path, tmp_path: Path) -> None:
    taken(folder, Need(cpu_slots=1), 1).release()
    (folder / "cpu-0.lock").unlink()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "cpu-0.lock").symlink_to(victim)
    with pytest.raises(StoreError) as refused:
        lease(folder, Need(cpu_slots=1), 1, waiting=give_up)
    path = folder / "cpu-0.lock"
    assert str(refused.value) == f"{path} is no plain file: somebody has put it there\n\nhint: rm {path}"
    path.unlink()
    path.hardlink_to(victim)
    with pytest.raises(StoreError):
        lease(folder, Need(cpu_slots=1), 1, waiting=give_up)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError):
        lease(folder, Need(cpu_slots=1), 1, waiting=give_up)
    assert victim.read_text() == "precious"


def test_a_folder_of_leases_is_everybody_s_whatever_the_umask(folder: Path) -> None:
    past = os.umask(0o077)
    try:
        taken(folder, Need(cpu_slots=1)).release()
    finally:
        os.umask(past)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666}


def test_a_link_in_the_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError) as refused:
        taken(folder, Need(cpu_slots=1))
    assert str(refused.value) == f"{folder} is no folder\n\nhint: {shared.CHOOSE}"


def test_a_folder_that_cannot_be_made_is_named_with_the_command_that_makes_it() -> None:
    folder = Path("/proc/xrun")
    with pytest.raises(StoreError) as refused:
        taken(folder, Need(cpu_slots=1))
    assert str(refused.value) == (
        f"cannot make {folder}: No such file or directory\n\nhint: sudo install -d -m 1777 {folder}"
    )


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_folder_without_locks_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    # No file system at hand answers so: the one place where the kernel's answer is made up.
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreError) as refused:
        taken(folder, Need(cpu_slots=1))
    assert refused.value.message.endswith(f" cannot be locked: {os.strerror(code)}")
    assert refused.value.hint == shared.CHOOSE


def test_a_folder_whose_locks_keep_nobody_out_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a file system that answers yes and does nothing.
    monkeypatch.setattr("fcntl.flock", lambda _descriptor, _how: None)
    with pytest.raises(StoreError) as refused:
        taken(folder, Need(cpu_slots=1))
    assert str(refused.value) == (f"{folder}: a lock there keeps no other process out\n\nhint: {shared.CHOOSE}")


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /home rw - nfs4 server:/home rw
31 30 0:26 / /home/local\\040disk rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind"), [("/tmp/x", "ext4"), ("/home/alice/x", "nfs4"), ("/home/local disk/x", "xfs"), ("/homes", "ext4")]
)
def test_a_file_system_is_found_by_the_deepest_mount(path: str, kind: str) -> None:
    assert filesystem(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" " * NOTE_BYTES,
        b"\xff" * NOTE_BYTES,
        b"[" * NOTE_BYTES,
        b'{"user": "u", "pid": 1, "since": "", "more": 1}'.ljust(NOTE_BYTES),
        b'{"user": "u", "pid": -1, "since": ""}'.ljust(NOTE_BYTES),
        b'{"user": "u", "pid": 1e99, "since": ""}'.ljust(NOTE_BYTES),
        b'{"user": "u", "pid": 99999999999999999999, "since": ""}'.ljust(NOTE_BYTES),
    ],
)
def test_a_note_that_is_none_keeps_no_slot(folder: Path, data: bytes) -> None:
    taken(folder, Need(cpu_slots=1), 1).release()
    (folder / "cpu-0.lock").write_bytes(data)
    taken(folder, Need(cpu_slots=1), 1).release()


def test_a_note_cannot_drive_the_terminal_of_who_reads_it(folder: Path) -> None:
    with taken(folder, Need(cpu_slots=1), 1):
        odd = Note(user="\x1b[2Jroot", pid=1, since="", run="/s/\x1b]0;x\x07-1", engine="host")
        (folder / "cpu-0.lock").write_bytes(notes.to_bytes(odd))
        assert why_not(folder, Need(cpu_slots=1), 1) == (r"cpu slot 0 is held by \x1b]0;x\x07-1 (\x1b[2Jroot, pid 1)")


def test_ctrl_c_ends_the_wait_and_leaves_no_ticket(folder: Path) -> None:
    with taken(folder, Need(cpu_slots=1), 1):
        waiter = LeaseProcess(folder, 1, cpu_slots=1, options={"stderr": subprocess.DEVNULL})
        assert waiter.line().startswith("cpu slot 0 is taken")
        waiter.process.send_signal(signal.SIGINT)
        waiter.end()
        assert list(folder.glob("*.ticket")) == []


@pytest.fixture
def other_user() -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder that every user may enter, with the code, and what starts a process there as another user."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    place = Path(tempfile.mkdtemp(prefix="xrun-leases-"))
    code = place / "code"
    shutil.copytree(ROOT / "runner", code / "runner")
    shutil.copytree(Path(filelock.__file__).parent, code / "filelock")
    for path in (place, *place.rglob("*")):
        path.chmod(0o755)
    yield place, {"code": code, "user": _NOBODY, "group": _NOBODY, "extra_groups": [], "cwd": "/"}
    shutil.rmtree(place)


def readable_python() -> str:
    """Return a Python that every user may run."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([python, "-c", ""], check=True, user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/")
        except (PermissionError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no Python that every user may run")


def test_two_users_share_the_slots(other_user: tuple[Path, dict[str, Any]]) -> None:
    place, options = other_user
    folder, python = place / "xrun", readable_python()
    me = LeaseProcess(folder, 2, cpu_slots=1)
    assert me.got() == "cpu 0"
    other = LeaseProcess(folder, 2, python=python, cpu_slots=1, options=dict(options))
    assert other.got() == "cpu 1"
    assert f"cpu slot 0 is taken ({USER}, pid {me.pid}); cpu slot 1 is taken" in why_not(folder, Need(cpu_slots=1), 2)
    me.let_go()
    # Each has the other's file, whose maker it is not.
    again = LeaseProcess(folder, 2, python=python, cpu_slots=1, options=dict(options))
    assert again.got() == "cpu 0"
    other.kill()
    with taken(folder, Need(cpu_slots=1), 2) as held:
        assert held.cpu_slots == (1,)
    again.kill()
    assert {path.stat().st_uid for path in folder.glob("cpu-*.lock")} == {0, _NOBODY}
