"""How a sweep gets on: a live table on a terminal, a line at each trial's start and end anywhere else."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from runner.console import columns, show
from runner.outputs import Event
from runner.record import Record
from runner.terminal import clipped, duration, number_of, printable, shown

_DRAW_EVERY_S = 0.25
_LINE_CAP = 500
_HEAD = ("TRIAL", "SLOT", "STEP", "METRIC", "ETA", "WORDS")


@dataclass(slots=True, kw_only=True)
class _Row:
    """A trial that runs."""

    words: str
    slot: str
    began_s: float
    step: float = 0.0
    steps: float = math.nan
    metric: str = ""
    is_evaluated: bool = False
    first: tuple[float, float] | None = None


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What has come of the trials so far."""

    total: int
    ended: int = 0
    failed: int = 0
    best: tuple[float, ...] | None = None
    leader: str = ""
    rows: dict[int, _Row] = field(default_factory=dict)


class SweepTable:
    """Shows a sweep's trials. Called from the threads of several trials."""

    def __init__(
        self,
        stream: TextIO,
        total: int,
        metrics: Sequence[str],
        directions: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._metrics = tuple(metrics)
        self._signs = [-1.0 if way == "maximize" else 1.0 for way in directions]
        self._clock = clock
        self._lock = threading.Lock()
        self._tally = _Tally(total=total)
        self._is_live = stream.isatty()
        self._drawn = 0
        self._drawn_s = -math.inf
        self._waiting = ""

    def start(self, number: int, words: Sequence[str], slot: str, run_id: str) -> None:
        """Show that a trial has begun."""
        text = " ".join(words)
        with self._lock:
            self._tally.rows[number] = _Row(words=text, slot=slot, began_s=self._clock())
            self._waiting = ""
        self.say(f"trial {number}  {text}  on {slot}: {run_id}" if text else f"trial {number}  on {slot}: {run_id}")

    def event(self, number: int, event: Event) -> None:
        """Take in an event of a trial."""
        with self._lock:
            if (row := self._tally.rows.get(number)) is None:
                return
            step, steps = number_of(event.get("step")), number_of(event.get("steps"))
            if event["kind"] == "step" and step is not None and steps:
                row.step, row.steps = step, steps
                row.first = row.first or (step, self._clock())
                row.metric = row.metric if row.is_evaluated else f"loss {shown(event.get('loss'))}"
            elif event["kind"] == "eval" and isinstance(event.get("metrics"), dict):
                found = [name for name in self._metrics if name in event["metrics"]]
                row.is_evaluated = row.is_evaluated or bool(found)
                row.metric = ", ".join(f"{name} {shown(event['metrics'][name])}" for name in found) or row.metric

    def end(self, number: int, record: Record, values: tuple[float, ...] | None) -> None:
        """Show how a trial ended, and what is the best so far."""
        with self._lock:
            self._tally.rows.pop(number, None)
            self._tally.ended += 1
            self._tally.failed += record.status not in {"done", "pruned"}
            self._judge(number, values)
            leader = self._tally.leader
        said = ", ".join(f"{name} {value:.6g}" for name, value in zip(self._metrics, values or (), strict=False))
        said = said or record.message
        self.say(f"trial {number}  {record.status} in {duration(record.duration_s)}  {said}{leader}")

    def skip(self, number: int, run_id: str, values: tuple[float, ...] | None) -> None:
        """Show a trial that need not run."""
        with self._lock:
            self._tally.ended += 1
            self._judge(number, values)
        self.say(f"trial {number}  skipped: {run_id} is done")

    def _judge(self, number: int, values: tuple[float, ...] | None) -> None:
        if values is None or len(self._metrics) != 1:
            return
        costs = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
        if self._tally.best is None or costs < self._tally.best:
            self._tally.best = costs
            self._tally.leader = f"  (best so far: trial {number}, {self._metrics[0]} {values[0]:.6g})"

    def wait(self, why: str) -> bool:
        """Show why no further trial starts at the moment. Always true: to go on waiting."""
        if why and why != self._waiting and not self._tally.rows:
            self.say(f"waiting: {why}")
        self._waiting = why
        self.look()
        return True

    def say(self, line: str) -> None:
        """Print a line above the table."""
        with self._lock:
            show(self._stream, self._erased() + clipped(printable(line), _LINE_CAP) + "\n" + self._table())

    def look(self) -> None:
        """Draw the table anew, a few times a second at most."""
        if self._is_live and self._clock() - self._drawn_s > _DRAW_EVERY_S:
            with self._lock:
                show(self._stream, self._erased() + self._table())

    def close(self) -> None:
        """Take the table away."""
        with self._lock:
            show(self._stream, self._erased())
            self._is_live = False

    def _erased(self) -> str:
        if not self._is_live or not self._drawn:
            return ""
        return f"\x1b[{self._drawn}A\x1b[J"

    def _table(self) -> str:
        if not self._is_live:
            return ""
        tally, width = self._tally, columns(self._stream)
        rows = [_HEAD, *(self._cells(number, row) for number, row in sorted(tally.rows.items()))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        failed = f", {tally.failed} failed" if tally.failed else ""
        lines.append(f"{tally.ended}/{tally.total} trials ended{failed}{tally.leader}")
        self._drawn, self._drawn_s = len(lines), self._clock()
        return "".join(clipped(printable(line), width - 1) + "\n" for line in lines)

    def _cells(self, number: int, row: _Row) -> tuple[str, ...]:
        steps = "" if math.isnan(row.steps) else f"{row.step:.0f}/{row.steps:.0f}"
        left = ""
        if row.first is not None and row.step > row.first[0]:
            rate = (self._clock() - row.first[1]) / (row.step - row.first[0])
            left = duration(rate * max(row.steps - row.step, 0.0))
        return (str(number), row.slot, steps, row.metric, left, row.words)
