"""Samplers and pruners by the names that people write: made of Optuna's classes, with options held against them."""

import hashlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from runner.errors import ConfigError
from runner.options import checked_options
from runner.parse import Scalar
from runner.space import Dimension, SearchSettings

_SAMPLERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tpe": ("TPESampler", ()),
    "gp": ("GPSampler", ("scipy", "torch")),
    "cmaes": ("CmaEsSampler", ("cmaes",)),
    "qmc": ("QMCSampler", ("scipy",)),
    "random": ("RandomSampler", ()),
    "nsga2": ("NSGAIISampler", ()),
    "nsga3": ("NSGAIIISampler", ()),
    "bruteforce": ("BruteForceSampler", ()),
}
"""Each sampler's class, and the packages that Optuna leaves to its users."""
_PRUNERS: Mapping[str, str] = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "hyperband": "HyperbandPruner",
    "successive-halving": "SuccessiveHalvingPruner",
    "patient": "PatientPruner",
    "threshold": "ThresholdPruner",
}
_NOT_ASKED = frozenset(
    {
        "seed",
        "consider_prior",
        "prior_weight",
        "consider_magic_clip",
        "consider_endpoints",
        "warn_independent_sampling",
        "warn_asynchronous_seeding",
    }
)
"""Options that are ours to give, or that Optuna is about to drop."""


def refuse_what_cannot_be_searched(space: Sequence[Dimension], asked: SearchSettings) -> None:
    """Raise ConfigError where sampler, pruner, objectives and space do not fit together, or a package is missing."""
    if not space:
        raise ConfigError("a search needs a key to vary", hint="xrun -m sweep=optuna 'optim.lr=interval(1e-4,1e-1)'")
    objectives = len(asked.directions)
    if objectives > 1 and asked.pruner != "none":
        what = f"pruner {asked.pruner} compares trials by one objective, found {objectives}"
        raise ConfigError(what, hint="xrun -m sweep=optuna sweep.pruner=none")
    if objectives > 1 and asked.sampler == "cmaes":
        raise ConfigError(
            f"sampler cmaes knows one objective, found {objectives}", hint="xrun -m sweep=optuna sweep.sampler=nsga2"
        )
    uncountable = next((dimension.name for dimension in space if dimension.size is None), None)
    if asked.sampler == "bruteforce" and uncountable is not None:
        raise ConfigError(
            f"sampler bruteforce goes through all values, and those of {uncountable} cannot be counted",
            hint=f"xrun -m sweep=optuna sweep.sampler=bruteforce '{uncountable}=range(1,9,2)'",
        )
    missing = [package for package in _SAMPLERS[asked.sampler][1] if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"sampler {asked.sampler} needs what is not installed: {', '.join(missing)}",
            hint=f"pip install {' '.join(missing)}",
        )


def sampler(optuna: ModuleType, asked: SearchSettings, number: int) -> Any:
    """Return the sampler that picks the trial of a number, and no other."""
    own: dict[str, Any] = {"seed": _seed(asked.seed, number)}
    if asked.sampler == "tpe":
        own |= {"constant_liar": True, "multivariate": len(asked.directions) == 1}
    elif asked.sampler == "qmc":
        # One sequence for the whole study, in which each trial has its place.
        own |= {"independent_sampler": optuna.samplers.RandomSampler(own["seed"]), "seed": _seed(asked.seed)}
    kind = getattr(optuna.samplers, _SAMPLERS[asked.sampler][0])
    return _made(kind, asked.sampler, "sweep.sampler_options", asked.sampler_options, own)


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4])


def pruner(optuna: ModuleType, asked: SearchSettings) -> Any:
    """Return a pruner that has seen nothing yet: what it needs to know of a study it reads there."""
    options = dict(asked.pruner_options)
    own: dict[str, Any] = {}
    if asked.pruner == "patient":
        own["wrapped_pruner"], options = _wrapped(optuna, options)
    return _made(_pruner_class(optuna, asked.pruner), asked.pruner, "sweep.pruner_options", options, own)


def _wrapped(optuna: ModuleType, options: dict[str, Scalar]) -> tuple[Any, dict[str, Scalar]]:
    """Return the pruner that is made patient, and what is left of the options: those of both stand side by side."""
    name = options.pop("wrapped_pruner", "none")
    if name not in _PRUNERS or name == "patient":
        names = ", ".join(known for known in _PRUNERS if known != "patient")
        raise ConfigError(f"sweep.pruner_options.wrapped_pruner: expected one of {names}, found {name!r}")
    own = set(inspect.signature(_pruner_class(optuna, "patient")).parameters)
    others = {key: value for key, value in options.items() if key not in own}
    left = {key: value for key, value in options.items() if key in own}
    if name == "none":
        return None, options
    return _made(_pruner_class(optuna, str(name)), str(name), "sweep.pruner_options", others, {}), left


def _pruner_class(optuna: ModuleType, name: str) -> Any:
    return getattr(optuna.pruners, _PRUNERS[name])


def _made(kind: Any, name: str, place: str, given: Mapping[str, Scalar], own: Mapping[str, Any]) -> Any:
    options = checked_options(name, place, inspect.signature(kind), given, without=_NOT_ASKED)
    try:
        return kind(**{**own, **options})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: {error}") from error
