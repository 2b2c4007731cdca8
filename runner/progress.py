"""How a run gets on: one live line on a terminal, a few plain lines anywhere else."""

import math
import time
from collections.abc import Callable
from typing import TextIO

from runner.console import columns, show
from runner.outputs import Event
from runner.terminal import clipped, duration, number_of, printable, shown

_PLAIN_PARTS = 10
_LINE_CAP = 500
_RANKS_SHOWN = 8
_ERASE = "\r\x1b[K"


class Progress:
    """Shows one run's events. What a container wrote is shown in printable characters only."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._is_live = stream.isatty()
        self._began_s = clock()
        self._first: tuple[float, float] | None = None
        self._part = -1
        self._live_line = ""

    def event(self, event: Event) -> None:
        """Show one event."""
        match event["kind"]:
            case "self-test-run" | "self-test":
                self._print(_self_test(event))
            case "self-test-left-out":
                needed, here = shown(event.get("ranks")), shown(event.get("gpus"))
                self._print(f"self-test left out: its {needed} ranks need as many GPUs on one node, here are {here}")
            case "start":
                self._print(_start(event))
            case "resume":
                problem = f" ({event['message']})" if event.get("message") else ""
                self._print(f"going on after step {shown(event.get('step'))}{problem}")
            case "step":
                self._step(event)
            case "eval" if isinstance(event.get("metrics"), dict):
                metrics = ", ".join(f"{name} {shown(value)}" for name, value in event["metrics"].items())
                self._print(f"eval at step {shown(event.get('step'))}: {metrics}")
            case "end":
                self._print(f"end after {duration(self._clock() - self._began_s)}")

    def say(self, line: str) -> None:
        """Print a line of xrun's own; the live line makes room for it."""
        self._print(line)

    def close(self) -> None:
        """Leave the live line as it stands and go below it."""
        if self._live_line:
            show(self._stream, "\n")
            self._live_line = ""

    def _step(self, event: Event) -> None:
        step, steps = number_of(event.get("step")), number_of(event.get("steps"))
        if step is None or not steps:
            return
        line = f"step {step:.0f}/{steps:.0f}  loss {shown(event.get('loss'))}"
        if (rate := number_of(event.get("samples_per_s"))) is not None:
            line += f"  {rate:.1f} samples/s"
        if (left_s := self._left_s(step, steps)) is not None:
            line += f"  ETA {duration(left_s)}"
        part = math.floor(step * _PLAIN_PARTS / steps)
        if self._is_live:
            self._live_line = clipped(line, columns(self._stream) - 1)
            show(self._stream, _ERASE + self._live_line)
        elif part != self._part:
            self._print(line)
        self._part = part

    def _left_s(self, step: float, steps: float) -> float | None:
        """Guess from the steps since the first one: that one also paid for warming up."""
        now_s = self._clock()
        if self._first is None or step <= self._first[0]:
            self._first = (step, now_s)
            return None
        first, then_s = self._first
        return (now_s - then_s) / (step - first) * max(steps - step, 0.0)

    def _print(self, line: str) -> None:
        line = clipped(printable(line), _LINE_CAP)
        show(self._stream, f"{_ERASE}{line}\n{self._live_line}" if self._is_live else f"{line}\n")


def _self_test(event: Event) -> str:
    ranks = event["ranks"] if isinstance(event.get("ranks"), list) else [event.get("ranks")]
    steps = f"{shown(event.get('steps'))} steps"
    on = " and ".join(dict.fromkeys(map(shown, ranks[:_RANKS_SHOWN])))
    where = f"on {on} rank{'' if on == '1' else 's'}"
    if event["kind"] == "self-test":
        return f"self-test passed: {steps} gave the same bits {len(ranks)} times {where}"
    return f"self-test: {steps} {where}"


def _start(event: Event) -> str:
    parts = [shown(event["device"])] if isinstance(event.get("device"), str) else []
    counts = {key: number_of(event.get(key)) for key in ("threads", "parameters")}
    parts += [f"{count:,.0f} {key}" for key, count in counts.items() if count is not None]
    return "started" + (f": {', '.join(parts)}" if parts else "")
