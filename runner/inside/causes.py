"""Why a run ended: left in `out/errors`, a file a rank, where the host takes the one written first for the cause."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from runner.inside.job import Job

# Signals that no launcher sends: a rank that died of one is the cause.
DEADLY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
# How the places begin where a rank was when the launcher ended it: of what, they do not say.
_PLACES = ("Current thread ", "Thread ")


def path_of(out: Path, rank: int) -> Path:
    """Return where a rank says why it failed."""
    return out / "errors" / f"rank{rank}.txt"


def fail(job: Job, message: str, exit_code: int) -> int:
    """Leave what this process failed of. A launcher speaks for the first rank of its node. Returns the exit code."""
    errors = path_of(job.out, int(os.environ.get("RANK", job.first_rank)))
    errors.parent.mkdir(exist_ok=True)
    placed = _placed(message.rstrip("\n"), job) + "\n"
    with errors.open("a", encoding="utf-8") as file:
        file.write(placed)
    sys.stderr.write(placed)
    return exit_code


def _placed(message: str, job: Job) -> str:
    """Return a message with the node that it is of, where there are several."""
    if job.node is None:
        return message
    where = f"on node {job.node.number}"
    return f"error: {where}: {message[len('error: ') :]}" if message.startswith("error: ") else f"{where}:\n{message}"


def speak_for(rank: int, signal_number: int, job: Job) -> int:
    """Say of what a rank died that could not say it itself. Returns its exit code."""
    errors = path_of(job.out, rank)
    opened_at_ns = errors.stat().st_mtime_ns
    if not errors.stat().st_size:
        where = "" if job.node is None else f" on node {job.node.number}"
        errors.write_text(
            f"error: rank {rank}{where} was ended by {signal.Signals(signal_number).name}\n", encoding="utf-8"
        )
    # The earliest error is taken for the cause, and by now the others have failed of this one.
    os.utime(errors, ns=(opened_at_ns, opened_at_ns))
    return 128 + signal_number


def speak_for_node(ranks: range, message: str, job: Job, at_ns: int) -> None:
    """Say what became of a node as a whole, as if at_ns, unless one of its ranks has said what it failed of."""
    texts = {rank: _text(path_of(job.out, rank)) for rank in ranks}
    if any(text and not text.startswith(_PLACES) for text in texts.values()):
        return
    errors = path_of(job.out, ranks[0])
    errors.parent.mkdir(exist_ok=True)
    errors.write_text(f"error: {message}\n{texts[ranks[0]]}", encoding="utf-8")
    os.utime(errors, ns=(at_ns, at_ns))
    sys.stderr.write(f"error: {message}\n")


def _text(errors: Path) -> str:
    return errors.read_text(encoding="utf-8", errors="replace") if errors.exists() else ""
