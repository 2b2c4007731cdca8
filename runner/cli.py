"""The command line: words in, exit codes out. What each command does stands in `commands`."""

import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType

from runner.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_TERMINATED, ConfigError, XrunError

USAGE = """\
xrun experiment=<name> [key=value …]     run an experiment in exactly its locked image

Commands:
  run    [key=value …]      the same; `run` may be left out
  lock   [key=value …]      pin image, hardware, data and hyperparameters in lock/
  ls                        list runs
  show   <run-id>           show one run
  logs   <run-id> [-f]      print what a run printed
  ps                        this machine's slots, and who holds them
  stop   <run-id>           end a run after its step, with a checkpoint, wherever it runs
  resume <run-id>           go on with a run that was stopped, from its newest checkpoint; take up
                            one whose xrun was killed
  replay <run-id>           run it again from its stored spec and source; compare every step
  bisect <run-id> <run-id>  the step in which two runs part, and the operator that computed other bits in it
  trace  <run-id>           print what each step computed
  -m     [key=a,b …]        a sweep: every combination of the values, or what sweep=optuna picks
  sweep  ls|show|stop|resume  sweeps, and the trials of one
  image  build|ls|verify    build, list, deep-check images

Run options:
  --locked       fail if the lock is missing or out of date
  --frozen       use the lock without comparing it with conf/
  --offline      touch no network
  --dry-run      print what would run (with scheduler=slurm, the batch script), and run nothing
  --detach       with scheduler=slurm: submit, and do not wait
  --force        (sweeps) run trials again that are done
  --cfg job|hydra|all [--resolve] [--package P]     print the config
  --info [all|config|defaults|defaults-tree|plugins|searchpath]
Lock options:
  --check        fail unless the lock is up to date; write nothing
  --upgrade [image]     move every pin, or the image's alone, to the newest
Replay options (the first and the last also for resume and bisect):
  --engine auto|docker|embedded|host
  --keep-going   do not stop at the first difference
  --segments N   N stretches between checkpoints, side by side
  --spot K       K stretches between checkpoints, picked by chance
  --ranks W      on W processes; from the level elastic on
  --allow-hardware      compare on other hardware than the level speaks of; never says `identical`
  --offline      touch no network
Other options:
  --step N       (trace) one step, with the digest of each tensor that it looked at
  --json         (ls, show, sweep ls, sweep show) for scripts
  -sc install=bash|zsh|fish     tab completion: eval "$(xrun -sc install=bash)"
  --help, --version

A run id may be shortened to any unique beginning; `last` is the newest run.
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the run is stopped and recorded as on Ctrl-C."""


def main() -> None:
    """Run the command that was typed and exit with its code."""
    signal.signal(signal.SIGTERM, _raise_terminated)
    signal.signal(signal.SIGHUP, _raise_terminated)
    sys.exit(_exit_code(sys.argv[1:]))


def _raise_terminated(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _exit_code(argv: Sequence[str]) -> int:
    try:
        return _command(argv)
    except XrunError as error:
        _complain(str(error))
        return error.exit_code
    except Terminated:
        _complain("terminated")
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `xrun ls | head` is no mistake
        sys.stderr.close()
        return 0
    except Exception:  # noqa: BLE001, the one place where a bug in xrun ends
        import traceback  # noqa: PLC0415, as below

        traceback.print_exc()
        _complain("this is a bug in xrun; the lines above say where")
        return EXIT_BUG


def _complain(message: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\nerror: {message}\n" if sys.stderr.isatty() else f"error: {message}\n")


def _command(argv: Sequence[str]) -> int:
    if not argv or argv[0] in {"-h", "--help", "help"}:
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        import importlib.metadata  # noqa: PLC0415, as below

        sys.stdout.write(f"xrun {importlib.metadata.version('xrun')}\n")
        return 0
    # Everything else costs imports that help need not pay.
    from runner import commands  # noqa: PLC0415

    word = argv[0]
    if word in {"-sc", "--shell-completion"}:
        return commands.complete(argv[1:])
    if word in commands.COMMANDS:
        return commands.COMMANDS[word](argv[1:])
    if "=" in word or word.startswith(("-", "+", "~")):
        return commands.run(argv)
    raise _unknown_command(word, commands.COMMANDS)


def _unknown_command(word: str, known: Iterable[str]) -> XrunError:
    from runner.parse import nearest  # noqa: PLC0415, as above

    near = nearest(word, known)
    meant = f"; did you mean {near}?" if near else ""
    return ConfigError(f"unknown command {word!r}{meant}", hint="xrun --help")
