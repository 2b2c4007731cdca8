"""Runs for people and for scripts: `ls`, `show`, `logs`."""

import codecs
import io
import json
import time
from collections.abc import Callable, Sequence

from runner.errors import StoreError
from runner.parse import plain
from runner.record import Record
from runner.store import Run, RunStore
from runner.terminal import clipped, printable

Seen = Callable[[Sequence[Run]], Sequence[Run]]
"""Returns runs with what a cluster says of those that it has."""

_GOING_ON = {"running", "queued", "requeued", "unknown"}
_HEAD = ("RUN", "STATUS", "STARTED (UTC)", "TIME", "ENGINE", "FINGERPRINT", "METRICS")
_RUNS_SHOWN = 50
_LOOK_S = 0.2
_BLOCK_BYTES = 1 << 16
_METRICS_SHOWN = 3
_VALUE_CAP = 1_000
# The keys that scripts count on, for a run that has no record (yet).
_OPEN: dict[str, object] = {
    "fingerprint": None,
    "exit_code": None,
    "metrics": {},
    "message": "",
    "finished_at": None,
    "duration_s": None,
}


def list_runs(store: RunStore, *, as_json: bool, seen: Seen = list) -> str:
    """Return runs, newest first: a table of the last fifty, or a JSON list of the records of all."""
    if as_json:
        return json.dumps([_mapping(run) for run in seen(store.runs())], indent=2) + "\n"
    rows = [_HEAD, *(_row(run) for run in seen(store.runs(at_most=_RUNS_SHOWN)))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if (older := len(store.ids()) - _RUNS_SHOWN) > 0:
        lines.append(f"and {older} older: xrun ls --json lists all")
    return "\n".join(lines if len(rows) > 1 else ["no runs yet"]) + "\n"


def show_run(store: RunStore, text: str, *, as_json: bool, seen: Seen = list) -> str:
    """Return one run, found by id, its beginning or `last`. Raises StoreError, for a damaged run too."""
    (run,) = seen([store.look(store.find(text))])
    if run.problem:
        raise StoreError(run.problem)
    content = _mapping(run)
    if as_json:
        return json.dumps(content, indent=2) + "\n"
    first = ("id", "status", "message", "exit_code", "fingerprint", "metrics")
    keys = [*first, *sorted(content.keys() - set(first))]
    pairs = [pair for key in keys for pair in _pairs(key, content[key])] + [("folder", str(run.folder.path))]
    width = max(len(printable(key)) for key, _ in pairs)
    return "".join(f"{printable(key):<{width}}  {clipped(printable(text), _VALUE_CAP)}\n" for key, text in pairs)


def follow_log(store: RunStore, text: str, *, follow: bool, write: Callable[[str], object], seen: Seen = list) -> None:
    """Write what a run printed; with follow, until the run has ended. Raises StoreError for an unknown run."""
    folder = store.find(text)
    # A terminal shows \\r as a new line: what a progress bar overwrote is all there.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
    position = 0
    while True:
        # Looked at before the log is read: what a run printed before it ended is then read for certain.
        is_running = follow and seen([store.look(folder)])[0].status in _GOING_ON
        try:
            with folder.log.open("rb") as log:
                log.seek(position)
                while block := log.read(_BLOCK_BYTES):
                    write(printable(decoder.decode(block), keep="\n\t"))
                position = log.tell()
        except FileNotFoundError:  # nothing has been printed yet
            pass
        if not is_running:
            break
        time.sleep(_LOOK_S)
    write(printable(decoder.decode(b"", final=True), keep="\n\t"))


def _mapping(run: Run) -> dict[str, object]:
    known = plain(run.facts) if run.facts else {"engine": None}
    content = known if isinstance(run.facts, Record) else _OPEN | known
    said = run.problem or run.note
    return content | {"id": run.folder.id, "status": run.status} | ({"message": said} if said else {})


def _row(run: Run) -> tuple[str, ...]:
    facts = run.facts
    started = facts.started_at[:16].replace("T", " ") if facts else ""
    engine = printable(facts.engine) if facts else ""
    if not isinstance(facts, Record):
        return (run.folder.id, run.status, started, "", engine, "", clipped(printable(run.problem or run.note), 80))
    metrics = [f"{name} {_shown(value)}" for name, value in sorted(facts.metrics.items())[:_METRICS_SHOWN]]
    fingerprint = (facts.fingerprint or "").removeprefix("sha256:")[:12]
    said = ", ".join(metrics) if facts.status == "done" else facts.message
    time_s = f"{facts.duration_s:.1f} s"
    return (run.folder.id, run.status, started, time_s, engine, fingerprint, clipped(printable(said), 80))


def _pairs(key: str, value: object) -> list[tuple[str, str]]:
    """Return a value of a record as keys and texts, leaving out what is empty."""
    if isinstance(value, dict) and value.keys() == {"size", "digest"}:
        return [(key, f"{value['size']:,} bytes {value['digest']}")]
    if isinstance(value, dict):
        return [pair for name in sorted(value) for pair in _pairs(f"{key}.{name}", value[name])]
    if value in (None, "", []):
        return []
    return [(key, " ".join(map(str, value)) if isinstance(value, list) else _shown(value))]


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
