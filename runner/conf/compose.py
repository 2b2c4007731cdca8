"""The one way from `conf/` and the command line to a Config. Nothing of Hydra leaves it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from runner.conf.files import groups, read_files
from runner.conf.origin import FREE_GROUPS, Origin, misplaced, refusal
from runner.conf.overrides import Override, read_overrides, refuse
from runner.conf.session import PRIMARY, hydra_session
from runner.config import Config
from runner.parse import Mistake, ParseError, parse
from runner.validate import mistakes_in


def compose(conf: Path, overrides: Sequence[str]) -> Config:
    """Compose conf/ and the command line's words into a Config. Raises ConfigError with every mistake."""
    return Composer(conf).compose(overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """What a choice of options says together, before the command line's values."""

    composed: DictConfig
    choices: dict[str, str]
    origin: Origin


class Composer:
    """A conf/ that is read once: the many configs of a sweep differ in a few values."""

    def __init__(self, conf: Path) -> None:
        self.groups = groups(conf)
        self._conf = conf
        self._files = read_files(conf)
        self._known: dict[tuple[str, ...], _Chosen] = {}

    def compose(self, overrides: Sequence[str]) -> Config:
        """Return the config of the command line's words. Raises ConfigError with every mistake."""
        words = read_overrides(overrides, self.groups)
        chosen = self._chosen(tuple(word.text for word in words if word.is_group))
        origin = chosen.origin
        if refusals := list(misplaced(words, origin)):
            raise refuse(refusals, overrides)
        tree = _overridden(self._conf, deepcopy(chosen.composed), [word.text for word in words if not word.is_group])
        mistakes: list[Mistake] = []
        typed = _typed_as_defaults(tree, words, origin, mistakes)
        try:
            config = parse(Config, _without_open(_spelled(typed)))
            mistakes += [*mistakes_in(config), *_misnamed(config, chosen.choices)]
        except ParseError as error:
            mistakes += error.mistakes
        if mistakes:
            raise refuse([refusal(mistake, words, origin) for mistake in mistakes], overrides)
        return config

    def _chosen(self, texts: tuple[str, ...]) -> _Chosen:
        if texts not in self._known:
            with hydra_session(self._conf) as hydra:
                composed = hydra.compose_config(PRIMARY, list(texts), RunMode.RUN, from_shell=False)
                choices = dict(composed.hydra.runtime.choices)
                with open_dict(composed):
                    del composed["hydra"]
            tree = _plain(composed, resolve=False)
            origin = Origin(conf=self._conf, files=self._files, chosen=list(texts), choices=choices, tree=tree)
            self._known[texts] = _Chosen(composed=composed, choices=choices, origin=origin)
        return self._known[texts]


def _overridden(conf: Path, composed: DictConfig, texts: list[str]) -> dict[str, Any]:
    """Return the tree with the command line's values laid over it as Hydra does, every interpolation resolved."""
    with hydra_session(conf):
        # Composing once more with these words gives the same, at twice the time.
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(texts), composed)  # noqa: SLF001
        return _plain(composed, resolve=True)


def _plain(composed: DictConfig, *, resolve: bool) -> dict[str, Any]:
    tree = OmegaConf.to_container(composed, resolve=resolve)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _typed_as_defaults(
    tree: Mapping[str, Any], words: Sequence[Override], origin: Origin, mistakes: list[Mistake]
) -> dict[str, Any]:
    """Return a tree in which the experiment's own hyperparameters have the types of their defaults."""
    typed = dict(tree)
    for group in FREE_GROUPS:
        if not isinstance(typed.get(group), Mapping):
            continue
        typed[group] = dict(typed[group])
        for key, value in typed[group].items():
            place = f"{group}.{key}"
            default = origin.value(place)
            is_free = default is None or str(default).startswith("${")
            if is_free or not any(word.kind == "set" and word.sets(place) for word in words):
                continue
            if type(default) is float and type(value) is int:
                typed[group][key] = float(value)
            elif type(default) is not type(value):
                what = f"expected {type(default).__name__}, found {type(value).__name__} {value!r}"
                mistakes.append(Mistake(place=place, what=what))
    return typed


def _spelled(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tree in which a command's words are texts: `- ${optim.lr}` is a number until then."""
    experiment = tree.get("experiment")
    command = experiment.get("command") if isinstance(experiment, Mapping) else None
    if not isinstance(experiment, Mapping) or not isinstance(command, list):
        return tree
    words = [json.dumps(word) if isinstance(word, int | float) else word for word in command]
    return {**tree, "experiment": {**experiment, "command": words}}


def _without_open(tree: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = {key: _without_open(item) if isinstance(item, Mapping) else item for key, item in tree.items()}
    return {key: item for key, item in cleaned.items() if not isinstance(item, str) or item != "???"}


def _misnamed(config: Config, choices: Mapping[str, str]) -> Iterator[Mistake]:
    """Yield the groups whose name is not their file's: runs and locks are called by it."""
    for group in ("experiment", "hardware", "image", "precision"):
        name = getattr(config, group).name
        if name != choices.get(group):
            yield Mistake(
                place=f"{group}.name", what=f"expected {choices.get(group)!r}, its file's name, found {name!r}"
            )
