"""`xrun replay <run-id>`: a run again from nothing but what the store holds of it, and the verdict."""

import sys
from dataclasses import replace

from runner import machine
from runner.arguments import ReplayArguments
from runner.engines.select import pick
from runner.errors import EXIT_DIVERGED, EXIT_NOT_COMPARABLE, ReplayFailed, StoreError, XrunError
from runner.execute import Watcher, execute
from runner.launch import Launch, job, watcher
from runner.machine import Machine
from runner.prepare import Workshop, make_ready
from runner.record import Record
from runner.replay import Comparison, not_comparable, require_whole
from runner.source import stored
from runner.spec import RunSpec
from runner.store import RunFolder, RunStore


def replay_run(workshop: Workshop, words: ReplayArguments, argv: tuple[str, ...]) -> int:
    """Run a run again and print the verdict. Returns xrun's exit code; raises XrunError."""
    store = RunStore(workshop.project.runs)
    run = store.look(store.find(words.run))
    if run.problem:
        raise StoreError(run.problem)
    spec, here, past = store.load_spec(run.folder), machine.probe(), run.facts
    if not isinstance(past, Record):
        return _say_not_comparable([f"the run is {run.status}, not done"])
    if reasons := not_comparable(past, run.folder, spec, here):
        return _say_not_comparable(reasons)
    try:
        launch = _launch(past, spec, here, store, ("replay", *argv))
        comparison = Comparison(past, run.folder, spec, here, keep_going=words.keep_going)
        require_whole(past, run.folder, spec)
        record = _replay(launch, comparison, workshop, words)
    except XrunError as error:
        raise ReplayFailed(error.message, hint=error.hint) from error
    return _report(record, workshop)


def _say_not_comparable(reasons: list[str]) -> int:
    sys.stdout.write(f"not comparable: {'; '.join(reasons)}\n")
    return EXIT_NOT_COMPARABLE


def _launch(past: Record, spec: RunSpec, here: Machine, store: RunStore, argv: tuple[str, ...]) -> Launch:
    if past.conducted is None:
        raise StoreError(f"{past.id} was recorded by an older xrun: its record does not say how it was conducted")
    return Launch(
        spec=spec,
        source=stored(store.root, spec.source),
        conducted=past.conducted,
        here=here,
        argv=argv,
        overrides=past.overrides,
        lock_digest=past.lock_digest,
        replay_of=past.id,
    )


def _replay(launch: Launch, comparison: Comparison, workshop: Workshop, words: ReplayArguments) -> Record:
    spec = launch.spec
    engine = pick(words.engine, workshop.images)
    if engine.name != "host":
        hint = f"git log --oneline -- images/{spec.image.ref}"
        make_ready(spec.image, workshop, hint, offline=words.offline)
    run = job(launch, engine, workshop)
    image = "no image" if engine.name == "host" else f"image {spec.image.name} {spec.image.digest}"
    workshop.say(f"replay of {launch.replay_of}: {image}, engine {engine.name}, level {spec.determinism.level}")
    store = RunStore(workshop.project.runs)
    return execute(run, engine=engine, store=store, watcher=_compared(watcher(launch, run.started), comparison))


def _compared(usual: Watcher, comparison: Comparison) -> Watcher:
    """Return who looks on at a replay: the usual ones, and the comparison with the run that it repeats."""
    folders: list[RunFolder] = []

    def begin(folder: RunFolder, pid: int | None) -> None:
        folders.append(folder)
        usual.begin(folder, pid)

    def end(record: Record) -> Record:
        return usual.end(replace(record, verdict=comparison.verdict(record, folders[0].out)))

    return Watcher(begin=begin, event=usual.event, end=end, look=lambda: comparison.look(folders[0].out))


def _report(record: Record, workshop: Workshop) -> int:
    verdict = record.verdict
    if verdict is None:
        raise ReplayFailed(f"{record.id}: {record.status}: {record.message}", hint=f"xrun logs {record.id}")
    sys.stdout.write(f"run          {record.id}\nreplay of    {record.replay_of}\n{verdict.message}\n")
    step = f" --step {verdict.step}" if verdict.step else ""
    workshop.say(
        f"\nnext:\n  xrun trace {record.replay_of}{step}\n  xrun trace {record.id}{step}\n  xrun show {record.id}"
    )
    return {"identical": 0, "diverged": EXIT_DIVERGED, "not-comparable": EXIT_NOT_COMPARABLE}[verdict.result]
