"""The commands: each constructs the edges it needs and calls its verb. Data on stdout, all else on stderr."""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner import arguments
from runner.errors import ConfigError
from runner.listing import follow_log, list_runs, show_run
from runner.project import find_project, home, leases
from runner.store import Run, RunStore
from runner.sweep_listing import list_sweeps, show_sweep
from runner.sweeps import SweepStore

if TYPE_CHECKING:
    from runner.prepare import Workshop
    from runner.slurm.client import Slurm


def say(line: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(line + "\n")


def run(argv: Sequence[str]) -> int:
    """Run an experiment in exactly its locked image."""
    words = arguments.run_arguments(argv)
    if words.multirun and words.cfg is None and words.info is None:
        from runner.sweep_command import run_sweep  # noqa: PLC0415, it imports what `ls` need not pay for

        return run_sweep(_workshop(), words, tuple(argv))
    from runner.run_command import run_experiment  # noqa: PLC0415, as above

    return run_experiment(_workshop(), words, tuple(argv))


def lock(argv: Sequence[str]) -> int:
    """Pin image, hardware, data and hyperparameters of an experiment."""
    from runner.lock_command import lock_experiment  # noqa: PLC0415, as above

    return lock_experiment(_workshop(), arguments.lock_arguments(argv))


def _workshop() -> "Workshop":
    from runner.images.store import ImageStore  # noqa: PLC0415, as above
    from runner.prepare import Workshop  # noqa: PLC0415, as above

    home_folder = home(os.environ)
    project = find_project(Path.cwd())
    return Workshop(project=project, home=home_folder, images=ImageStore(home_folder), say=say)


def ls(argv: Sequence[str]) -> int:
    """List runs."""
    as_json = arguments.list_arguments(argv)
    sys.stdout.write(list_runs(_runs(), as_json=as_json, seen=_seen))
    return 0


def show(argv: Sequence[str]) -> int:
    """Show one run."""
    run_id, as_json = arguments.show_arguments(argv)
    sys.stdout.write(show_run(_runs(), run_id, as_json=as_json, seen=_seen))
    return 0


def logs(argv: Sequence[str]) -> int:
    """Print what a run printed."""
    run_id, follow = arguments.logs_arguments(argv)

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    follow_log(_runs(), run_id, follow=follow, write=write, seen=_seen)
    return 0


@functools.cache
def _slurm() -> "Slurm":
    from runner.slurm.client import Slurm  # noqa: PLC0415, as above

    return Slurm()


def _seen(runs: Sequence[Run]) -> list[Run]:
    """Return runs with what SLURM says of those that it has; nothing is asked where it has none."""
    if all(run.status != "submitted" for run in runs):
        return list(runs)
    from runner.slurm.placement import seen  # noqa: PLC0415, as above

    return seen(runs, _slurm(), say)


def replay(argv: Sequence[str]) -> int:
    """Run a run again and compare every step."""
    from runner.replay_command import replay_run  # noqa: PLC0415, as above

    return replay_run(_workshop(), arguments.replay_arguments(argv), tuple(argv))


def resume(argv: Sequence[str]) -> int:
    """Go on with a run that was stopped."""
    from runner.resume_command import resume_run  # noqa: PLC0415, as above

    return resume_run(_workshop(), arguments.resume_arguments(argv), tuple(argv))


def stop(argv: Sequence[str]) -> int:
    """End a run after its step, with a checkpoint."""
    from runner.stop_command import stop_run  # noqa: PLC0415, as above

    return stop_run(_workshop(), arguments.stop_arguments(argv))


def ps(argv: Sequence[str]) -> int:
    """Show the slots of this machine, and who holds them."""
    from runner.ps_command import print_slots  # noqa: PLC0415, as above

    arguments.ps_arguments(argv)
    return print_slots(leases(os.environ))


def bisect(argv: Sequence[str]) -> int:
    """Find the step in which two runs part, and what computed other bits in it."""
    from runner.bisect_command import bisect_runs  # noqa: PLC0415, as above

    return bisect_runs(_workshop(), arguments.bisect_arguments(argv), tuple(argv))


def trace(argv: Sequence[str]) -> int:
    """Print what each step of a run computed."""
    from runner.trace_command import print_trace  # noqa: PLC0415, as above

    print_trace(_runs(), *arguments.trace_arguments(argv), sys.stdout.write)
    return 0


def sweep(argv: Sequence[str]) -> int:
    """List, show or stop sweeps, or go on with one."""
    words = arguments.sweep_arguments(argv)
    project = find_project(Path.cwd())
    store, sweeps = RunStore(project.runs), SweepStore(project.sweeps)
    if words.verb == "ls":
        sys.stdout.write(list_sweeps(store, sweeps, as_json=words.json, seen=_seen))
    elif words.verb == "show":
        sys.stdout.write(show_sweep(store, sweeps, words.sweep, as_json=words.json, seen=_seen))
    elif words.verb == "stop":
        from runner.sweep_stop import stop_sweep  # noqa: PLC0415, as above

        stop_sweep(store, sweeps, words.sweep, say)
    else:
        from runner.sweep_command import resume_sweep  # noqa: PLC0415, as above

        return resume_sweep(_workshop(), words, ("sweep", *argv))
    return 0


def _runs() -> RunStore:
    return RunStore(find_project(Path.cwd()).runs)


def image(argv: Sequence[str]) -> int:
    """Build, list or deep-check images."""
    from runner import image_command  # noqa: PLC0415, as above

    verb, name = arguments.image_arguments(argv)
    verbs = {"build": image_command.build, "ls": image_command.ls, "verify": image_command.verify}
    return verbs[verb](_workshop(), name)


def complete(argv: Sequence[str]) -> int:
    """Answer a shell: print the script that completes xrun's words, or the words that may come next."""
    from runner.conf.words import completion_script, completions  # noqa: PLC0415, as above

    what, _, shell = (argv[0] if argv else "").partition("=")
    if what != "query":
        sys.stdout.write(completion_script("".join(argv[:1])))
        return 0
    line = os.environ.get("COMP_LINE", "")
    try:
        conf = find_project(Path.cwd()).conf
    except ConfigError:
        conf = None
    words = completions(conf, line[: int(os.environ.get("COMP_POINT", len(line)))], tuple(COMMANDS))
    sys.stdout.write((" " if shell == "bash" else "\n").join(words) + "\n")
    return 0


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "lock": lock,
    "ls": ls,
    "show": show,
    "logs": logs,
    "replay": replay,
    "resume": resume,
    "stop": stop,
    "ps": ps,
    "bisect": bisect,
    "trace": trace,
    "image": image,
    "sweep": sweep,
}
