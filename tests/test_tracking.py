import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from sample_runs import make_record, make_spec, make_started

from runner.config import Tracking
from runner.record import Record, Tracked
from runner.run_folder import RunFolder
from runner.store import RunStore
from runner.tracked import subject_of
from runner.tracking import Tracker

KEY = "0123456789abcdef0123456789abcdef01234567"
STEPS = 40
LOSSES = [0.1 * step if step % 7 else math.nan for step in range(1, STEPS + 1)]
ACCURACY = 1 / 3


class Watched:
    """A run that is tracked, and what was said of it."""

    def __init__(self, root: Path, mode: Literal["auto", "online", "offline", "off"], **environment: str) -> None:
        self.runs = RunStore(root / "runs")
        self.started = make_started()
        self.folder = self.runs.start(make_spec(), self.started)
        self.said: list[str] = []
        tracking = Tracking(wandb=mode, project="xrun", entity=None, tags=("first",), group="pair", log_every_steps=1)
        passed = {"PATH": os.environ["PATH"], "HOME": str(root), **environment}
        self.tracker = Tracker(tracking, subject_of(make_spec(), self.started), passed, self.said.append)
        self.tracker._finish_s = 60.0
        self.tracker.begin(self.folder, os.getpid())

    @property
    def child(self) -> int:
        assert self.tracker._child is not None
        return self.tracker._child.pid

    def train(self) -> None:
        with (self.folder.out / "events.jsonl").open("a", encoding="ascii", buffering=1) as events:
            for step, loss in enumerate(LOSSES, 1):
                known = loss if math.isfinite(loss) else None
                events.write(json.dumps({"kind": "step", "step": step, "steps": STEPS, "loss": known}) + "\n")
                self.tracker.look()
            metrics = {"accuracy": ACCURACY, "bad\x1bname": 1, "text": "no number", "huge": 10**400}
            events.write(json.dumps({"kind": "eval", "step": STEPS, "metrics": metrics}) + "\nnoise\n")

    def end(self) -> Record:
        record = self.tracker.end(make_record(self.folder.id, self.started))
        self.runs.finish(self.folder, record)
        return record

    @property
    def tracked(self) -> Tracked:
        tracked = self.runs.load(self.folder).wandb
        assert tracked is not None
        return tracked


def inspected(folder: RunFolder, tracked: Tracked) -> list[dict[str, Any]]:
    """Read an offline run with wandb's own reader."""
    assert tracked.path is not None
    (file,) = (folder.path / tracked.path).glob("*.wandb")
    argv = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(argv, capture_output=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    watched = Watched(tmp_path_factory.mktemp("offline"), "auto")
    watched.train()
    watched.end()
    return watched


def kinds(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def test_an_offline_run_holds_every_logged_value_exactly(offline: Watched) -> None:
    history = [item["item"] for item in kinds(inspected(offline.folder, offline.tracked), "history")]
    assert [item["_step"] for item in history] == list(range(1, STEPS + 1))
    assert [item["train/loss"] for item in history] == [loss if math.isfinite(loss) else "NaN" for loss in LOSSES]
    assert {name: value for name, value in history[-1].items() if name.startswith("eval/")} == {
        "eval/accuracy": ACCURACY,
        r"eval/bad\x1bname": 1,
        "eval/huge": "Infinity",
    }


def test_an_offline_run_says_what_was_run_and_how_it_ended(offline: Watched) -> None:
    records = inspected(offline.folder, offline.tracked)
    (run,) = kinds(records, "run")
    assert run["config"]["update"] == {
        "_wandb": {},
        "seed": 0,
        "xrun": {
            "engine": "embedded",
            "hardware": {
                "arch_level": "x86-64-v3",
                "device": "cpu",
                "driver_min": None,
                "gpu_count": 0,
                "gpu_memory_gib": None,
                "gpu_model": None,
                "threads": 2,
            },
            "image_digest": offline.started.image_digest,
            "level": "repeat",
            "lock_digest": None,
            "ranks": 1,
            "replay_of": None,
            "run": offline.folder.id,
            "source": offline.started.source,
            "spec_digest": offline.started.spec_digest,
            "sweep": None,
            "trial": None,
        },
    }
    known = ("display_name", "job_type", "project", "run_group", "tags", "run_id")
    assert {key: run[key] for key in known} == {
        "display_name": offline.folder.id,
        "job_type": "train",
        "project": "xrun",
        "run_group": "pair",
        "tags": ["first"],
        "run_id": offline.tracked.id,
    }
    summary: dict[str, Any] = {}
    for update in kinds(records, "summary"):
        summary |= update["update"]
    ending = {"status": "done", "exit_code": 0, "fingerprint": make_record("", offline.started).fingerprint}
    assert ending | {"final/accuracy": 0.1, "final/loss": "nan"} == {
        key: value for key, value in summary.items() if key in ending or key.startswith("final/")
    }
    assert [end["exit_code"] for end in kinds(records, "exit")] == [0]


def test_the_load_of_the_container_is_logged(offline: Watched) -> None:
    stats = kinds(inspected(offline.folder, offline.tracked), "stats")
    assert all("proc.memory.rssMB" in sample["item"] for sample in stats)
    assert stats


def test_nothing_is_said_of_a_run_that_is_tracked_well(offline: Watched) -> None:
    assert offline.said == []
    assert offline.tracked.message == ""
    assert (offline.tracked.mode, offline.tracked.url) == ("offline", None)


def test_this_machine_and_its_user_are_not_in_the_run(offline: Watched) -> None:
    assert offline.tracked.path is not None
    (file,) = (offline.folder.path / offline.tracked.path).glob("*.wandb")
    data = file.read_bytes()
    for fact in (sys.executable, str(Path(__file__).parents[1]), str(offline.folder.path)):
        assert fact.encode() not in data
    # With its length before it, as in any protobuf: two or three letters alone are found in random bytes.
    host = socket.gethostname().encode()
    assert bytes([len(host)]) + host not in data


def test_tracking_that_is_off_leaves_nothing(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "off", WANDB_API_KEY=KEY)
    watched.train()
    assert watched.end().wandb == Tracked(mode="off")
    assert not watched.folder.wandb.exists()
    assert watched.said == []


def test_online_without_a_key_is_logged_offline_and_said_so(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "online")
    watched.end()
    said = "tracking.wandb=online, but no key is set (WANDB_API_KEY or `wandb login`); logged offline"
    assert watched.said == [f"wandb: {said}; the run is not affected"]
    assert (watched.tracked.mode, watched.tracked.message) == ("offline", said)


def test_a_server_that_cannot_be_had_costs_no_value_and_no_secret(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]  # bound, but nobody listens
        watched = Watched(tmp_path, "auto", WANDB_API_KEY=KEY, WANDB_BASE_URL=f"http://127.0.0.1:{port}")
        argv = Path(f"/proc/{watched.child}/cmdline").read_bytes()
        watched.train()
        watched.end()
    assert watched.tracked.mode == "offline"
    assert len(watched.said) == 1
    assert watched.said[0].startswith("wandb: cannot go online, logged offline: CommError: ")
    history = kinds(inspected(watched.folder, watched.tracked), "history")
    assert len(history) == STEPS
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in argv + written + watched.said[0].encode()


def test_a_key_from_where_wandb_login_keeps_it_counts(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n", encoding="ascii")
    watched = Watched(tmp_path, "auto")
    assert watched.tracker._tracked.mode == "online"
    assert f"WANDB_API_KEY={KEY}".encode() in Path(f"/proc/{watched.child}/environ").read_bytes().split(b"\0")
    watched.tracker._finish_s = 0.0
    watched.end()


def test_nothing_else_of_the_users_environment_reaches_the_child(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "offline", WANDB_API_KEY=KEY, AWS_SECRET_ACCESS_KEY="canary")
    environment = Path(f"/proc/{watched.child}/environ").read_bytes()
    assert KEY.encode() not in environment
    assert b"canary" not in environment
    watched.tracker._finish_s = 0.0
    watched.end()


def given_up(watched: Watched) -> None:
    os.kill(watched.child, signal.SIGSTOP)
    watched.tracker._finish_s = 0.5


def killed(watched: Watched) -> None:
    os.kill(watched.child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (given_up, "not done 0 s after the run and given up"),
        (killed, "ended early; the reason is in wandb/stderr.txt of the run"),
    ],
)
def test_a_logger_that_hangs_or_dies_is_one_line_and_the_run_goes_on(
    tmp_path: Path, harm: Callable[[Watched], None], message: str
) -> None:
    watched = Watched(tmp_path, "offline")
    harm(watched)
    watched.train()
    record = watched.end()
    assert record.status == "done"
    assert watched.said == [f"wandb: {message}; the run is not affected"]
    assert watched.tracked.message == message
    assert not Path(f"/proc/{watched.child}").exists()


def test_ctrl_c_while_the_logger_finishes_keeps_the_run_that_is_done(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "offline")
    os.kill(watched.child, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert watched.end().status == "done"
    assert watched.said == ["wandb: not waited for any longer; the run is not affected"]
    assert not Path(f"/proc/{watched.child}").exists()


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("not within a minute")


def test_a_logger_ends_by_itself_when_xrun_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_tracking as t;"
        "watched = t.Watched(Path(sys.argv[2]), 'offline'); watched.train();"
        "print(watched.child, watched.folder.id, flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as xrun:
        assert xrun.stdout is not None
        child, run_id = xrun.stdout.readline().split()
        folder = RunFolder(path=tmp_path / "runs" / run_id)
        until(lambda: bool(list(folder.wandb.glob("offline-run-*/*.wandb"))))
        xrun.kill()
    argv_of_child = Path(f"/proc/{child}/cmdline")
    until(lambda: not argv_of_child.exists() or not argv_of_child.read_bytes())
    (path,) = folder.wandb.glob("offline-run-*")
    records = inspected(folder, Tracked(mode="offline", path=f"wandb/{path.name}"))
    assert len(kinds(records, "history")) == STEPS
    assert [end["exit_code"] for end in kinds(records, "exit")] == [1]
