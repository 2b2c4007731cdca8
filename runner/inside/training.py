"""A run that trains: this process is all of it, one of its ranks, or one node's launcher of ranks."""

from __future__ import annotations

import contextlib
import importlib
import traceback
from typing import TYPE_CHECKING

from runner.inside import job, loop, ranks, self_test
from runner.inside.causes import fail
from runner.inside.refusal import EXIT_REFUSED, EXIT_STOPPED, Called, Ended, Refused, Stopped
from runner.inside.session import Session
from runner.inside.watch import Watch

if TYPE_CHECKING:
    from runner.inside.nodes import Line


def take_part(run: job.Job) -> int:
    """Do this process's part of a training. Returns the exit code."""
    return attempt(run) if run.node is None or ranks.is_rank() else be_node(run, run.node)


def be_node(run: job.Job, node: job.Node) -> int:
    """Do a node's part, and hear of the others meanwhile. Returns the exit code of all nodes."""
    from runner.inside.nodes import EXIT_CALLED, Line  # noqa: PLC0415, one node needs no line

    try:
        with Line(run, node) as line:
            try:
                exit_code = attempt(run, line)
                line.seal()
            except Called:
                exit_code = EXIT_CALLED
            return line.end(exit_code)
    except Refused as refused:
        return fail(run, str(refused), EXIT_REFUSED)


def attempt(run: job.Job, line: Line | None = None) -> int:
    """Do this process's part. Returns its exit code, and leaves the cause of a failure; raises Called."""
    try:
        return train(run) if ranks.is_rank() else begin(run, line)
    except Stopped:
        return EXIT_STOPPED
    except Called:
        raise
    except self_test.Failed as failed:
        has_said = any((run.out / "errors").glob("rank*.txt"))
        return failed.exit_code if has_said else fail(run, str(failed), failed.exit_code)
    except Refused as refused:
        return fail(run, str(refused), EXIT_REFUSED)
    except Exception:  # noqa: BLE001, an experiment may raise anything, and all of it is for the record
        return fail(run, traceback.format_exc(), 1)


def begin(run: job.Job, line: Line | None) -> int:
    """Check the data and the level, then be the one rank, or the launcher of several."""
    # A process of the self-test reads what the run has verified.
    if not run.traces_only:
        job.verify_data(run)
    ranks.require_possible(run)
    if run.is_first_node and self_test.is_due(run):
        self_test.require(run)
    if line is not None:
        line.meet()
    return train(run) if run.ranks == 1 else ranks.launch(run)


def train(run: job.Job) -> int:
    """Be one rank."""
    place = ranks.join(run)
    alone = place.world_size == 1
    with Watch(run.out / "errors" / f"rank{place.rank}.txt", run.hang_timeout_s, alone=alone) as watch:
        experiment = importlib.import_module(f"experiments.{run.config['experiment']['module']}")
        with Session(run, place, watch) as session, contextlib.suppress(Ended):
            own_loop = getattr(experiment, "train", None)
            own_loop(session) if own_loop else loop.train(session, experiment)
    ranks.leave(place)
    return 0
