"""Programs that fail, and folders that two want to write."""

import subprocess
import sys
from pathlib import Path

import pytest

from runner.errors import ImageError
from runner.images import disk

SH = ["sh", "-c"]


def test_what_a_failed_program_said_is_kept_short(tmp_path: Path) -> None:
    script = "for i in 1 2 3; do echo 'W: again' >&2; echo 'E: gone' >&2; done; exit 100"
    with pytest.raises(disk.ProgramFailed) as failed:
        disk.program([*SH, script], "apt-get", writes=tmp_path)
    assert failed.value.message == "apt-get: E: gone"


def test_a_program_that_met_a_full_disk_is_one_line(tmp_path: Path) -> None:
    script = "echo 'E: write (28: No space left on device)' >&2; exit 100"
    with pytest.raises(ImageError) as failed:
        disk.program([*SH, script], "apt-get", writes=tmp_path / "downloads", needed_bytes=1234)
    assert failed.value.message.startswith(
        f"apt-get: disk full while writing {tmp_path}/downloads: 1,234 bytes needed, "
    )
    assert failed.value.hint == disk.FREE_SPACE


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as failed:
        disk.program(["no-such-program"], "building", writes=tmp_path)
    assert failed.value.message == "building: this machine has no no-such-program"


def test_the_second_writer_waits_says_so_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from runner.images.disk import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        def end_the_holder(line: str) -> None:
            said.append(line)
            holder.kill()

        with disk.locked(tmp_path, end_the_holder):
            assert said == ["waiting for another xrun that writes images"]
