"""What each level of determinism costs, and what the trace does: steps of the shipped experiments, measured in turns.

Every variant is a process (or two) of its own, because libraries read settings when they start; all of them stay, and
train a few steps when it is their turn. Ratios are of turns of the same round, so that a busy machine troubles both.

python -m bench.levels --rounds 15 [--json bench/results/levels.json]      (from the repository's folder)
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from bench.training import ROOT, make_spec, on_this_machine, training, variables, write_data

EXPERIMENTS = ("resnet50", "chargpt")
NO_TRACE = "seeded, no trace"
VARIANTS = {
    NO_TRACE: ("determinism=seeded",),
    "seeded": ("determinism=seeded",),
    "repeat": ("determinism=repeat",),
    "resume": ("determinism=resume",),
    "portable-v3": ("determinism=portable-v3",),
    "resume, 4 micro-batches": ("determinism=resume", "training.micro_batches=4"),
    "elastic, 4 virtual ranks": ("determinism=elastic", "determinism.virtual_ranks=4"),
    "repeat, 2 ranks": ("determinism=repeat", "hardware.ranks=2", "hardware.threads=1"),
    "resume, 2 ranks": ("determinism=resume", "hardware.ranks=2", "hardware.threads=1"),
}
RATIOS = (
    ("seeded", NO_TRACE),
    ("repeat", "seeded"),
    ("resume", "seeded"),
    ("portable-v3", "seeded"),
    ("elastic, 4 virtual ranks", "seeded"),
    ("elastic, 4 virtual ranks", "resume, 4 micro-batches"),
    ("resume, 2 ranks", "repeat, 2 ranks"),
)


class Turn(NamedTuple):
    """What a step took: CPU time of all processes, and the clock's of the slowest one."""

    cpu_s: float
    wall_s: float


class NoTrace:
    """A recorder that looks at nothing."""

    chains = (b"",)

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--rounds", type=int, default=15)
    words.add_argument("--steps", type=int, default=3, help="of each turn")
    words.add_argument("--experiment", choices=EXPERIMENTS, action="append")
    words.add_argument("--json", type=Path)
    words.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    asked = words.parse_args()
    if asked.train:
        _train(asked.train)
        return
    measured = {name: _measured(name, asked.rounds, asked.steps) for name in asked.experiment or EXPERIMENTS}
    if asked.json:
        known = json.loads(asked.json.read_text()) if asked.json.exists() else {}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({**known, **measured}, indent=2) + "\n")
    print("\n".join(_table(measured)))


def _measured(experiment: str, rounds: int, steps: int) -> dict[str, Any]:
    turns: dict[str, list[Turn]] = {name: [] for name in VARIANTS}
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_data(folder / "data")
        started = {variant: _start(folder, experiment, variant, stack) for variant in VARIANTS}
        for processes in started.values():
            _turn(processes, 2)  # the first steps also fill caches
        for number in range(rounds):
            for variant in draw.sample(list(VARIANTS), len(VARIANTS)):
                turns[variant].append(_turn(started[variant], steps))
            print(f"{experiment}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    medians = {
        variant: {unit: round(statistics.median(getattr(turn, unit) for turn in of), 5) for unit in Turn._fields}
        for variant, of in turns.items()
    }
    ratios = [_ratio(turns, variant, against) for variant, against in RATIOS]
    return {"rounds": rounds, "steps": steps, "medians": medians, "ratios": ratios, "on": on_this_machine()}


def _ratio(turns: dict[str, list[Turn]], variant: str, against: str) -> dict[str, object]:
    pairs = list(zip(turns[variant], turns[against], strict=True))
    cpu, wall = (sorted(one[unit] / other[unit] for one, other in pairs) for unit in range(2))
    shown = {"cpu": statistics.median(cpu), "cpu_least": cpu[0], "cpu_most": cpu[-1], "wall": statistics.median(wall)}
    return {"of": variant, "to": against, **{key: round(value, 3) for key, value in shown.items()}}


def _table(measured: dict[str, Any]) -> list[str]:
    lines = ["| experiment | of | to | CPU time | least to most | wall time |", "| --- | --- | --- | --- | --- | --- |"]
    for experiment, found in measured.items():
        for ratio in found["ratios"]:
            span = f"{ratio['cpu_least']:.2f} to {ratio['cpu_most']:.2f}"
            row = (experiment, ratio["of"], ratio["to"], f"{ratio['cpu']:.3f}", span, f"{ratio['wall']:.3f}")
            lines.append(f"| {' | '.join(row)} |")
    return lines


def _start(folder: Path, experiment: str, variant: str, stack: ExitStack) -> "list[subprocess.Popen[str]]":
    """Start the processes of a variant; each waits for its turn."""
    spec = make_spec([f"experiment={experiment}", "training.steps=100000", *VARIANTS[variant]])
    place = folder / variant
    place.mkdir()
    (place / "spec.json").write_text(json.dumps(spec))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "GLOO_SOCKET_IFNAME": "lo"}
    known = {**os.environ, **variables(spec), **meeting, "WORLD_SIZE": str(spec["ranks"])}
    argv = [sys.executable, "-m", "bench.levels", "--train", str(place)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            argv, cwd=ROOT, env=known | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdin=pipe, stdout=pipe, text=True
        )
        for rank in range(spec["ranks"])
    ]
    for process in processes:
        stack.callback(process.wait)
        stack.callback(process.kill)
    return processes


def _turn(processes: "list[subprocess.Popen[str]]", steps: int) -> Turn:
    """Let the processes of a variant train a few steps together."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
    told = []
    for process in processes:
        assert process.stdout is not None
        told.append(Turn(*json.loads(process.stdout.readline())))
    return Turn(sum(turn.cpu_s for turn in told) / steps, max(turn.wall_s for turn in told) / steps)


def _train(place: Path) -> None:
    """Be a process of a variant: train as many steps as each line of stdin says, and tell what they took."""
    from runner.inside import session as sessions  # noqa: PLC0415, it imports torch

    if place.name == NO_TRACE:
        sessions.Recorder = NoTrace  # type: ignore[misc, assignment]
    spec = json.loads((place / "spec.json").read_text())
    with ExitStack() as stack:
        steps = training(spec, place.parent / "data", place, stack)
        for line in sys.stdin:
            begun = time.process_time(), time.perf_counter()
            for _ in range(int(line)):
                next(steps)
            print(json.dumps([time.process_time() - begun[0], time.perf_counter() - begun[1]]), flush=True)


if __name__ == "__main__":
    main()
