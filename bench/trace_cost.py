"""What the trace costs: the share of a training step that the recorder takes, for a shipped experiment's settings.

CPU time is counted, not the clock, so that a busy machine gives the same answer: the recorder runs on one thread, the
step on all, so a step's share is recorder / (step / threads).

python -m bench.trace_cost experiment=resnet50      (from the repository's folder)
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.training import make_spec, on_this_machine, training, variables, write_data

METHODS = (
    "begin",
    "enter",
    "see_samples",
    "see_batch",
    "_see_output",
    "see_bucket",
    "see_local_gradients",
    "see_gradients",
    "end",
)


def main() -> None:
    spec = make_spec(sys.argv[1:])
    wanted = variables(spec)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", "bench.trace_cost", *sys.argv[1:]], os.environ | wanted)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write_data(Path(folder))
        print(json.dumps({"words": sys.argv[1:], **_measured(spec, Path(folder), stack), "on": on_this_machine()}))


def _measured(spec: dict[str, Any], folder: Path, stack: ExitStack) -> dict[str, object]:
    from runner.inside import recorder  # noqa: PLC0415, it imports torch, which reads the variables

    threads = spec["hardware"]["threads"]
    spent = _timed(recorder.Recorder)
    steps_s, costs_s, slices = [], [], 0
    begun_s, before_s = time.process_time(), sum(spent)
    for session in training(spec, folder, folder, stack):
        steps_s.append((time.process_time() - begun_s) / threads)
        costs_s.append(sum(spent) - before_s)
        begun_s, before_s = time.process_time(), sum(spent)
        slices = session._trace._header.slices  # noqa: SLF001
    # Whole rounds of the slices, which are not of one size. The first step also loads the data and makes the model.
    counted = (len(steps_s) - 1) // slices * slices
    assert counted, f"{len(steps_s)} steps do not look at all {slices} slices"
    steps_s, costs_s = steps_s[-counted:], costs_s[-counted:]
    shares = [cost / step for cost, step in zip(costs_s, steps_s, strict=True)]
    return {
        "level": spec["determinism"]["level"],
        "slices": slices,
        "steps": counted,
        "step_ms": round(statistics.median(steps_s) * 1e3, 2),
        "trace_ms_median": round(statistics.median(costs_s) * 1e3, 3),
        "trace_ms_mean": round(statistics.mean(costs_s) * 1e3, 3),
        "share_median": round(statistics.median(shares), 5),
        "share_of_total": round(sum(costs_s) / sum(steps_s), 5),
    }


def _timed(kind: Any) -> list[float]:
    spent: list[float] = [0.0]

    def timed(method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            begun_s = time.thread_time()
            try:
                return method(*arguments, **named)
            finally:
                spent[0] += time.thread_time() - begun_s

        return call

    for name in METHODS:
        setattr(kind, name, timed(getattr(kind, name)))
    return spent


if __name__ == "__main__":
    main()
