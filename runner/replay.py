"""Replay: a run again, from its stored spec and source, compared with the first time step by step."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.blame import diverged, diverged_before, first_difference
from runner.errors import HardwareError, StoreError
from runner.inside.leaves import differing, named
from runner.inside.trace import TraceError
from runner.levels import SEEDED, is_portable
from runner.machine import Machine, recorded, require
from runner.outputs import fact_of, operators_used
from runner.record import Record, Verdict
from runner.spec import RunSpec
from runner.store import RunFolder
from runner.terminal import printable
from runner.traces import TraceFile, opened_traces


def not_comparable(past: Record, folder: RunFolder, spec: RunSpec, here: Machine) -> list[str]:
    """Return why a replay on this machine could prove nothing; empty where it can, or where only its start can say.

    A level that pins no instructions needs the same CPU; where the run's trace tells what operators computed, the
    replay's own is compared with it before its first step (Comparison), and the CPU's name says nothing more.
    """
    reasons = []
    if past.status != "done":
        reasons.append(f"the run is {past.status}, not done")
    if past.level == SEEDED:
        reasons.append("level: seeded promises no bits")
    try:
        require(spec.hardware, here, f"{past.id}")
    except HardwareError as error:
        reasons += [f"hardware: {line.strip()}" for line in error.message.splitlines()[1:]]
    if not is_portable(past.level):
        now = recorded(here)
        identity = [*([] if _knows_numerics(folder, spec) else ["cpu"]), *(["gpu"] if _device(spec) == "gpu" else [])]
        reasons += [
            f"hardware: {name} was {past.host[name]}, here is {now.get(name)}; level {past.level} needs the same"
            for name in identity
            if name in past.host and past.host[name] != now.get(name)
        ]
    return reasons


def _device(spec: RunSpec) -> str:
    """Return the key of a machine's facts that names what a run computes on."""
    return "gpu" if spec.hardware.device == "cuda" else "cpu"


def _knows_numerics(folder: RunFolder, spec: RunSpec) -> bool:
    if not (ranks := _ranks_traced(spec)):
        return False
    try:
        with opened_traces(folder.out, ranks) as traces:
            return all(trace.header.numerics for trace in traces)
    except TraceError:  # `require_whole` says so
        return False


def require_whole(past: Record, folder: RunFolder, spec: RunSpec) -> None:
    """Raise StoreError unless a run's traces are as its record states them, and can be read."""
    for name, stated in past.files.items():
        if not name.startswith(("out/trace-rank", "out/events")):
            continue
        if not (path := folder.path / name).is_file() or fact_of(path) != stated:
            raise StoreError(f"{path} is not what the record of {past.id} states")
    try:
        with opened_traces(folder.out, _ranks_traced(spec)) as traces:
            for trace in traces:
                trace.verify()
    except TraceError as error:
        raise StoreError(f"{past.id}: {error}") from error


class Comparison:
    """A replay beside the run that it repeats. Without a machine, it may compute other bits than the run's machine."""

    def __init__(
        self, past: Record, folder: RunFolder, spec: RunSpec, here: Machine | None, *, keep_going: bool
    ) -> None:
        self._past = past
        self._names = [facts.get(_device(spec)) for facts in (past.host, recorded(here) if here else {})]
        # At a portable level other bits are never excused: they are what a replay is to find.
        self._may_differ = here is None or is_portable(past.level)
        self._outputs = _outputs_of(spec)
        self._past_out = folder.out
        self._ranks = _ranks_traced(spec)
        self._keep_going = keep_going
        self._compared = 0
        self._found: Verdict | None = None

    def look(self, out: Path) -> str:
        """Compare the steps that every rank has finished by now. Returns why the replay should stop, or nothing."""
        if self._found is None and self._ranks:
            try:
                self._found = self._of_numerics(out) or self._compare(out)
            except TraceError:  # the container is still about to write it
                return ""
        if self._found is None or (self._keep_going and self._found.result == "diverged"):
            return ""
        return self._found.message

    def _of_numerics(self, out: Path) -> Verdict | None:
        """Return that nothing can be proved here, if an operator that the run used computes other bits. TraceError."""
        if self._may_differ:
            return None
        with opened_traces(self._past_out, self._ranks) as past, opened_traces(out, self._ranks) as again:
            leaves = [(old.header.numerics, new.header.numerics) for old, new in zip(past, again, strict=True)]
        used = operators_used(self._past_out)
        moved = sorted({name for old, new in leaves if old for name in differing(old, new, used)})
        self._may_differ = True  # looked at once
        if not moved:
            return None
        then, now = self._names
        message = (
            f"not comparable: operators {named(moved)} compute other bits on this machine"
            f" ({then} then, {now} now); level {self._past.level} needs the same"
        )
        return Verdict(result="not-comparable", message=printable(message))

    def _compare(self, out: Path) -> Verdict | None:
        with opened_traces(self._past_out, self._ranks) as past, opened_traces(out, self._ranks) as again:
            end = min(trace.count() for trace in (*past, *again))
            if end <= self._compared:
                return None
            verdict = first_verdict(past, again, end)
            self._compared = end
            return verdict

    def verdict(self, replay: Record, out: Path) -> Verdict | None:
        """Return what a replay that has ended proves; None where it did not get to an end."""
        if self._found is None and self._ranks:
            # A replay that was over sooner than it could be looked at.
            with suppress(TraceError):
                self._found = self._of_numerics(out)
        if self._found is not None or replay.status != "done":
            return self._found
        found = self._traced(out) if self._ranks else _of_files(self._outputs, self._past, replay)
        if found is None and replay.fingerprint != self._past.fingerprint:
            found = Verdict(result="diverged", message="diverged after the last step: the final weights differ")
        return found or Verdict(result="identical", message=f"identical: {self._proof(replay)}")

    def _traced(self, out: Path) -> Verdict | None:
        """Compare whole traces, every link of them computed again: what was seen live may have been rewritten."""
        try:
            with opened_traces(self._past_out, self._ranks) as past, opened_traces(out, self._ranks) as again:
                for trace in again:
                    trace.verify()
                found = first_verdict(past, again, min(trace.count() for trace in (*past, *again)))
                return found or _of_other_length(past[0].count(), again[0].count())
        except TraceError as error:
            return Verdict(result="diverged", message=f"diverged: the replay's trace cannot be used: {error}")

    def _proof(self, replay: Record) -> str:
        if not self._ranks:
            return f"every declared output; fingerprint {replay.fingerprint}"
        ranks = f" on {self._ranks} ranks" if self._ranks > 1 else ""
        return f"every step{ranks} and the final weights; fingerprint {replay.fingerprint}"


def first_verdict(past: Sequence[TraceFile], again: Sequence[TraceFile], end: int) -> Verdict | None:
    """Return the verdict on the first step in which any rank differs, None if none of the first `end` does."""
    pairs = list(zip(past, again, strict=True))
    for old, new in pairs:
        if _tables(old) != _tables(new):
            return diverged_before((old.header, new.header))
    steps = [step for step in (first_difference(*pair) for pair in pairs) if step is not None and step <= end]
    if not steps:
        return None
    step = min(steps)
    if step == 0:
        return next(diverged_before((old.header, new.header)) for old, new in pairs if first_difference(old, new) == 0)
    records = [[trace.record(step - 1) for trace in traces] for traces in (past, again)]
    return diverged(past[0].header, records[0], records[1])


def _tables(trace: TraceFile) -> tuple[object, ...]:
    return trace.header.slices, trace.header.parameters, trace.header.buffers


def _experiment(spec: RunSpec) -> Mapping[str, Any]:
    experiment = spec.config["experiment"]
    assert isinstance(experiment, Mapping)
    return experiment


def _ranks_traced(spec: RunSpec) -> int:
    """Return how many virtual ranks of a run have a trace: of a command's, none."""
    return 0 if _experiment(spec).get("command") else spec.virtual_ranks


def _outputs_of(spec: RunSpec) -> list[str]:
    """Return the files that a command's run is pinned by."""
    experiment = _experiment(spec)
    return sorted({*experiment.get("outputs", ()), *filter(None, [experiment.get("metrics")])})


def _of_other_length(past: int, again: int) -> Verdict | None:
    if past == again:
        return None
    message = f"diverged: the replay ended after step {again}, the run after step {past}"
    return Verdict(result="diverged", message=message, step=min(past, again) + 1)


def _of_files(names: Sequence[str], past: Record, again: Record) -> Verdict | None:
    """Return the verdict on what a command declared, naming the first file that differs."""
    for name in names:
        old, new = past.files.get(f"out/{name}"), again.files.get(f"out/{name}")
        if old != new:
            then, now = (fact.digest if fact else "missing" for fact in (old, new))
            message = f"diverged: out/{name} differs: {then} then, {now} now"
            return Verdict(result="diverged", message=message, channel=f"out/{name}")
    return None
