"""What a job's batch script runs: `python -m runner.node begin|reap|run <run folder>`, on the nodes of its allocation.

`begin` runs once an attempt, the others on every node; `run` starts the container there and supervises it. The first
node commits the record, unless the run has stopped with a checkpoint and is to go on in the job's next turn.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from runner import machine
from runner.engines.request import Container
from runner.errors import RunFailed, XrunError
from runner.execute import Ending, Followed, Watcher, not_started, record_of, start, supervise
from runner.launch import report, watcher
from runner.placement import remains_of
from runner.record import Record
from runner.run_folder import RunFolder
from runner.slurm.attempt import begin_attempt
from runner.slurm.placement import commit
from runner.slurm.script import GOES_ON
from runner.terms import terms_of
from runner.turn import Turn, job_of_turn, launch_turn, node_engine, turn_of


class Terminated(KeyboardInterrupt):
    """SIGTERM: SLURM wants the nodes back."""


def main() -> int:
    """Do what the batch script asks for, and return its exit code."""
    verb, path = sys.argv[1:]
    try:
        turn = turn_of(RunFolder(path=Path(path)), os.environ)
        if verb == "run" and turn.is_first:
            # Held while it runs: a second job of the same run ends here.
            turn = replace(turn, folder=turn.store.take(turn.folder))
    except XrunError as error:
        _say(str(error))
        return error.exit_code
    try:
        return {"begin": _begin, "reap": _reap, "run": _run}[verb](turn)
    except RunFailed as error:  # recorded already
        _say(str(error))
        return error.exit_code
    except XrunError as error:
        _say(str(error))
        if turn.is_first:
            _commit(turn, not_started(error))
        else:
            turn.files.failure_of(turn.node).write_text(f"{error.message}\n")
        return error.exit_code


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _begin(turn: Turn) -> int:
    """Make ready for an attempt, or end a run that is to have no other."""
    assert turn.started.conducted is not None
    most = turn.started.conducted.scheduler.max_requeues
    requeues = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if turn.files.is_cancelled.exists():
        return _commit(turn, _interrupted("cancelled"))
    if requeues > most:
        return _commit(turn, _interrupted(f"was requeued {requeues} times; scheduler.max_requeues is {most}"))
    begin_attempt(turn.folder)
    return 0


def _interrupted(message: str) -> Ending:
    return Ending(status="interrupted", exit_code=None, message=message)


def _reap(turn: Turn) -> int:
    """End what an earlier attempt, whose xrun was killed, left running on this node."""
    left = node_engine(turn.order.engine).attach(remains_of(turn.folder, turn.node))
    if left is not None:
        left.stop(0)
        left.remove()
    return 0


def _run(turn: Turn) -> int:
    """Run this node's part of the attempt."""
    engine = node_engine(turn.order.engine)
    launch = launch_turn(turn, machine.probe())
    run = job_of_turn(turn, launch)
    engine.require(run.spec.image)
    looks_on = watcher(launch, run.started) if turn.is_first else _SILENT
    terms = terms_of(run.started, run.spec)
    container = _deaf_to_term(lambda: start(run, turn.folder, engine), ranks=run.spec.ranks)
    ending, _ = supervise(Followed(terms=terms, folder=turn.folder, container=container, watcher=looks_on))
    if not turn.is_first:  # how all of them ended is the first node's to say
        return 0
    record = looks_on.end(replace(record_of(terms, turn.folder, ending), placed=turn.placed))
    if (final := _final(turn, record)) is None:
        _say(f"{turn.folder.id}: {record.message}; goes on in this job's next turn")
        return GOES_ON
    turn.store.finish(turn.folder, final)
    return report(final, _say)


_SILENT = Watcher(begin=lambda *_: None, event=lambda _: None, end=lambda record: record, say=_say)


def _deaf_to_term(begin: Callable[[], Container], *, ranks: int) -> Container:
    """Start a container; from then on SIGTERM asks the run to stop with a checkpoint.

    Where SLURM tracks processes without cgroups, it signals the training itself, too, which must not die of it: a
    signal that is ignored stays so in child processes. Torch's launcher of several ranks takes it in any case.
    """
    if ranks == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return begin()
    finally:
        signal.signal(signal.SIGTERM, _raise_terminated)


def _raise_terminated(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _final(turn: Turn, record: Record) -> Record | None:
    """Return the record that ends the run, or None for a run that goes on when its job has its next turn."""
    if turn.files.is_cancelled.exists() and record.status == "interrupted":
        asked = turn.files.cancelled()
        return replace(record, status=asked.status, message=asked.why or f"cancelled: {record.message}")
    if failed := turn.files.failures():
        return replace(record, status="failed", message=f"{failed[0].stem}: {failed[0].read_text().strip()}")
    if record.status != "interrupted":
        return record
    return _after_the_time(turn, record) if turn.files.time_is_over.exists() else None


def _after_the_time(turn: Turn, record: Record) -> Record | None:
    assert record.conducted is not None
    most = record.conducted.scheduler.max_requeues
    if turn.spec.is_command:
        return replace(record, status="timeout", message="the time of its SLURM job was over (scheduler.time)")
    if turn.attempts > most:
        message = f"the time was over in attempt {turn.attempts}; scheduler.max_requeues is {most}; {record.message}"
        return replace(record, status="timeout", message=message)
    return None


def _commit(turn: Turn, ending: Ending) -> int:
    """Commit the record of a run that has no container now. Returns the exit code."""
    record = commit(turn.folder, turn.store, ending.status, ending.message, turn.placed)
    _say(f"{turn.folder.id}: {record.status}: {record.message}")
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(main())
