"""Hydra's own words on the command line, --cfg, --info and -sc, answered by Hydra's own code."""

import io
import logging
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.types import RunMode
from omegaconf import OmegaConf

from runner.conf.files import groups, read_files
from runner.conf.overrides import read_overrides
from runner.conf.session import PRIMARY, hydra_session
from runner.errors import ConfigError, XrunError
from runner.parse import nearest

_SHELL_WORD = re.compile(r"(un)?install=(bash|zsh|fish)")
_TAKING_OVERRIDES = ("run", "lock")


def show_config(conf: Path, overrides: Sequence[str], kind: str, *, package: str | None, resolve: bool) -> str:
    """Return the composed config as YAML, not yet typed. `kind` is job, hydra or all; `package` a key in it."""
    _check(conf, overrides)
    if package is not None and package != "_global_":
        _require_package(show_config(conf, overrides, kind, package=None, resolve=False), package)
    printed = io.StringIO()
    # Hydra's own node is shown, never locked: it may say the time.
    with hydra_session(conf, foreign=kind != "job") as hydra, redirect_stdout(printed):
        hydra.show_cfg(PRIMARY, list(overrides), kind, package, resolve)
    return printed.getvalue()


def _check(conf: Path, overrides: Sequence[str]) -> None:
    read_files(conf)
    read_overrides(overrides, groups(conf))


def _require_package(shown: str, package: str) -> None:
    """Refuse a package that is not there; Hydra would end the process."""
    tree = OmegaConf.create(shown)
    keys = package.split(".")
    for depth in range(len(keys)):
        above = OmegaConf.select(tree, ".".join(keys[:depth])) if depth else tree
        if not OmegaConf.is_dict(above) or keys[depth] not in above:
            near = nearest(keys[depth], map(str, above)) if OmegaConf.is_dict(above) else None
            meant = f"; did you mean {'.'.join([*keys[:depth], near])}?" if near else ""
            raise ConfigError(f"--package {package}: no such key{meant}")


def show_info(conf: Path, overrides: Sequence[str], info: str) -> str:
    """Return how the config is made. `info` is all, config, defaults, defaults-tree, plugins or searchpath."""
    _check(conf, overrides)
    printed = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with hydra_session(conf) as hydra, redirect_stdout(printed):
            if info != "plugins":
                # What fails here is one message; inside show_info it would be Hydra's, and the process's end.
                hydra.compose_config(PRIMARY, list(overrides), RunMode.RUN, from_shell=False)
            hydra.show_info(info, PRIMARY, list(overrides))
    finally:
        # Hydra prints these by logging.
        root.handlers[:] = handlers
        root.setLevel(level)
    return printed.getvalue()


def completion_script(word: str) -> str:
    """Return what a shell evaluates to complete xrun's words; `word` is install= or uninstall= a shell."""
    if _SHELL_WORD.fullmatch(word) is None:
        raise ConfigError(
            f"-sc {word}: expected install= or uninstall= one of bash, zsh, fish",
            hint='eval "$(xrun -sc install=bash)"',
        )
    printed = io.StringIO()
    with hydra_session(Path.cwd()) as hydra, redirect_stdout(printed):  # reads nothing: any folder will do
        hydra.shell_completion(None, [word])
    return printed.getvalue()


def completions(conf: Path | None, line: str, commands: Sequence[str]) -> list[str]:
    """Return the words that may stand at the end of a command line. A line that cannot be read has none.

    Outside a project (conf is None) these are the commands alone.
    """
    *before, word = line.split()[1:] + [""] * line.endswith((" ", "\t")) or [""]
    found = [] if before else [command for command in commands if command.startswith(word)]
    takes_overrides = not before or before[0] in _TAKING_OVERRIDES or before[0] not in commands
    if conf is not None and takes_overrides and not word.startswith("-"):
        found += _override_completions(conf, [earlier for earlier in before if "=" in earlier], word)
    return sorted(set(found))


def _override_completions(conf: Path, before: list[str], word: str) -> list[str]:
    try:
        _check(conf, before)
        with hydra_session(conf) as hydra:
            plugin = BashCompletion(hydra.config_loader)
            found = plugin._query(PRIMARY, " ".join([*before, word]))  # noqa: SLF001, `query` prints for bash alone
    except XrunError:
        return []
    return [choice for choice in found if not choice.lstrip("+~").startswith("hydra")]
