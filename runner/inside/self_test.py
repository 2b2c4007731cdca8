"""The level's self-test: before a long run its first steps are computed again in fresh processes, and compared.

A level is a claim about processes, so it is real ones that are compared, each the whole program of a container.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from runner.inside import operator_log
from runner.inside.difference import Difference, first_difference
from runner.inside.files import Events
from runner.inside.knobs import SEEDED, is_elastic
from runner.inside.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runner.inside.job import Job

# glibc then fills fresh memory with bytes 0x7f, in floating point a number too large to be overlooked.
_OTHER_MEMORY = {"MALLOC_PERTURB_": "128"}
# Bits that differ only now and then may not differ again at once.
_ATTEMPTS = 3
_NOT_INHERITED = ("XRUN_SELF_TEST_STEPS", "XRUN_CONTROL", "XRUN_OPERATORS_STEP", "XRUN_NODES")


class Failed(Exception):
    """A process of the self-test ended by itself: the experiment's own error, which is in `out/errors`."""

    def __init__(self, exit_code: int, output: str) -> None:
        super().__init__(output)
        self.exit_code = exit_code


class _Variant(NamedTuple):
    """One way to compute the steps, which decides no bits at a level that is kept."""

    ranks: int
    environment: Mapping[str, str]


class _Bench(NamedTuple):
    """What the processes of a self-test share."""

    job: Job
    folder: Path
    events: Events

    def run(self, variant: _Variant, name: str, steps: int, *, log_last: bool = False) -> Path:
        """Compute the first steps in a process of their own and return its `out`. Raises Failed."""
        out = self.folder / name
        out.mkdir()
        self.events.write("self-test-run", steps=steps, ranks=variant.ranks)
        variables = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        variables.update(XRUN_OUT=str(out), XRUN_TRACES_ONLY="1", XRUN_LAST_STEP=str(steps))
        variables.update(XRUN_RANKS=str(variant.ranks), **variant.environment)
        if log_last:
            variables["XRUN_OPERATORS_STEP"] = str(steps)
        argv = [sys.executable, "-m", "runner.inside"]
        with (self.folder / f"{name}.log").open("w+", encoding="utf-8", errors="replace") as log:
            ended = subprocess.run(argv, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
            if code := ended.returncode:
                log.seek(0)
                said = log.read()
                settings = "".join(f", {name}={value}" for name, value in variant.environment.items())
                sys.stderr.write(f"{said}self-test: {steps} steps on {variant.ranks} ranks{settings} failed\n")
                raise Failed(code if code > 0 else 128 - code, _kept(out, self.job.out) or said)
        return out


def _kept(out: Path, of_run: Path) -> str:
    """Leave a failed process's errors where the run's own would be, the first one first. Returns what they say."""
    if not (out / "errors").is_dir():
        return ""
    shutil.copytree(out / "errors", of_run / "errors", dirs_exist_ok=True)
    said = [path for path in (out / "errors").iterdir() if path.stat().st_size]
    return "".join(path.read_text(errors="replace") for path in sorted(said, key=lambda path: path.stat().st_mtime_ns))


def is_due(job: Job) -> bool:
    """Say whether a run is tested first: one that promises bits, from its first step on."""
    level = job.spec["determinism"]["level"]
    return bool(job.self_test_steps) and job.resume is None and level != SEEDED


def require(job: Job) -> None:
    """Compute a run's first steps twice, at elastic levels also on other ranks. Raises Refused where they differ.

    All of it happens on this node. A level that needs as many ranks cannot be tested where it has too few GPUs.
    Raises Failed with a process's own error.
    """
    steps = min(job.self_test_steps, job.last_step or job.config["training"]["steps"])
    first, *others = _variants(job)
    with tempfile.TemporaryDirectory() as folder, Events(job.out / "events.jsonl") as events:
        if first.ranks < job.ranks and not is_elastic(job.spec["determinism"]["level"]):
            events.write("self-test-left-out", ranks=job.ranks, gpus=torch.cuda.device_count())
            return
        bench = _Bench(job, Path(folder), events)
        past = bench.run(first, "first", steps)
        for number, other in enumerate(others, 2):
            again = bench.run(other, f"run-{number}", steps)
            found = first_difference(past, again, job.spec["virtual_ranks"])
            if found is not None:
                raise _refused(bench, first, other, found)
        events.write("self-test", steps=steps, ranks=[first.ranks, *(other.ranks for other in others)])


def _variants(job: Job) -> list[_Variant]:
    """Return the ways in which the steps are computed: twice as the run will be, then on other ranks."""
    pinned = job.spec["determinism"]["environment"]
    is_cpu = job.spec["hardware"]["device"] == "cpu"
    here = job.ranks if is_cpu else min(job.ranks, max(torch.cuda.device_count(), 1))
    variants = [_Variant(here, {}), _Variant(here, {} if _OTHER_MEMORY.keys() & pinned else _OTHER_MEMORY)]
    ranks = 1 if here > 1 else 2
    has_devices = is_cpu or torch.cuda.device_count() >= ranks
    if is_elastic(job.spec["determinism"]["level"]) and ranks <= job.spec["virtual_ranks"] and has_devices:
        variants.append(_Variant(ranks, {}))
    return variants


def _refused(bench: _Bench, first: _Variant, other: _Variant, found: Difference) -> Refused:
    spec = bench.job.spec
    runs, hint = "two runs of its first steps in fresh processes differ", "determinism=seeded"
    if other.ranks != first.ranks:
        runs, hint = f"its first steps differ between {first.ranks} and {other.ranks} ranks", "determinism=resume"
    kind = "rank" if spec["virtual_ranks"] == spec["ranks"] else "virtual rank"
    ranks = f"{kind}{'s' if len(found.ranks) > 1 else ''} {', '.join(map(str, found.ranks))}"
    place = f"at step {found.step}, {ranks}" if found.step else f"before the first step, {ranks}"
    operator = f": {_operator(bench, (first, other), found.step)}" if found.step else ""
    level = spec["determinism"]["level"]
    return Refused(f"level {level} cannot be kept: {runs} {place}, in {found.what}{operator}", hint=hint)


def _operator(bench: _Bench, pair: Sequence[_Variant], step: int) -> str:
    """Return which operator is the cause, in words: the steps are computed again, the last one's operators logged."""
    for attempt in range(_ATTEMPTS):
        try:
            past, again = (
                bench.run(variant, f"log-{attempt}-{number}", step, log_last=True)
                for number, variant in enumerate(pair)
            )
        except Failed as failed:
            return f"its operators cannot be logged: {str(failed).strip().splitlines()[-1]}"
        found = first_difference(past, again, bench.job.spec["virtual_ranks"])
        if found is None or not found.step:
            continue
        if found.step == step:
            logs = [_logs(out, variant.ranks) for out, variant in zip((past, again), pair)]
            parting = operator_log.first_of(*logs)
            return parting.message if parting else "no operator in it does"
        step = found.step
    return "which operator it is cannot be told, for it does not differ each time"


def _logs(out: Path, processes: int) -> list[list[operator_log.Operator]]:
    logs = []
    for process in range(processes):
        with (out / operator_log.file_name(process)).open("rb") as file:
            logs.append(operator_log.read(file))
    return logs
