import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_runs import DIGEST, finished, make_record, make_spec, make_started

from runner.errors import StoreError
from runner.listing import follow_log, list_runs, show_run
from runner.run_folder import RunFolder
from runner.store import RunStore


def failed(runs: RunStore, message: str) -> RunFolder:
    started = make_started(seed=1, seconds=120.0)
    folder = runs.start(make_spec(seed=1), started)
    record = replace(make_record(folder.id, started), status="failed", exit_code=1, message=message, fingerprint=None)
    runs.finish(folder, record)
    return folder


def test_the_table_shows_the_newest_run_first(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    done = finished(runs)
    lost = failed(runs, "rank 1: ZeroDivisionError: \x1b[31mdivision by zero")
    held = runs.start(make_spec(seed=2), make_started(seed=2, seconds=240.0))
    assert list_runs(runs, as_json=False) == (
        "RUN                  STATUS   STARTED (UTC)     TIME    ENGINE    FINGERPRINT   METRICS\n"
        f"{held.id}  running  1970-01-01 00:04          embedded\n"
        f"{lost.id}  failed   1970-01-01 00:02  60.0 s  embedded                "
        r"rank 1: ZeroDivisionError: \x1b[31mdivision by zero"
        "\n"
        f"{done.id}  done     1970-01-01 00:00  60.0 s  embedded  000000000000  accuracy 0.1, loss nan\n"
    )


def test_the_table_of_many_runs_ends_with_how_many_are_older(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    ids = [finished(runs, seconds=float(second)).id for second in range(53)]
    lines = list_runs(runs, as_json=False).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ids[:2:-1]
    assert lines[-1] == "and 3 older: xrun ls --json lists all"
    assert len(json.loads(list_runs(runs, as_json=True))) == 53


def test_no_runs_are_said_so(tmp_path: Path) -> None:
    assert list_runs(RunStore(tmp_path / "runs"), as_json=False) == "no runs yet\n"
    assert list_runs(RunStore(tmp_path / "runs"), as_json=True) == "[]\n"


def test_a_script_finds_the_same_keys_whatever_became_of_a_run(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    finished(runs, seconds=60.0)
    failed(runs, "out of luck")
    runs.start(make_spec(seed=2), make_started(seed=2, seconds=240.0))
    damaged = finished(runs, seed=3)
    damaged.record.chmod(0o644)
    damaged.record.write_bytes(b"{")
    keys = ("status", "fingerprint", "exit_code", "engine", "metrics")
    rows = [tuple(run[key] for key in keys) for run in json.loads(list_runs(runs, as_json=True))]
    assert rows == [
        ("running", None, None, "embedded", {}),
        ("failed", None, 1, "embedded", {"accuracy": 0.1, "loss": "nan"}),
        ("done", DIGEST, 0, "embedded", {"accuracy": 0.1, "loss": "nan"}),
        ("damaged", None, None, None, {}),
    ]


def test_show_gives_the_whole_record_to_a_script(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = finished(runs)
    shown = json.loads(show_run(runs, "last", as_json=True))
    stored = json.loads(folder.record.read_bytes())
    del stored["digest"]
    assert shown == stored


def test_show_tells_people_how_it_ended_first(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = finished(runs)
    lines = show_run(runs, folder.id[:12], as_json=False).splitlines()
    assert [line.split()[:2] for line in lines[:6]] == [
        ["id", folder.id],
        ["status", "done"],
        ["exit_code", "0"],
        ["fingerprint", DIGEST],
        ["metrics.accuracy", "0.1"],
        ["metrics.loss", "nan"],
    ]
    assert f"files.out/weights.bin  4 bytes {DIGEST}" in lines
    assert lines[-1].split() == ["folder", str(folder.path)]


def test_show_of_a_running_run_shows_what_is_known(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    runs.start(make_spec(), make_started())
    shown = json.loads(show_run(runs, "last", as_json=True))
    assert (shown["status"], shown["exit_code"], shown["overrides"]) == ("running", None, ["seed=0"])


def test_show_of_a_damaged_run_says_what_is_damaged(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = finished(runs)
    folder.record.chmod(0o644)
    folder.record.write_bytes(b"[]")
    with pytest.raises(StoreError) as caught:
        show_run(runs, folder.id, as_json=False)
    assert str(caught.value) == f"{folder.record} has been edited: it is not the text that xrun writes"


def test_a_log_is_printed_without_what_would_drive_the_terminal(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = runs.start(make_spec(), make_started())
    folder.log.write_bytes("epoch\t1\r\n10 %\r20 %\n\x1b[2Jgröße\n".encode() + b"\xff half")
    written: list[str] = []
    follow_log(runs, "last", follow=False, write=written.append)
    assert "".join(written) == "epoch\t1\n10 %\n20 %\n\\x1b[2Jgröße\n\N{REPLACEMENT CHARACTER} half"


def test_a_run_that_has_printed_nothing_has_an_empty_log(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    finished(runs)
    written: list[str] = []
    follow_log(runs, "last", follow=True, write=written.append)
    assert "".join(written) == ""


def test_a_followed_log_is_whole_when_the_run_has_ended(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    started = make_started()
    folder = runs.start(make_spec(), started)
    program = (
        "import sys; from pathlib import Path;"
        "from runner.listing import follow_log; from runner.store import RunStore;"
        "print('following', flush=True);"
        "follow_log(RunStore(Path(sys.argv[1])), 'last', follow=True, write=sys.stdout.write)"
    )
    argv = [sys.executable, "-c", program, str(runs.root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower, folder.log.open("w") as log:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "following\n"
        for line in range(1000):
            log.write(f"step {line}\n")
            log.flush()
        runs.finish(folder, make_record(folder.id, started))
        printed = follower.stdout.read()
    assert printed == "".join(f"step {line}\n" for line in range(1000))


def test_listing_imports_nothing_heavy() -> None:
    program = "import sys; import runner.listing; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded).isdisjoint({"torch", "wandb", "hydra", "omegaconf", "docker", "filelock"})
