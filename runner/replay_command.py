"""`xrun replay <run-id>`: a run again from nothing but what the store holds of it, and the verdict."""

import random
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from runner import machine
from runner.arguments import ReplayArguments
from runner.checkpoints import steps_pinned
from runner.container import WHOLE, Stretch
from runner.engines.request import Engine
from runner.engines.select import pick
from runner.errors import EXIT_DIVERGED, EXIT_NOT_COMPARABLE, ReplayFailed, StoreError, XrunError
from runner.execute import Watcher
from runner.launch import Launch, again, job, watcher
from runner.placement import place
from runner.prepare import Workshop, make_ready
from runner.record import Record, Verdict
from runner.replay import (
    Comparison,
    Past,
    identity_reasons,
    knows_numerics,
    not_comparable,
    on_this_machine,
    require_whole,
)
from runner.run_folder import RunFolder
from runner.slurm.client import Slurm
from runner.slurm.placement import settled
from runner.store import RunStore
from runner.stretches import at_random, in_segments, named, together
from runner.terms import Halt

_STOPPED = "stopped by a signal"
# Verdicts that end a replay, and xrun's exit codes of them.
_PARTED = {"diverged": EXIT_DIVERGED, "not comparable": EXIT_NOT_COMPARABLE}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is executed to replay a run."""

    past: Past
    stretches: list[Stretch]
    """Mostly one, the whole run."""
    launch: Launch
    engine: Engine
    workshop: Workshop
    words: ReplayArguments


def replay_run(workshop: Workshop, words: ReplayArguments, argv: tuple[str, ...]) -> int:
    """Run a run again and print the verdict. Returns xrun's exit code; raises XrunError."""
    store = RunStore(workshop.project.runs)
    (run,) = settled([store.look(store.find(words.run))], store, Slurm())
    if run.problem:
        raise StoreError(run.problem)
    spec, here, record = store.load_spec(run.folder), machine.probe(), run.facts
    if not isinstance(record, Record):
        return _say_not_comparable([f"the run is {run.status}, not done"])
    elsewhere = identity_reasons(record, spec, here, words.ranks, knows_numerics=knows_numerics(run.folder, spec))
    reasons = not_comparable(record, spec, words.ranks, in_stretches=bool(words.segments or words.spot))
    reasons += [] if words.allow_hardware else elsewhere
    if reasons:
        return _say_not_comparable(reasons)
    past = Past(
        record=record,
        folder=run.folder,
        spec=spec,
        elsewhere=tuple(elsewhere),
        here=None if words.allow_hardware else here,
    )
    try:
        launch = replace(
            again(record, spec, store, here, ("replay", *argv)),
            replay_of=record.id,
            ranks=words.ranks,
            allow_hardware=words.allow_hardware,
        )
        plan = _plan(past, workshop, words, launch)
        done = _replay(plan)
    except XrunError as error:
        raise ReplayFailed(error.message, hint=error.hint) from error
    return _report(done, _together(plan, done), workshop)


def _say_not_comparable(reasons: list[str]) -> int:
    sys.stdout.write(f"not comparable: {'; '.join(reasons)}\n")
    return EXIT_NOT_COMPARABLE


def _plan(past: Past, workshop: Workshop, words: ReplayArguments, launch: Launch) -> _Plan:
    parts = _stretches(past, words)
    require_whole(past, parts)
    spec, engine = past.spec, pick(words.engine, workshop.images)
    if engine.name != "host":
        hint = f"git log --oneline -- images/{spec.image.ref}"
        make_ready(spec.image, workshop, hint, offline=words.offline)
    image = "no image" if engine.name == "host" else f"image {spec.image.name} {spec.image.digest}"
    workshop.say(f"replay of {past.record.id}: {image}, engine {engine.name}, level {spec.determinism.level}")
    return _Plan(past=past, stretches=parts, launch=launch, engine=engine, workshop=workshop, words=words)


def _stretches(past: Past, words: ReplayArguments) -> list[Stretch]:
    checkpoints, out = steps_pinned(past.record), past.folder.out
    if words.segments is not None:
        return in_segments(out, checkpoints, past.steps, words.segments)
    if words.spot is not None:
        return at_random(out, checkpoints, past.steps, words.spot, random.SystemRandom())
    return [WHOLE]


def _replay(plan: _Plan) -> list[Record]:
    """Execute every stretch, side by side where there are several, and return the records."""
    if len(plan.stretches) == 1:
        alone = _execute(plan, plan.stretches[0], None)
        assert alone is not None, "nobody ends this wait"
        return [alone]
    ends = _Ends(stop=threading.Event(), parted=threading.Event())
    with ThreadPoolExecutor(plan.words.segments or 1) as pool:
        futures = [pool.submit(_execute, plan, stretch, ends) for stretch in plan.stretches]
        try:
            return [record for future in futures if (record := future.result()) is not None]
        except BaseException:
            ends.stop.set()
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """What ends a stretch early that is replayed beside others."""

    stop: threading.Event
    """Set when all are to end."""
    parted: threading.Event
    """Set when a difference was found: a stretch that still waits for a slot is not begun."""

    def may_wait(self) -> bool:
        return not (self.stop.is_set() or self.parted.is_set())


def _execute(plan: _Plan, stretch: Stretch, ends: _Ends | None) -> Record | None:
    """Return the record of a stretch; None for one that was not begun because another one has parted."""
    past, workshop = plan.past, plan.workshop
    run = job(replace(plan.launch, stretch=stretch), plan.engine, workshop)
    comparison = Comparison(past, stretch, keep_going=plan.words.keep_going)
    usual = watcher(plan.launch, run.started) if ends is None else _quiet(workshop)
    looking = _looking(usual, comparison, ends, keep_going=plan.words.keep_going)
    if ends is None:
        return place(run, plan.engine, workshop, looking, plan.launch.here)
    record = place(run, plan.engine, workshop, looking, plan.launch.here, go_on=ends.may_wait)
    if record is not None:
        said = record.verdict.message if record.verdict else f"{record.status}: {record.message}"
        workshop.say(f"{record.id}: {named(stretch, past.steps)}: {said}")
    return record


def _quiet(workshop: Workshop) -> Watcher:
    """Return who looks on at one of several stretches: the lines of all would be a muddle."""
    return Watcher(begin=lambda *_: None, event=lambda _: None, end=lambda record: record, say=workshop.say)


def _looking(usual: Watcher, comparison: Comparison, ends: _Ends | None, *, keep_going: bool) -> Watcher:
    """Return who looks on at a replay: the usual ones, and the comparison with the run that it repeats."""
    folders: list[RunFolder] = []

    def begin(folder: RunFolder, pid: int | None) -> None:
        folders.append(folder)
        usual.begin(folder, pid)

    def end(record: Record) -> Record:
        verdict = comparison.verdict(record, folders[0].out)
        if ends is not None and verdict is not None and verdict.result in _PARTED and not keep_going:
            # While the slot is still held: whoever gets it next must know.
            ends.parted.set()
        return usual.end(replace(record, verdict=verdict))

    def look() -> Halt | None:
        enough = _STOPPED if ends is not None and ends.stop.is_set() else comparison.look(folders[0].out)
        return Halt(status="interrupted", message=enough) if enough else None

    return replace(usual, begin=begin, end=end, look=look)


def _together(plan: _Plan, done: Sequence[Record]) -> Verdict:
    """Return what all stretches prove. Raises ReplayFailed for one that did not get to an end."""
    verdicts = [record.verdict for record in done if record.verdict]
    if found := next((verdict for verdict in verdicts if verdict.result in _PARTED), None):
        return found
    for record in done:
        if record.verdict is None:
            raise ReplayFailed(f"{record.id}: {record.status}: {record.message}", hint=f"xrun logs {record.id}")
    if len(plan.stretches) == 1 and plan.words.spot is None:
        return verdicts[0]
    fingerprint = plan.past.record.fingerprint if plan.words.spot is None else None
    return on_this_machine(together(plan.stretches, plan.past.steps, fingerprint), plan.past.elsewhere)


def _report(done: Sequence[Record], verdict: Verdict, workshop: Workshop) -> int:
    ids, past = [record.id for record in done], done[0].replay_of
    sys.stdout.write(f"run          {' '.join(ids)}\nreplay of    {past}\n{verdict.message}\n")
    step = f" --step {verdict.step}" if verdict.step else ""
    last = next((record.id for record in done if record.verdict == verdict), ids[-1])
    workshop.say(f"\nnext:\n  xrun trace {past}{step}\n  xrun trace {last}{step}\n  xrun show {last}")
    return _PARTED.get(verdict.result, 0)
