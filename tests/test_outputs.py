import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner import hostile
from runner.errors import RunFailed
from runner.outputs import Completion, EventReader, collect, fact_of, failure, failure_text
from runner.record import FileFact

NONCE = "00ff"
NO_MANIFEST = "out/done.json is no completion manifest"
DIGEST = "sha256:" + "0" * 64


def fact(content: bytes) -> FileFact:
    return FileFact(size=len(content), digest="sha256:" + hashlib.sha256(content).hexdigest())


def stated(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    return {name: {"size": fact(content).size, "digest": fact(content).digest} for name, content in files.items()}


WEIGHTS = {"weights.bin": b"weights"}


def complete(out: Path, files: dict[str, bytes], changes: dict[str, object] | None = None) -> bytes:
    """Write outputs and the manifest of them, as a run does; `changes` are laid over the manifest."""
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    manifest = {
        "nonce": NONCE,
        "fingerprint": DIGEST,
        "weights": None,
        "steps": 3,
        "metrics": {"accuracy": 0.5},
        "files": stated(files),
    }
    data = json.dumps(manifest | (changes or {})).encode()
    out.mkdir(exist_ok=True)
    (out / "done.json").write_bytes(data)
    return data


def test_a_complete_run_is_collected_with_every_file(tmp_path: Path) -> None:
    done = complete(tmp_path, {"weights.bin": b"weights", "checkpoints/step-3/model.pt": b""})
    assert collect(tmp_path, NONCE) == Completion(
        fingerprint=DIGEST,
        weights=None,
        steps=3,
        metrics={"accuracy": 0.5},
        files={
            "out/checkpoints/step-3/model.pt": fact(b""),
            "out/weights.bin": fact(b"weights"),
            "out/done.json": fact(done),
        },
    )


def test_only_the_numbers_of_the_metrics_are_kept(tmp_path: Path) -> None:
    metrics = {"loss": float("nan"), "big": 10**400, "count": 3, "name": "x", "ok": True, "none": None, "all": [1]}
    complete(tmp_path, WEIGHTS, {"metrics": metrics})
    assert collect(tmp_path, NONCE).metrics == {"big": "inf", "count": 3.0, "loss": "nan"}


def test_exit_without_a_manifest_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(RunFailed) as caught:
        collect(tmp_path, NONCE)
    assert str(caught.value) == "the container ended without out/done.json: the run is not complete"


def plant(path: Path, thing: str, target: Path) -> None:
    match thing:
        case "link":
            path.symlink_to(target)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case "second name":
            path.hardlink_to(target)
        case "sparse":
            with path.open("wb") as file:
                file.truncate(4 << 40)
        case "deep":
            subprocess.run(
                ["/bin/sh", "-c", "for i in $(seq 200); do mkdir d && cd d || exit; done"], cwd=path.parent, check=True
            )
        case _:
            path.with_name("a\x1b]0;owned\x07").touch()


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        ("link", "out/planted is a symbolic link; outputs are plain files"),
        ("fifo", "out/planted is a FIFO; outputs are plain files"),
        ("socket", "out/planted is a socket; outputs are plain files"),
        ("second name", "out/planted has 2 names; an output has one"),
        ("sparse", "out/planted: out/ holds more than 274,877,906,944 bytes"),
        ("deep", "out/" + "/".join("d" * 17) + " lies deeper than 16 folders"),
        ("name", r"out/a\x1b]0;owned\x07: a name may hold letters, digits, '.', '_' and '-' only"),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_hostile_output_is_refused_with_a_reason(tmp_path: Path, thing: str, reason: str, *, listed: bool) -> None:
    hosts = tmp_path / "shadow"
    hosts.write_bytes(b"secret")
    out = tmp_path / "out"
    complete(out, {})
    if listed:
        complete(out, {}, {"files": stated({"planted": b"secret"})})
    plant(out / "planted", thing, hosts)
    with pytest.raises(RunFailed) as caught:
        collect(out, NONCE)
    assert str(caught.value) == reason


def test_a_manifest_that_is_a_link_or_a_fifo_is_refused(tmp_path: Path) -> None:
    complete(tmp_path / "elsewhere", WEIGHTS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "done.json").symlink_to(tmp_path / "elsewhere" / "done.json")
    with pytest.raises(RunFailed) as caught:
        collect(tmp_path / "out", NONCE)
    assert str(caught.value) == "out/done.json is a symbolic link; outputs are plain files"


def test_more_names_than_any_run_needs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "FILES_CAP", 3)  # ten thousand files would take seconds to make
    complete(tmp_path, dict.fromkeys("abcd", b""))
    with pytest.raises(RunFailed) as caught:
        collect(tmp_path, NONCE)
    assert str(caught.value) == "out/ holds more than 3 names"


def cut(content: bytes) -> bytes:
    return content[:-1]


def flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_file_that_is_not_what_the_manifest_states_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    complete(tmp_path, WEIGHTS)
    damaged = damage(b"weights")
    (tmp_path / "weights.bin").write_bytes(damaged)
    with pytest.raises(RunFailed) as caught:
        collect(tmp_path, NONCE)
    assert str(caught.value) == (
        f"out/weights.bin is not what done.json states: {len(damaged)} bytes, {fact(damaged).digest}; "
        f"stated 7 bytes, {fact(b'weights').digest}"
    )


def test_a_file_that_is_missing_or_not_listed_is_named(tmp_path: Path) -> None:
    complete(tmp_path, {"a": b""}, {"files": {}})
    with pytest.raises(RunFailed) as caught:
        collect(tmp_path, NONCE)
    assert str(caught.value) == "out/a was written but is not in done.json"
    complete(tmp_path, {"a": b""}, {"files": stated({"a": b"", "../b\x1b": b""})})
    with pytest.raises(RunFailed) as caught:
        collect(tmp_path, NONCE)
    assert str(caught.value) == r"out/../b\x1b is in done.json but was not written"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nonce": "other"}, "out/done.json is not this run's: it carries another nonce"),
        ({"fingerprint": "x\x1b"}, rf"{NO_MANIFEST}: fingerprint is x\x1b, not a digest"),
        ({"weights": "latest"}, f"{NO_MANIFEST}: weights is latest, not a digest"),
        (
            {"steps": "3", "weight": 1},
            f"{NO_MANIFEST}: weight: unknown key; did you mean weights?; steps: expected int, found str '3'",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused_with_a_reason(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    complete(tmp_path, WEIGHTS, changes)
    with pytest.raises(RunFailed) as caught:
        collect(tmp_path, NONCE)
    assert str(caught.value) == reason


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"1" * 5000, b"null"])
def test_bytes_that_are_no_manifest_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "done.json").write_bytes(data)
    with pytest.raises(RunFailed, match=f"^{NO_MANIFEST}: "):
        collect(tmp_path, NONCE)


def test_a_manifest_larger_than_any_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "done.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunFailed) as caught:
        collect(tmp_path, NONCE)
    assert str(caught.value) == "out/done.json has 1,099,511,627,776 bytes, more than the 16,777,216 of any manifest"


def test_the_fact_of_a_file_is_its_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"lines\n")
    assert fact_of(tmp_path / "log.txt") == fact(b"lines\n")


def write_error(out: Path, rank: int, text: str, age_s: float = 0.0) -> None:
    path = out / "errors" / f"rank{rank}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    written_s = time.time() - age_s
    os.utime(path, (written_s, written_s))


TRACEBACK = """Traceback (most recent call last):
  File "/xrun/source/experiments/resnet50.py", line 7, in loss
    return 1 / 0
ZeroDivisionError: division \x1b by zero
"""


def test_the_rank_that_failed_first_says_why(tmp_path: Path) -> None:
    write_error(tmp_path, 0, "Timeout (0:00:05)!\n", age_s=1.0)
    write_error(tmp_path, 1, TRACEBACK, age_s=3.0)
    write_error(tmp_path, 2, "", age_s=9.0)
    assert failure(tmp_path) == r"rank 1: ZeroDivisionError: division \x1b by zero"
    assert failure_text(tmp_path) == TRACEBACK.replace("\x1b", r"\x1b")


def test_a_refusal_is_said_in_its_own_words(tmp_path: Path) -> None:
    write_error(tmp_path, 0, "error: the loss is nan at step 3\n\nhint: optim.lr=0.01\n")
    assert failure(tmp_path) == "rank 0: the loss is nan at step 3"


def test_a_hung_rank_is_said_with_its_place(tmp_path: Path) -> None:
    stack = 'Timeout (0:00:05)!\nThread 0x7f (most recent call first):\n  File "a.py", line 3 in wait\n  File "b.py"\n'
    write_error(tmp_path, 1, stack)
    assert failure(tmp_path) == 'rank 1: hung, at File "a.py", line 3 in wait'


def test_no_error_is_no_reason(tmp_path: Path) -> None:
    assert failure(tmp_path) is None
    (tmp_path / "errors").symlink_to("/etc")
    assert failure_text(tmp_path) is None


def test_an_endless_error_is_read_in_part(tmp_path: Path) -> None:
    write_error(tmp_path, 0, "x" * 1_000_000)
    assert failure_text(tmp_path) == "x" * 65_536


def append(out: Path, data: bytes) -> None:
    with (out / "events.jsonl").open("ab") as file:
        file.write(data)


def test_events_are_read_as_their_lines_become_whole(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert list(reader.read()) == []
    append(tmp_path, b'{"kind":"start"}\n{"kind":"st')
    assert list(reader.read()) == [{"kind": "start"}]
    append(tmp_path, b'ep","step":1}\n')
    assert list(reader.read()) == [{"kind": "step", "step": 1}]
    assert list(reader.read()) == []
    assert reader.skipped == 0


def test_lines_that_are_no_event_are_skipped_and_counted(tmp_path: Path) -> None:
    lines = [
        b"",
        b"{",
        b"[1]",
        b'{"kind":1}',
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"kind":"step","x":"' + b"x" * 70_000 + b'"}',
    ]
    append(tmp_path, b"\n".join([*lines, b'{"kind":"end"}', b""]))
    reader = EventReader(tmp_path)
    assert list(reader.read()) == [{"kind": "end"}]
    assert reader.skipped == len(lines)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    for _ in range(8):
        append(tmp_path, b"x" * (1 << 20))
        assert list(reader.read()) == []
    append(tmp_path, b'\n{"kind":"end"}\n')
    assert [event for _ in range(2) for event in reader.read()] == [{"kind": "end"}]
    assert reader.skipped == 1
    assert len(reader._rest) == 0


def test_events_are_not_read_through_a_link_or_a_fifo(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b'{"kind":"secret"}\n')
    (tmp_path / "out").mkdir()
    events = tmp_path / "out" / "events.jsonl"
    events.symlink_to(tmp_path / "hosts")
    reader = EventReader(tmp_path / "out")
    assert list(reader.read()) == []
    events.unlink()
    os.mkfifo(events)
    assert list(reader.read()) == []
