import fcntl
import io
import os
import pty
import struct
import termios
from contextlib import suppress

import pytest

from runner.outputs import Event
from runner.progress import Progress


class Clock:
    """A clock that a test winds: what is shown of time must not depend on this machine's speed."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def step(number: int, steps: int = 100, loss: object = 2.5) -> Event:
    return {"kind": "step", "step": number, "steps": steps, "loss": loss, "samples_per_s": 512.25}


def plain(events: list[Event]) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    for event in events:
        clock.now_s += 2.0
        progress.event(event)
    progress.close()
    return stream.getvalue().splitlines()


def test_a_self_test_that_was_left_out_is_told() -> None:
    assert plain([{"kind": "self-test-left-out", "ranks": 16, "gpus": 8}]) == [
        "self-test left out: its 16 ranks need as many GPUs on one node, here are 8"
    ]


def test_a_pipe_gets_plain_lines_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    lines = plain(
        [{"kind": "start", "device": "cpu", "threads": 2, "parameters": 23_520_842}, *map(step, range(1, 101))]
    )
    assert lines[0] == "started: cpu, 2 threads, 23,520,842 parameters"
    assert lines[1] == "step 1/100  loss 2.5  512.2 samples/s"
    assert lines[2] == "step 10/100  loss 2.5  512.2 samples/s  ETA 3:00"
    assert [line.split()[1] for line in lines[2:]] == [f"{tenth}0/100" for tenth in range(1, 11)]
    assert lines[-1] == "step 100/100  loss 2.5  512.2 samples/s  ETA 0:00"
    assert capsys.readouterr().out == ""


def test_a_self_test_says_what_it_computes_and_that_it_passed() -> None:
    running = [{"kind": "self-test-run", "steps": 3, "ranks": ranks} for ranks in (2, 1)]
    assert plain([*running, {"kind": "self-test", "steps": 3, "ranks": [2, 2, 1]}]) == [
        "self-test: 3 steps on 2 ranks",
        "self-test: 3 steps on 1 rank",
        "self-test passed: 3 steps gave the same bits 3 times on 2 and 1 ranks",
    ]


def test_evaluations_and_the_end_are_lines_of_their_own() -> None:
    metrics = {"accuracy": 0.81234567, "loss": None, "samples": 10_000}
    assert plain([{"kind": "eval", "step": 3, "metrics": metrics}, {"kind": "end"}]) == [
        "eval at step 3: accuracy 0.8123, loss nan, samples 10000",
        "end after 0:04",
    ]


def test_a_loss_that_is_no_number_is_said_so() -> None:
    assert plain([step(1, loss=None)]) == ["step 1/100  loss nan  512.2 samples/s"]


def test_nothing_that_a_container_writes_drives_the_terminal_or_ends_the_run() -> None:
    hostile: list[Event] = [
        {"kind": "start", "device": "\x1b]0;owned\x07", "threads": True, "parameters": 10**400},
        {"kind": "step"},
        {"kind": "step", "step": 1, "steps": 0},
        {"kind": "step", "step": "1", "steps": []},
        {"kind": "step", "step": 1, "steps": 1, "loss": "\u202e" * 100, "samples_per_s": {}},
        {"kind": "eval", "step": "\n", "metrics": {"a\x9bb" * 1000: "\r"}},
        {"kind": "eval", "metrics": []},
        {"kind": "unheard of"},
    ]
    lines = plain(hostile)
    assert lines[0] == r"started: \x1b]0;owned\x07"
    assert lines[1] == "step 1/1  loss " + r"\u202e" * 39 + "…"
    assert len(lines) == 3
    assert len(lines[2]) == 500
    assert all(line.isprintable() for line in lines)


def on_terminal(columns: int, events: list[Event]) -> str:
    """Return what a real terminal of a width is sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(leader, "rb", buffering=0) as screen:
        with os.fdopen(follower, "w", encoding="utf-8") as stream:
            progress = Progress(stream, clock=Clock())
            for event in events:
                progress.event(event)
            progress.say("xrun speaks")
            progress.close()
        sent = b""
        with suppress(OSError):  # how a terminal says that its other end is closed
            while data := screen.read(65_536):
                sent += data
        return sent.decode().replace("\r\n", "\n")


def test_a_terminal_gets_one_line_that_is_written_over() -> None:
    erase = "\r\x1b[K"
    assert on_terminal(80, [step(1), step(2), {"kind": "end"}]) == (
        f"{erase}step 1/100  loss 2.5  512.2 samples/s"
        f"{erase}step 2/100  loss 2.5  512.2 samples/s  ETA 0:00"
        f"{erase}end after 0:00\nstep 2/100  loss 2.5  512.2 samples/s  ETA 0:00"
        f"{erase}xrun speaks\nstep 2/100  loss 2.5  512.2 samples/s  ETA 0:00"
        "\n"
    )


def test_the_live_line_never_wraps() -> None:
    assert "\r\x1b[Kstep 1/100  loss 2.…\r" in on_terminal(21, [step(1)])


def test_a_terminal_that_is_gone_does_not_end_the_run() -> None:
    leader, follower = pty.openpty()
    stream = os.fdopen(follower, "w", encoding="utf-8")
    progress = Progress(stream)
    os.close(leader)
    progress.event(step(1))
    progress.say("to nobody")
    progress.close()
    with pytest.raises(OSError, match="Input/output error"):
        stream.close()
