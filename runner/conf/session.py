"""Hydra, opened on `conf/` and on nothing else: no plugins, no environment, no files written, no tracebacks."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError
from yaml.reader import ReaderError

from runner.conf.files import groups
from runner.errors import ConfigError, XrunError

PRIMARY = "config"
"""conf/config.yaml, as Hydra calls it."""

_SECRET = ("oc.env", "env")
_OF_THIS_MACHINE = (*_SECRET, "now", "hydra", "python_version")
"""Resolvers that answer with what only this machine or this moment knows."""


@contextmanager
def hydra_session(conf: Path, *, foreign: bool = False) -> Iterator[Hydra]:
    """Open Hydra on a folder until the block ends. What goes wrong in the block is a ConfigError.

    The machine's environment never resolves; its clock and Hydra's own node only where foreign values are allowed.
    """
    # Hydra imports this package, the working folder's included, and runs what it finds there.
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins")).__path__ = []
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            warnings.simplefilter("ignore")  # of Hydra's upgrades, which are ours to make
            for name in _SECRET if foreign else _OF_THIS_MACHINE:
                OmegaConf.clear_resolver(name)
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            yield hydra
    except XrunError:
        raise
    except Exception as error:  # Hydra answers a bad file with whatever its code stumbles over
        raise _config_error(error, conf) from error


def _config_error(error: Exception, conf: Path) -> ConfigError:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = str(cause).strip().splitlines() or [type(error).__name__]
    if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
        mark = cause.problem_mark
        return ConfigError(f"{_shown(mark.name, conf)}:{mark.line + 1}:{mark.column + 1}: {cause.problem}")
    if isinstance(cause, ReaderError):
        return ConfigError(f"{_shown(str(cause.name), conf)}: character {cause.position}: {cause.reason}")
    if isinstance(cause, OmegaConfBaseException):
        place = f"{cause.full_key}: " if cause.full_key else ""
        return ConfigError(f"{place}{_reason(lines[0])}")
    if isinstance(cause, HydraException):
        return _composition_error(lines, conf)
    kind = "" if isinstance(cause, ValueError) else f"Hydra cannot compose these files: {type(cause).__name__}: "
    return ConfigError(f"{conf.name}/: {kind}{lines[0]}")


def _reason(line: str) -> str:
    resolver = line.removeprefix("Unsupported interpolation type ")
    if resolver in _OF_THIS_MACHINE:
        return f"${{{resolver}:…}} does not resolve: a secret or this machine's environment must not reach a lock"
    return "unknown key" if line.endswith("is not in struct") else line


def _composition_error(lines: list[str], conf: Path) -> ConfigError:
    open_group = lines[0].removeprefix("You must specify '").partition("'")[0]
    if options := groups(conf).get(open_group):
        return ConfigError(
            f"no {open_group} chosen; {conf.name}/{open_group}/ has {', '.join(options)}",
            hint=f"xrun {open_group}={'resnet50' if 'resnet50' in options else options[0]}",
        )
    if lines[0].startswith("Multiple values for "):
        group = lines[0].removeprefix("Multiple values for ").partition(".")[0]
        return ConfigError(f"{group}: chosen twice; a group that has a default is set without a +")
    return ConfigError(f"{conf.name}/: {lines[0]}")


def _shown(file: str, conf: Path) -> str:
    path = Path(file)
    return path.relative_to(conf.resolve().parent).as_posix() if path.is_relative_to(conf.resolve().parent) else file
