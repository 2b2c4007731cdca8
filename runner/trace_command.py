"""`xrun trace <run-id>`: what each step of a run computed, as text."""

from collections.abc import Callable, Iterator

from runner.errors import StoreError
from runner.inside.trace import CHANNELS, NOTHING, REALS, SLICED, TraceError
from runner.record import Record
from runner.store import RunStore
from runner.terminal import printable
from runner.traces import TraceFile, opened_traces

_HEAD = ("STEP", "RANK", "LOSS", "LR", "GRAD NORM", "CHAIN")


def print_trace(store: RunStore, text: str, step: int | None, write: Callable[[str], object]) -> None:
    """Write the trace of a run: a line a step, or all of one step. Raises StoreError."""
    folder = store.find(text)
    spec = store.load_spec(folder)
    try:
        with opened_traces(folder.out, spec.virtual_ranks) as traces:
            lines = _table(traces) if step is None else _one_step(traces, step)
            for line in lines:
                write(printable(line) + "\n")
    except TraceError as error:
        raise StoreError(f"{folder.id}: {error}") from error
    if step is None and isinstance(facts := store.look(folder).facts, Record) and facts.fingerprint:
        write(f"fingerprint {facts.fingerprint}\n")


def _table(traces: list[TraceFile]) -> Iterator[str]:
    yield "{:>8} {:>4}  {:<22} {:<22} {:<22} {}".format(*_HEAD)
    for index in range(min(trace.count() for trace in traces)):
        for rank, trace in enumerate(traces):
            record = trace.record(index)
            loss, lr, norm = (record.number(name) for name in ("loss", "lr", "grad_norm"))
            yield f"{record.step:>8} {rank:>4}  {loss!r:<22} {lr!r:<22} {norm!r:<22} {record.chain[:8].hex()}"


def _one_step(traces: list[TraceFile], step: int) -> Iterator[str]:
    for rank, trace in enumerate(traces):
        if not 1 <= step <= trace.count():
            raise TraceError(f"{trace.name} holds the steps 1 to {trace.count()}, not {step}")
        record, header = trace.record(step - 1), trace.header
        yield f"step {step}, rank {rank}, slice {step % header.slices} of {header.slices}"
        for channel in CHANNELS:
            is_number = channel in REALS or channel == "growth"
            yield (
                f"  {channel:<14} {record.number(channel)!r}"
                if is_number
                else _digest(channel, record.channels[channel])
            )
            if channel in SLICED:
                for entry, word in zip(header.looked_at(channel, step), record.tensors[channel], strict=True):
                    yield f"    {word.hex() if word != NOTHING else 'nothing':<16} {entry.name}"
        yield f"  {'chain':<14} {record.chain.hex()}"


def _digest(channel: str, word: bytes) -> str:
    return f"  {channel:<14} {word.hex()}"
