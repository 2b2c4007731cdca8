"""Bisect: the first step in which two stored runs part, where to begin it again, and what of both is not the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.blame import first_verdict
from runner.checkpoints import steps_pinned
from runner.container import Stretch
from runner.errors import StoreError
from runner.inside.operator_log import first_of
from runner.inside.trace import TraceError
from runner.levels import is_resumable
from runner.lock import to_mapping
from runner.record import Record, Verdict
from runner.resolve import differences
from runner.run_folder import RunFolder
from runner.spec import RunSpec
from runner.terminal import printable
from runner.traces import opened_traces, operator_logs

# Of a run's host: what may decide bits.
_FACTS = ("cpu", "arch_level", "kernel", "gpu", "driver", "environment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two runs."""

    folder: RunFolder
    spec: RunSpec
    record: Record


def not_comparable(one: Side, other: Side) -> list[str]:
    """Return why two runs have no step in common; empty where they have."""
    reasons = [
        f"{side.folder.id} is a command's run, which has no trace" for side in (one, other) if side.spec.is_command
    ]
    counts = {side.folder.id: side.spec.virtual_ranks for side in (one, other)}
    if len(set(counts.values())) > 1:
        reasons.append(f"virtual ranks: {', '.join(f'{name} has {count}' for name, count in counts.items())}")
    return reasons


def parting(one: Side, other: Side) -> Verdict | None:
    """Return where two runs first differ, None where no step that both have does. Raises StoreError."""
    lengths = [steps_traced(side) for side in (one, other)]
    found = difference(one.folder.out, other.folder.out, one.spec.virtual_ranks)
    ends = [side.record.fingerprint for side in (one, other)]
    if found is None and None not in ends and ends[0] != ends[1] and lengths[0] == lengths[1]:
        return Verdict(result="diverged", message="diverged after the last step: the final weights differ")
    return found


def difference(past: Path, again: Path, virtual_ranks: int) -> Verdict | None:
    """Return where the traces in two `out` folders first differ, in log2(steps) reads of each. Raises StoreError."""
    try:
        with opened_traces(past, virtual_ranks) as old, opened_traces(again, virtual_ranks) as new:
            return first_verdict(old, new, min(trace.count() for trace in (*old, *new)))
    except TraceError as error:
        raise StoreError(f"{past.parent.name} or {again.parent.name}: {error}") from error


def steps_traced(side: Side) -> int:
    """Return how many steps of a run every virtual rank has traced. Raises StoreError for a trace that was edited."""
    try:
        with opened_traces(side.folder.out, side.spec.virtual_ranks) as traces:
            for trace in traces:
                trace.verify()
            return min(trace.count() for trace in traces)
    except TraceError as error:
        raise StoreError(f"{side.folder.id}: {error}") from error


def window(side: Side, step: int) -> Stretch:
    """Return the steps to run again to see one of them: from the newest checkpoint before it, if the level allows."""
    earlier = [at for at in steps_pinned(side.record) if at < step] if is_resumable(side.spec.determinism.level) else []
    past = side.folder.out if earlier else None
    return Stretch(past=past, after_step=max(earlier, default=None), last_step=step)


def is_as(out: Path, side: Side, step: int) -> bool:
    """Say whether the steps up to one came out, in an `out` folder, as in a run. Raises StoreError."""
    found = difference(out, side.folder.out, side.spec.virtual_ranks)
    return found is None or (found.step or 0) > step


def operator(past: Path, again: Path, processes: tuple[int, int]) -> str:
    """Return which operator of the step that was logged in two `out` folders is the cause, in words."""
    try:
        logs = [operator_logs(out, count) for out, count in zip((past, again), processes, strict=True)]
    except StoreError as error:
        return f"which operator it is cannot be told: {error.message}"
    found = first_of(*logs)
    return printable(found.message) if found else "every operator of the step computed the same bits"


def unlike_specs(one: Side, other: Side) -> list[str]:
    """Return what two runs were asked to do otherwise, a line a key."""
    return _lines(differences(to_mapping(one.spec), to_mapping(other.spec)))


def unlike_facts(one: Side, other: Side) -> list[str]:
    """Return what two runs' machines and libraries say of themselves otherwise, a line a fact. Raises StoreError."""
    return _lines(differences(_facts(one), _facts(other)))


def _facts(side: Side) -> dict[str, object]:
    host = {name: side.record.host[name] for name in _FACTS if name in side.record.host}
    try:
        with opened_traces(side.folder.out, side.spec.virtual_ranks) as traces:
            header = traces[0].header
    except TraceError as error:
        raise StoreError(f"{side.folder.id}: {error}") from error
    ranks = {"ranks": header.world_size, "torch": header.torch}
    return {**host, **ranks, "engine": side.record.engine, "knobs": dict(header.knobs)}


def _lines(found: Iterator[tuple[str, str, str]]) -> list[str]:
    return [printable(f"{place}: {old} | {new}") for place, old, new in found]
