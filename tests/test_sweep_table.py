import io
from dataclasses import replace

from sample_runs import make_record, make_started
from test_progress import Clock, step

from runner.sweep_table import SweepTable

RECORD = replace(make_record("tiny-00000000-1", make_started(0, 0.0)), duration_s=75.0)
ERASE_AT_MOST = 8


class Terminal(io.StringIO):
    """A terminal that understands what the table says of its cursor."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("no terminal has less")

    @property
    def lines(self) -> list[str]:
        """What is to be seen at the end."""
        seen = ""
        for part in self.getvalue().split("\x1b["):
            ups = next((n for n in range(1, ERASE_AT_MOST) if part == f"{n}A"), 0)
            if ups:
                seen = "".join(seen.splitlines(keepends=True)[:-ups])
            else:
                seen += part.removeprefix("J")
        return seen.splitlines()


def test_a_pipe_gets_a_line_at_each_start_and_each_end() -> None:
    stream = io.StringIO()
    table = SweepTable(stream, 3, ["loss"], ["minimize"], clock=Clock())
    table.start(0, ["optim.lr=0.1"], "cpu 0", "tiny-00000000-1")
    table.event(0, step(1))
    table.look()
    table.end(0, RECORD, (0.25,))
    table.skip(1, "tiny-00000001-1", (0.5,))
    table.end(2, replace(RECORD, status="failed", message="rank 0: no"), None)
    table.close()
    assert stream.getvalue().splitlines() == [
        "trial 0  optim.lr=0.1  on cpu 0: tiny-00000000-1",
        "trial 0  done in 1:15  loss 0.25  (best so far: trial 0, loss 0.25)",
        "trial 1  skipped: tiny-00000001-1 is done",
        "trial 2  failed in 1:15  rank 0: no  (best so far: trial 0, loss 0.25)",
    ]


def test_a_terminal_shows_each_running_trial_and_the_best_so_far() -> None:
    stream, clock = Terminal(), Clock()
    table = SweepTable(stream, 4, ["accuracy"], ["maximize"], clock=clock)
    table.start(0, ["optim.lr=0.1"], "cpu 0", "tiny-00000000-1")
    table.start(1, ["optim.lr=0.2"], "cpu 1", "tiny-00000001-1")
    for number in (1, 11):
        clock.now_s += 10.0
        table.event(0, step(number))
    table.event(1, {"kind": "eval", "step": 4, "metrics": {"accuracy": 0.5}})
    table.end(1, RECORD, (0.75,))
    clock.now_s += 1.0
    table.look()
    assert stream.lines == [
        "trial 0  optim.lr=0.1  on cpu 0: tiny-00000000-1",
        "trial 1  optim.lr=0.2  on cpu 1: tiny-00000001-1",
        "trial 1  done in 1:15  accuracy 0.75  (best so far: trial 1, accuracy 0.75)",
        "TRIAL  SLOT   STEP    METRIC    ETA   WORDS",
        "0      cpu 0  11/100  loss 2.5  1:38  optim.lr=0.1",
        "1/4 trials ended  (best so far: trial 1, accuracy 0.75)",
    ]
    table.close()
    assert stream.lines == [
        "trial 0  optim.lr=0.1  on cpu 0: tiny-00000000-1",
        "trial 1  optim.lr=0.2  on cpu 1: tiny-00000001-1",
        "trial 1  done in 1:15  accuracy 0.75  (best so far: trial 1, accuracy 0.75)",
    ]


def test_the_best_of_a_metric_that_is_to_grow_is_the_largest() -> None:
    stream = io.StringIO()
    table = SweepTable(stream, 2, ["accuracy"], ["maximize"], clock=Clock())
    table.end(0, RECORD, (0.75,))
    table.end(1, RECORD, (0.5,))
    assert stream.getvalue().splitlines()[-1].endswith("(best so far: trial 0, accuracy 0.75)")


def test_what_a_trial_waits_for_is_said_once_and_only_while_none_runs() -> None:
    stream = io.StringIO()
    table = SweepTable(stream, 2, ["loss"], ["minimize"], clock=Clock())
    assert all(table.wait("cpu slot 0 is held by x-1") for _ in range(3))
    table.start(0, [], "cpu 0", "tiny-00000000-1")
    table.wait("cpu slot 0 is held by tiny-00000000-1")
    assert stream.getvalue().splitlines() == [
        "waiting: cpu slot 0 is held by x-1",
        "trial 0  on cpu 0: tiny-00000000-1",
    ]


def test_what_a_container_wrote_cannot_move_the_cursor() -> None:
    stream = io.StringIO()
    table = SweepTable(stream, 1, ["loss"], ["minimize"], clock=Clock())
    table.end(0, replace(RECORD, status="failed", message="\x1b[2Jgone"), None)
    assert stream.getvalue() == "trial 0  failed in 1:15  \\x1b[2Jgone\n"
