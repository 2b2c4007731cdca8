"""The numerics probe as a program: `python -m runner.inside.probe` leaves numerics.json for `xrun lock`."""

from __future__ import annotations

import sys

from runner.inside import job, knobs, numerics, ranks
from runner.inside.files import write_whole
from runner.inside.precision import Precision
from runner.inside.refusal import EXIT_REFUSED, Refused


def main() -> int:
    """Probe with the settings that the spec pins, as a run would. Returns the exit code."""
    run = job.from_environment()
    level = run.spec["determinism"]["level"]
    try:
        device = ranks.join(run).device
        knobs.set_up(level)
        precision = Precision(run.config["precision"], device.type)
        knobs.verify(run.spec)
        leaves = numerics.probe(device, precision.name, portable=level.startswith(knobs.PORTABLE))
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        return EXIT_REFUSED
    write_whole(run.out / "numerics.json", leaves)
    return 0


if __name__ == "__main__":
    sys.exit(main())
