"""The process that a container starts: `python -m runner.inside`. Exit code 0 only if done.json is there."""

from __future__ import annotations

import os
import sys
import traceback
import warnings

from runner.inside import command, job
from runner.inside.causes import fail
from runner.inside.refusal import EXIT_REFUSED, Refused

# Threads that spin while they wait take the cores from other work and from other ranks: measured, a tenth of the
# speed on a busy machine. OpenMP reads this when torch loads it. It changes no bits.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch says so whenever it is imported where there is no NumPy, which no run needs.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")


def main() -> int:
    """Run the command, or take part in the training. Returns the exit code."""
    run = job.from_environment()
    if run.config["experiment"]["command"]:
        return attempt(run)
    # A second or more: no command waits for it.
    from runner.inside import training  # noqa: PLC0415, it imports torch

    return training.take_part(run)


def attempt(run: job.Job) -> int:
    """Check the data and run the command. Returns the exit code, and leaves the cause of a failure."""
    try:
        job.verify_data(run)
        return command.run(run)
    except Refused as refused:
        return fail(run, str(refused), EXIT_REFUSED)
    except Exception:  # noqa: BLE001, whatever it is, it is for the record
        return fail(run, traceback.format_exc(), 1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A failed rank must not wait at exit for ranks that wait for it.
    os._exit(code)
