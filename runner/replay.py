"""Replay: a run again, from its stored spec and source, compared with the first time step by step."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from runner.blame import computes_otherwise, first_verdict
from runner.checkpoints import below, state_after
from runner.container import Stretch
from runner.errors import HardwareError, StoreError
from runner.inside.trace import TraceError
from runner.levels import REPEAT, SEEDED, is_elastic, is_portable, is_resumable
from runner.machine import Machine, recorded, require
from runner.outputs import fact_of, operators_used
from runner.record import Record, Started, Verdict
from runner.run_folder import RunFolder
from runner.spec import RunSpec
from runner.stretches import named
from runner.traces import moved_operators, opened_traces, tell_numerics


def not_comparable(past: Record, spec: RunSpec, ranks: int | None, *, in_stretches: bool) -> list[str]:
    """Return why a replay could prove nothing, whatever the machine; empty where it can. `ranks`: as is asked for."""
    level = past.level
    reasons = []
    if past.status != "done":
        reasons.append(f"the run is {past.status}, not done")
    if level == SEEDED:
        reasons.append("level: seeded promises no bits")
    if in_stretches and not is_resumable(level):
        reasons.append(f"stretches begin with a checkpoint, and level {level} promises nothing of restarts")
    if ranks is not None and ranks != spec.ranks and not is_elastic(level):
        reasons.append(f"ranks: the run had {spec.ranks}, asked are {ranks}; level {level} needs as many")
    if ranks is not None and not 1 <= ranks <= spec.virtual_ranks:
        reasons.append(f"ranks: asked are {ranks}; its virtual ranks can be shared among 1 to {spec.virtual_ranks}")
    return reasons


def identity_reasons(
    past: Started, spec: RunSpec, here: Machine, ranks: int | None = None, *, knows_numerics: bool = False
) -> list[str]:
    """Return what of this machine is other than a run's bits need, alone as it is; empty where nothing is.

    A level that pins no instructions needs the same GPU, and the same CPU unless it is known what the run's operators
    computed: then that is compared (Comparison), and the CPU's name says nothing more.
    """
    needed = replace(spec.hardware, gpu_count=min(spec.hardware.gpu_count, ranks or spec.hardware.gpu_count))
    reasons = []
    try:
        require(needed, here, "the run")
    except HardwareError as error:
        reasons += [f"hardware: {line.strip()}" for line in error.message.splitlines()[1:]]
    if not is_portable(past.level):
        now = recorded(here)
        reasons += [
            f"hardware: {name} was {past.host[name]}, here is {now.get(name)}; level {past.level} needs the same"
            for name in (("gpu",) if knows_numerics else ("cpu", "gpu"))
            if name in past.host and past.host[name] != now.get(name)
        ]
    # The one level that leaves sums to the backend, which may add up along the ways between machines.
    if past.level == REPEAT and past.conducted is not None and past.conducted.nodes > 1:
        reasons.append(f"nodes: the run had {past.conducted.nodes}, here is 1; level {past.level} needs as many")
    return reasons


def knows_numerics(folder: RunFolder, spec: RunSpec) -> bool:
    """Say whether a run's traces tell what the probed operators computed."""
    return not spec.is_command and tell_numerics(folder.out, spec.virtual_ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The run that is replayed."""

    record: Record
    folder: RunFolder
    spec: RunSpec
    elsewhere: tuple[str, ...]
    """What of this machine is other than its bits need; empty but for `--allow-hardware`."""
    here: Machine | None
    """The machine that is to compute its bits; None for `--allow-hardware`: whatever they are, they are compared."""

    @property
    def steps(self) -> int:
        """Optimizer updates of the whole run."""
        training = self.spec.config["training"]
        assert isinstance(training, Mapping)
        return int(training["steps"])

    @property
    def traces(self) -> int:
        """Virtual ranks that have a trace: of a command's, none."""
        return 0 if self.spec.is_command else self.spec.virtual_ranks


def require_whole(past: Past, stretches: Sequence[Stretch]) -> None:
    """Raise StoreError unless a run's traces, and the checkpoints that stretches use, are as its record states."""
    steps = {step for stretch in stretches for step in (stretch.after_step, stretch.last_step) if step}
    needed = ("out/trace-rank", "out/events", *map(below, steps))
    for name, stated in past.record.files.items():
        if not name.startswith(needed):
            continue
        if not (path := past.folder.path / name).is_file() or fact_of(path) != stated:
            raise StoreError(f"{path} is not what the record of {past.record.id} states")
    try:
        with opened_traces(past.folder.out, past.traces) as traces:
            for trace in traces:
                trace.verify()
    except TraceError as error:
        raise StoreError(f"{past.record.id}: {error}") from error


class Comparison:
    """A replay beside the run that it repeats."""

    def __init__(self, past: Past, stretch: Stretch, *, keep_going: bool) -> None:
        self._past = past
        self._stretch = stretch
        self._past_out = past.folder.out
        self._ranks = past.traces
        self._keep_going = keep_going
        self._compared = 0
        self._found: Verdict | None = None
        # At a portable level other bits are never excused: they are what a replay is to find.
        self._may_differ = past.here is None or is_portable(past.record.level)

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
        """Return that nothing can be proved here, if an operator that the run calls computes other bits. TraceError."""
        here, record = self._past.here, self._past.record
        if here is None or self._may_differ:
            return None
        moved = moved_operators(self._past_out, out, self._ranks, operators_used(self._past_out))
        self._may_differ = True  # one look is enough
        name = "gpu" if self._past.spec.hardware.device == "cuda" else "cpu"
        return computes_otherwise(moved, record.level, record.host.get(name), recorded(here).get(name))

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
        found = self._traced(out) if self._ranks else _of_files(_outputs_of(self._past.spec), self._past.record, replay)
        return found or on_this_machine(self._of_end(replay, out), self._past.elsewhere)

    def _traced(self, out: Path) -> Verdict | None:
        """Compare whole traces, every link of them computed again: what was seen live may have been rewritten."""
        try:
            with opened_traces(self._past_out, self._ranks) as past, opened_traces(out, self._ranks) as again:
                for trace in again:
                    trace.verify()
                found = first_verdict(past, again, min(trace.count() for trace in (*past, *again)))
                return found or _of_other_length(self._stretch.last_step or past[0].count(), again[0].count())
        except TraceError as error:
            return Verdict(result="diverged", message=f"diverged: the replay's trace cannot be used: {error}")

    def _of_end(self, replay: Record, out: Path) -> Verdict:
        """Return the verdict where every step is equal: on what the last one left."""
        last = self._stretch.last_step
        if last is not None:
            if state_after(out, last) != state_after(self._past_out, last):
                return Verdict(result="diverged", message=f"diverged after step {last}: the state differs", step=last)
            what = f"{named(self._stretch, last)}, and the state after them"
            return Verdict(result="identical in part", message=f"identical in part: {what}")
        if replay.fingerprint != self._past.record.fingerprint:
            return Verdict(result="diverged", message="diverged after the last step: the final weights differ")
        return Verdict(result="identical", message=f"identical: {self._proof(replay)}")

    def _proof(self, replay: Record) -> str:
        if not self._ranks:
            return f"every declared output; fingerprint {replay.fingerprint}"
        kind = "ranks" if self._ranks == self._past.spec.ranks else "virtual ranks"
        ranks = f" on {self._ranks} {kind}" if self._ranks > 1 else ""
        return f"every step{ranks} and the final weights; fingerprint {replay.fingerprint}"


def on_this_machine(verdict: Verdict, elsewhere: Sequence[str]) -> Verdict:
    """Return a verdict on a machine that may be other than its level speaks of: then it is never `identical`."""
    if not elsewhere or verdict.result == "diverged":
        return verdict
    message = f"compared, on other hardware: {verdict.message.partition(': ')[2]}"
    return replace(verdict, result="compared", message=message)


def _outputs_of(spec: RunSpec) -> list[str]:
    """Return the files that a command's run is pinned by."""
    experiment = spec.config["experiment"]
    assert isinstance(experiment, Mapping)
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
