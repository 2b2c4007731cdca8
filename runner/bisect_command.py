"""`xrun bisect <run-id> <run-id>`: the step in which two runs part, run again here, and what computed other bits."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from runner import bisect, machine
from runner.arguments import BisectArguments
from runner.bisect import Side
from runner.engines.request import Engine
from runner.engines.select import pick
from runner.errors import EXIT_DIVERGED, EXIT_NOT_COMPARABLE, HardwareError, ReplayFailed, StoreError
from runner.launch import again, job, watcher
from runner.machine import Machine
from runner.placement import place
from runner.prepare import Workshop, make_ready
from runner.record import Record, Verdict
from runner.store import RunStore
from runner.stretches import named

# A step that differs from itself may do so in an earlier one when it is run again.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What the replays of a window share."""

    workshop: Workshop
    store: RunStore
    engine: Engine
    here: Machine
    argv: tuple[str, ...]

    def run(self, side: Side, step: int) -> Path:
        """Run the window of a step again, its operators logged, and return its `out`. Raises XrunError."""
        stretch = bisect.window(side, step)
        launch = replace(
            again(side.record, side.spec, self.store, self.here, ("bisect", *self.argv)),
            replay_of=side.folder.id,
            stretch=stretch,
            # What this machine computes is the question here, not what it should compute.
            allow_hardware=True,
            operators_step=step,
        )
        run = job(launch, self.engine, self.workshop)
        self.workshop.say(f"{named(stretch, step)} of {side.folder.id}, engine {self.engine.name}")
        record = place(run, self.engine, self.workshop, watcher(launch, run.started), self.here)
        assert record is not None, "nobody ends this wait"
        if record.status != "done":
            raise ReplayFailed(f"{record.id}: {record.status}: {record.message}", hint=f"xrun logs {record.id}")
        return self.store.find(record.id).out


def bisect_runs(workshop: Workshop, words: BisectArguments, argv: tuple[str, ...]) -> int:
    """Print where two runs part, and why as far as this machine can tell. Returns the exit code; raises XrunError."""
    store = RunStore(workshop.project.runs)
    one, other = (_side(store, text) for text in (words.run, words.other))
    if reasons := bisect.not_comparable(one, other):
        _print(f"not comparable: {'; '.join(reasons)}")
        return EXIT_NOT_COMPARABLE
    found = bisect.parting(one, other)
    if found is None:
        steps = min(map(bisect.steps_traced, (one, other)))
        _print(f"equal: the {steps} steps that both have")
        return 0
    _print(_said(found))
    _print_lines("asked otherwise:", bisect.unlike_specs(one, other))
    _print_lines("found otherwise:", bisect.unlike_facts(one, other))
    if found.step:
        for line in _here(workshop, words, argv, (one, other), found.step):
            _print(line)
    return EXIT_DIVERGED


def _side(store: RunStore, text: str) -> Side:
    run = store.look(store.find(text))
    if run.problem:
        raise StoreError(run.problem)
    if not isinstance(run.facts, Record):
        raise StoreError(f"{run.folder.id} is {run.status}: its trace is not whole yet")
    return Side(folder=run.folder, spec=store.load_spec(run.folder), record=run.facts)


def _said(verdict: Verdict) -> str:
    """Return a verdict as a statement on two runs: neither is the other's replay."""
    return f"first differ {verdict.message.removeprefix('diverged ')}"


def _here(
    workshop: Workshop, words: BisectArguments, argv: tuple[str, ...], sides: tuple[Side, Side], step: int
) -> Iterator[str]:
    """Yield what this machine computes in the step, a line each."""
    here = machine.probe()
    try:
        for side in sides:
            machine.require(side.spec.hardware, here, side.folder.id)
    except HardwareError as error:
        yield f"not run again here: {'; '.join(line.strip() for line in error.message.splitlines())}"
        return
    engine = pick(words.engine, workshop.images)
    if engine.name != "host":
        for image in {side.spec.image.digest: side.spec.image for side in sides}.values():
            make_ready(image, workshop, f"git log --oneline -- images/{image.ref}", offline=words.offline)
    store = RunStore(workshop.project.runs)
    bench = _Bench(workshop=workshop, store=store, engine=engine, here=here, argv=argv)
    yield from _cause(bench, *sides, step)


def _cause(bench: _Bench, one: Side, other: Side, step: int) -> Iterator[str]:
    past, again = bench.run(one, step), bench.run(one, step)
    for _ in range(_ATTEMPTS):
        found = bisect.difference(past, again, one.spec.virtual_ranks)
        if found is None:
            break
        if found.step == step:
            operator = bisect.operator(past, again, (one.spec.ranks, one.spec.ranks))
            yield f"{one.folder.id}, run twice here, differs from itself at step {step}: {operator}"
            return
        step = found.step or step
        past, again = bench.run(one, step), bench.run(one, step)
    yield f"{one.folder.id}, run twice here, is equal to itself, {_like(past, one, other, step)}"
    if one.spec.digest != other.spec.digest:
        yield _between(past, bench.run(other, step), one, other)


def _like(out: Path, one: Side, other: Side, step: int) -> str:
    """Say which of the runs this machine computed the steps as."""
    alike = [side.folder.id for side in (one, other) if bisect.is_as(out, side, step)]
    return f"up to step {step} as in {' and '.join(alike) or 'neither run'}"


def _between(past: Path, again: Path, one: Side, other: Side) -> str:
    """Say what parts two runs that were asked to do different things, both of them run here."""
    if bisect.difference(past, again, one.spec.virtual_ranks) is None:
        return f"{one.folder.id} and {other.folder.id} come out equal here: not what was asked parts them"
    return f"between them: {bisect.operator(past, again, (one.spec.ranks, other.spec.ranks))}"


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _print_lines(head: str, lines: list[str]) -> None:
    if lines:
        _print("\n".join([head, *(f"  {line}" for line in lines)]))
