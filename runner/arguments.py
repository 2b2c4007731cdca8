"""The options of each command, as values."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from runner.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments:
    """Options of `xrun run`."""

    overrides: tuple[str, ...]
    locked: bool
    frozen: bool
    offline: bool
    dry_run: bool
    detach: bool
    """Whether to leave a run that a cluster has taken to it."""
    cfg: str | None
    resolve: bool
    package: str | None
    info: str | None
    multirun: bool
    """A sweep: words may give several values."""
    force: bool
    """Run trials again that are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockArguments:
    """Options of `xrun lock`."""

    overrides: tuple[str, ...]
    check: bool
    upgrade: str | None
    """What may move to the newest: 'all', 'image', or nothing."""
    offline: bool


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint="xrun --help")


def run_arguments(argv: Sequence[str]) -> RunArguments:
    """Read the words of `xrun run`. Raises ConfigError."""
    parser = _parser("run")
    parser.add_argument("overrides", nargs="*")
    uses = parser.add_mutually_exclusive_group()
    uses.add_argument("--locked", action="store_true")
    uses.add_argument("--frozen", action="store_true")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    info = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=info)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--force", action="store_true")
    words = vars(parser.parse_intermixed_args(list(argv)))
    if words["force"] and not words["multirun"]:
        hint = f"xrun {shlex.join(word for word in argv if word != '--force')}"
        raise ConfigError("--force: one run always runs; only trials of a sweep that are done are skipped", hint=hint)
    if words["detach"] and words["multirun"]:
        hint = f"xrun {shlex.join(word for word in argv if word != '--detach')}"
        raise ConfigError(
            "--detach: a sweep starts its trials as it goes; on SLURM, Ctrl-C leaves them to it", hint=hint
        )
    return RunArguments(**words | {"overrides": tuple(words["overrides"])})


def lock_arguments(argv: Sequence[str]) -> LockArguments:
    """Read the words of `xrun lock`. Raises ConfigError."""
    parser = _parser("lock")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--upgrade", nargs="?", const="all", choices=("all", "image"))
    parser.add_argument("--offline", action="store_true")
    words = vars(parser.parse_intermixed_args(list(argv)))
    return LockArguments(**words | {"overrides": tuple(words["overrides"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayArguments:
    """Options of `xrun replay`."""

    run: str
    engine: Literal["auto", "docker", "embedded", "host"]
    keep_going: bool
    offline: bool
    segments: int | None
    """Stretches that are replayed side by side."""
    spot: int | None
    """Stretches that are picked by chance."""
    ranks: int | None
    allow_hardware: bool


def replay_arguments(argv: Sequence[str]) -> ReplayArguments:
    """Read the words of `xrun replay`. Raises ConfigError."""
    parser = _parser("replay")
    parser.add_argument("run")
    parser.add_argument("--engine", choices=("auto", "docker", "embedded", "host"), default="auto")
    parser.add_argument("--keep-going", action="store_true")
    parser.add_argument("--offline", action="store_true")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--segments", type=_count)
    parts.add_argument("--spot", type=_count)
    parser.add_argument("--ranks", type=_count)
    parser.add_argument("--allow-hardware", action="store_true")
    return ReplayArguments(**vars(parser.parse_args(list(argv))))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text!r}")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeArguments:
    """Options of `xrun resume`."""

    run: str
    engine: Literal["auto", "docker", "embedded", "host"]
    offline: bool
    detach: bool
    """Whether to leave a run that a cluster has taken to it."""


def resume_arguments(argv: Sequence[str]) -> ResumeArguments:
    """Read the words of `xrun resume`. Raises ConfigError."""
    parser = _parser("resume")
    parser.add_argument("run")
    parser.add_argument("--engine", choices=("auto", "docker", "embedded", "host"), default="auto")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--detach", action="store_true")
    return ResumeArguments(**vars(parser.parse_args(list(argv))))


@dataclass(frozen=True, slots=True, kw_only=True)
class BisectArguments:
    """Options of `xrun bisect`."""

    run: str
    other: str
    engine: Literal["auto", "docker", "embedded", "host"]
    offline: bool


def bisect_arguments(argv: Sequence[str]) -> BisectArguments:
    """Read the words of `xrun bisect`. Raises ConfigError."""
    parser = _parser("bisect")
    parser.add_argument("run")
    parser.add_argument("other")
    parser.add_argument("--engine", choices=("auto", "docker", "embedded", "host"), default="auto")
    parser.add_argument("--offline", action="store_true")
    return BisectArguments(**vars(parser.parse_args(list(argv))))


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepArguments:
    """Options of `xrun sweep`."""

    verb: Literal["ls", "show", "stop", "resume"]
    sweep: str
    json: bool
    force: bool
    offline: bool


def sweep_arguments(argv: Sequence[str]) -> SweepArguments:
    """Read the words of `xrun sweep`. Raises ConfigError."""
    parser = _parser("sweep")
    parser.set_defaults(sweep="last", json=False, force=False, offline=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    options = {"ls": ("--json",), "show": ("--json",), "stop": (), "resume": ("--force", "--offline")}
    for verb, own in options.items():
        of_verb = verbs.add_parser(verb, add_help=False, allow_abbrev=False)
        if verb != "ls":
            of_verb.add_argument("sweep")
        for option in own:
            of_verb.add_argument(option, action="store_true")
    return SweepArguments(**vars(parser.parse_args(list(argv))))


def stop_arguments(argv: Sequence[str]) -> str:
    """Read the words of `xrun stop`: the run. Raises ConfigError."""
    parser = _parser("stop")
    parser.add_argument("run")
    return str(parser.parse_args(list(argv)).run)


def ps_arguments(argv: Sequence[str]) -> None:
    """Read the words of `xrun ps`, which has none. Raises ConfigError."""
    _parser("ps").parse_args(list(argv))


def trace_arguments(argv: Sequence[str]) -> tuple[str, int | None]:
    """Read the words of `xrun trace`: the run, and the one step that is asked for. Raises ConfigError."""
    parser = _parser("trace")
    parser.add_argument("run")
    parser.add_argument("--step", type=int)
    words = parser.parse_args(list(argv))
    return words.run, words.step


def list_arguments(argv: Sequence[str]) -> bool:
    """Read the words of `xrun ls`: whether as JSON. Raises ConfigError."""
    parser = _parser("ls")
    parser.add_argument("--json", action="store_true")
    return bool(parser.parse_args(list(argv)).json)


def show_arguments(argv: Sequence[str]) -> tuple[str, bool]:
    """Read the words of `xrun show`: the run, and whether as JSON. Raises ConfigError."""
    parser = _parser("show")
    parser.add_argument("run")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args(list(argv))
    return words.run, words.json


def logs_arguments(argv: Sequence[str]) -> tuple[str, bool]:
    """Read the words of `xrun logs`: the run, and whether to follow it. Raises ConfigError."""
    parser = _parser("logs")
    parser.add_argument("run")
    parser.add_argument("--follow", "-f", action="store_true")
    words = parser.parse_args(list(argv))
    return words.run, words.follow


def image_arguments(argv: Sequence[str]) -> tuple[str, str | None]:
    """Read the words of `xrun image`: the verb, and a recipe's name or an image's digest. Raises ConfigError."""
    parser = _parser("image")
    parser.add_argument("verb", choices=("build", "ls", "verify"))
    parser.add_argument("name", nargs="?")
    words = parser.parse_args(list(argv))
    return words.verb, words.name


def _parser(command: str) -> _Parser:
    return _Parser(prog=f"xrun {command}", add_help=False, allow_abbrev=False)
