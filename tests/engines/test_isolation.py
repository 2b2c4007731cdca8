"""What a container sees and may do, asked from inside, on every engine."""

import ctypes
import os
import stat
from pathlib import Path

import pytest

from engines.conftest import Perform
from engines.trial import ENVIRONMENT, LIMITS, MIB, Trial
from runner.engines.request import Limits, Mount, Outcome


def lines(run: Perform, script: str) -> list[str]:
    report = run(Trial(script=script))
    assert report.outcome == Outcome(kind="exited", exit_code=0), report.log
    return report.log.splitlines()


def test_a_program_has_no_capability_and_can_get_none(run: Perform) -> None:
    status = dict(line.split(":\t") for line in lines(run, "cat /proc/self/status | grep -E 'Cap|NoNewPrivs|Seccomp:'"))
    nothing = "0" * 16
    assert status == {
        "CapInh": nothing,
        "CapPrm": nothing,
        "CapEff": nothing,
        "CapBnd": nothing,
        "CapAmb": nothing,
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }


def test_a_program_is_not_root_and_its_host_is_localhost(run: Perform) -> None:
    uid, gid, hostname = lines(run, "id -u; id -g; hostname")
    assert int(uid) != 0
    assert int(gid) != 0
    assert hostname == "localhost"


def test_loopback_is_the_only_network(run: Perform) -> None:
    devices = lines(run, "cat /proc/net/dev")[2:]
    assert [device.split(":")[0].strip() for device in devices] == ["lo"]


def test_the_host_s_network_is_shared_where_it_is_asked_for_and_nothing_else_is(run: Perform) -> None:
    script = """
    cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' ' | sort | tr '\\n' ' '; echo
    hostname; id -u; grep CapEff /proc/self/status; ls /proc | grep -c '^[0-9]'
    grep -w localhost /etc/hosts | head -n 1 | sed 's/[[:space:]].*//'
    (echo x > /etc/probe) 2> /dev/null && echo written; true
    """
    report = run(Trial(script=script, network="host"))
    devices, hostname, uid, capabilities, processes, address = report.log.splitlines()
    assert devices.split() == sorted(path.name for path in Path("/sys/class/net").iterdir() if path.is_dir())
    assert (hostname, capabilities, address) == ("localhost", f"CapEff:\t{'0' * 16}", "127.0.0.1")
    assert int(uid) != 0
    assert int(processes) <= 8


def test_loopback_is_up_and_localhost_resolves(run: Perform) -> None:
    script = "(echo hello | nc -l -p 2000 -w 5) & sleep 0.5; nc -w 2 localhost 2000 < /dev/null; wait"
    assert lines(run, script) == ["hello"]


def test_nothing_but_out_tmp_and_shm_can_be_written(run: Perform) -> None:
    script = """
    for folder in / /bin /etc /var /dev /dev/shm /proc /proc/sys/kernel /sys /tmp /out /data; do
        (echo x > $folder/probe) 2> /dev/null && echo $folder
    done
    for file in /etc/hosts /etc/marker /bin/busybox /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do
        (echo x >> $file) 2> /dev/null && echo $file
    done
    true
    """
    assert lines(run, script) == ["/dev/shm", "/tmp", "/out"]


def test_the_environment_is_the_request_s(run: Perform) -> None:
    assert dict(line.split("=", 1) for line in lines(run, "cat /proc/$$/environ | tr '\\0' '\\n'")) == {
        **ENVIRONMENT,
        "PWD": "/",
    }


def test_no_process_of_the_host_is_seen(run: Perform) -> None:
    pids = [int(name) for name in lines(run, "ls /proc") if name.isdigit()]
    assert pids[0] == 1
    assert len(pids) <= 4


def test_no_descriptor_is_inherited(run: Perform) -> None:
    # 3 is the descriptor by which ls reads the folder.
    assert [line.split()[-1] for line in lines(run, "ls /proc/self/fd")] == ["0", "1", "2", "3"]


def test_the_temporary_file_systems_have_the_sizes_asked_for(run: Perform) -> None:
    shm, tmp = lines(run, "stat -f -c '%b %S' /dev/shm; stat -f -c '%b %S' /tmp")
    sizes = [int(blocks) * int(size) for blocks, size in (shm.split(), tmp.split())]
    assert sizes == [LIMITS.shm_bytes, LIMITS.tmp_bytes]


def test_cores_are_never_dumped(run: Perform) -> None:
    (limit,) = lines(run, "grep 'Max core file size' /proc/self/limits")
    assert limit.split()[4:6] == ["0", "0"]


def test_a_read_only_mount_is_read_only_and_shows_the_host_s_folder(run: Perform, shared_folder: Path) -> None:
    data = shared_folder / "some data: with ,odd $(names) ☃"
    data.mkdir(exist_ok=True)
    (data / "file").write_text("from the host")
    mounts = (Mount(source=data, target="/data"), Mount(source=data / "file", target="/etc/deep/er/file"))
    report = run(Trial(script="cat /data/file /etc/deep/er/file /etc/marker; touch /data/x", mounts=mounts))
    assert "from the hostfrom the hosttiny" in report.log
    assert "Read-only file system" in report.log
    assert report.outcome == Outcome(kind="exited", exit_code=1)


def test_what_is_written_to_out_is_the_caller_s(run: Perform) -> None:
    report = run(Trial(script="echo result > /out/result; chmod 600 /out/result"))
    owner = report.out.parent.stat().st_uid
    assert (report.out / "result").stat().st_uid == owner
    assert report.out.stat().st_uid == owner
    assert (report.out / "result").read_text() == "result\n"


def test_no_file_that_lends_its_owner_s_rights_is_left(run: Perform) -> None:
    report = run(Trial(script="cat /bin/busybox > /out/sh; chmod 755 /out/sh; chmod 6755 /out/sh; true"))
    assert stat.S_IMODE((report.out / "sh").stat().st_mode) == 0o755


def test_exit_codes_are_the_program_s(run: Perform) -> None:
    assert run(Trial(script="exit 3")).outcome == Outcome(kind="exited", exit_code=3)


def test_sigterm_reaches_the_program(run: Perform) -> None:
    script = "trap 'echo saved; exit 5' TERM; echo ready; while true; do sleep 0.05; done"
    report = run(Trial(script=script, stop_at="ready"))
    assert report.outcome == Outcome(kind="exited", exit_code=5)
    assert report.log == "ready\nsaved\n"


def test_a_program_that_does_not_mind_sigterm_is_stopped_by_it(run: Perform) -> None:
    report = run(Trial(script="echo ready; sleep 30", stop_at="ready"))
    assert report.outcome == Outcome(kind="killed", exit_code=143)


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(run: Perform) -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 60) & echo ready; while true; do sleep 0.05; done"
    report = run(Trial(script=script, stop_at="ready", grace_s=0.3))
    assert report.outcome == Outcome(kind="killed", exit_code=137)


def test_memory_over_the_limit_ends_in_out_of_memory(run: Perform) -> None:
    limits = Limits(memory_bytes=24 * MIB, pids=64, shm_bytes=8 * MIB, tmp_bytes=8 * MIB)
    report = run(Trial(script="dd if=/dev/zero of=/dev/null bs=64M count=10000; sleep 1", limits=limits))
    assert report.outcome.kind == "out-of-memory"


def test_files_in_shm_count_as_memory(run: Perform) -> None:
    limits = Limits(memory_bytes=24 * MIB, pids=64, shm_bytes=64 * MIB, tmp_bytes=8 * MIB)
    report = run(Trial(script="dd if=/dev/zero of=/dev/shm/file bs=1M count=48; sleep 1", limits=limits))
    assert report.outcome.kind == "out-of-memory"


def test_processes_over_the_limit_are_not_to_be_had(run: Perform) -> None:
    limits = Limits(memory_bytes=256 * MIB, pids=20, shm_bytes=8 * MIB, tmp_bytes=8 * MIB)
    script = "for i in $(seq 60); do sleep 3 & done; echo all 60; wait"
    report = run(Trial(script=script, limits=limits))
    refused = report.outcome.kind == "exited" and "can't fork" in report.log
    ended = report.outcome.kind == "killed" and "processes and threads, 20 allowed" in report.outcome.detail
    assert refused or ended


def test_a_log_is_complete(run: Perform) -> None:
    report = run(Trial(script="seq 200000"))
    assert report.log == "".join(f"{number}\n" for number in range(1, 200_001))


def test_the_words_of_both_streams_are_logged_and_nothing_is_read(run: Perform) -> None:
    report = run(Trial(script="echo out; echo err >&2; cat"))
    assert sorted(report.log.splitlines()) == ["err", "out"]


def test_a_missing_program_is_told_by_its_exit_code(run: Perform) -> None:
    report = run(Trial(script="exec /bin/nothing"))
    assert report.outcome == Outcome(kind="exited", exit_code=127, detail="the program was not found")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_mount_below_a_read_only_mount_is_read_only(run: Perform, shared_folder: Path) -> None:
    data = shared_folder / "above"
    below = data / "below"
    below.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"tmpfs", os.fsencode(below), b"tmpfs", 0, b"mode=777") == 0
    try:
        report = run(Trial(script="echo x > /data/below/probe", mounts=(Mount(source=data, target="/data"),)))
        assert report.outcome.kind == "exited"
        assert report.outcome.exit_code == 1
        assert list(below.iterdir()) == []
    finally:
        libc.umount2(os.fsencode(below), 2)
