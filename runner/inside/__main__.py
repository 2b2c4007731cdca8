"""The process that a container starts: `python -m runner.inside`. Exit code 0 only if done.json is there."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings

# Threads that spin while they wait take the cores from other work and from other ranks: measured, a tenth of the
# speed on a busy machine. OpenMP reads this when torch loads it. It changes no bits.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch says so whenever it is imported where there is no NumPy, which no run needs.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

from runner.inside import command, job, loop, ranks, self_test  # noqa: E402, they import torch
from runner.inside.refusal import EXIT_REFUSED, EXIT_STOPPED, Ended, Refused, Stopped  # noqa: E402
from runner.inside.session import Session  # noqa: E402
from runner.inside.watch import Watch  # noqa: E402


def main() -> int:
    """Be one rank of several, or all of the run. Returns the exit code."""
    run = job.from_environment()
    try:
        return train(run) if ranks.is_rank() else begin(run)
    except Stopped:
        return EXIT_STOPPED
    except self_test.Failed as failed:
        has_said = any((run.out / "errors").glob("rank*.txt"))
        return failed.exit_code if has_said else fail(run, str(failed), failed.exit_code)
    except Refused as refused:
        return fail(run, str(refused), EXIT_REFUSED)
    except Exception:  # noqa: BLE001, an experiment may raise anything, and all of it is for the record
        return fail(run, traceback.format_exc(), 1)


def begin(run: job.Job) -> int:
    """Check the data and the level, then run the command, the one rank, or the launcher of several."""
    # A process of the self-test reads what the run has verified.
    if not run.traces_only:
        job.verify_data(run)
    if run.config["experiment"]["command"]:
        return command.run(run)
    ranks.require_possible(run)
    if self_test.is_due(run):
        self_test.require(run)
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


def fail(run: job.Job, message: str, exit_code: int) -> int:
    """Leave the cause where the host looks for it."""
    errors = run.out / "errors" / f"rank{os.environ.get('RANK', '0')}.txt"
    errors.parent.mkdir(exist_ok=True)
    with errors.open("a", encoding="utf-8") as file:
        file.write(message.rstrip("\n") + "\n")
    sys.stderr.write(message.rstrip("\n") + "\n")
    return exit_code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A failed rank must not wait at exit for ranks that wait for it.
    os._exit(code)
