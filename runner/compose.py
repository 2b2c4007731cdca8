"""The one way from `conf/` and the command line to a Config. Nothing of Hydra leaves this module."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from runner.conf_files import Files, groups, holds, read_files
from runner.config import Config
from runner.errors import ConfigError
from runner.hydra_session import PRIMARY, hydra_session
from runner.overrides import Override, Refusal, read_overrides, refuse
from runner.parse import Mistake, ParseError, nearest, parse
from runner.validate import mistakes_in

_FREE_GROUPS = ("model", "optim", "data")
"""The experiment's own hyperparameters: a key's type is that of its default in conf/."""


def compose(conf: Path, overrides: Sequence[str]) -> Config:
    """Compose conf/ and the command line's words into a Config. Raises ConfigError with every mistake."""
    files = read_files(conf)
    words = read_overrides(overrides, groups(conf))
    with hydra_session(conf) as hydra:
        base = _load(hydra, [word.text for word in words if word.is_group])
    origin = _Origin(folder=conf.name, files=files, base=base)
    if refusals := list(_misplaced(words, origin)):
        raise refuse(refusals, overrides)
    with hydra_session(conf) as hydra:
        tree = _load(hydra, [word.text for word in words], resolve=True).tree
    mistakes: list[Mistake] = []
    typed = _typed_as_defaults(tree, words, origin, mistakes)
    try:
        config = parse(Config, _without_open(typed))
        mistakes += [*mistakes_in(config), *_misnamed(config, base.choices)]
    except ParseError as error:
        mistakes += error.mistakes
    if mistakes:
        raise refuse([_refusal(mistake, words, origin) for mistake in mistakes], overrides)
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class _Composed:
    """What Hydra made of conf/ and some words."""

    tree: dict[str, Any]
    choices: Mapping[str, str]
    """Option of each group."""
    parts: tuple[tuple[str, tuple[str, ...]], ...]
    """Each file that was laid over the ones before it, and the key that its content stands below."""


def _load(hydra: Hydra, texts: list[str], *, resolve: bool = False) -> _Composed:
    composed = hydra.compose_config(PRIMARY, texts, RunMode.RUN, from_shell=False)
    choices = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    tree = OmegaConf.to_container(composed, resolve=resolve)
    assert isinstance(tree, dict)
    defaults = hydra.config_loader.compute_defaults_list(PRIMARY, texts, RunMode.RUN).defaults
    parts = tuple((part.config_path, _keys((part.package or "").replace("_global_", ""))) for part in defaults)
    return _Composed(tree={str(key): value for key, value in tree.items()}, choices=choices, parts=parts)


def _keys(place: str) -> tuple[str, ...]:
    """Split a dotted key: `experiment.data[0]` is experiment, data, 0."""
    return tuple(key for key in re.split(r"[.\[\]]", place) if key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """Where keys come from before the command line."""

    folder: str
    files: Files
    base: _Composed

    def value(self, place: str) -> object:
        """Return the value that conf/ gives a key, None where it gives none."""
        value: object = self.base.tree
        for key in _keys(place):
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value == "???" else value

    def file(self, place: str) -> str:
        """Return the file where a key stands, or where it should."""
        keys = _keys(place)
        while keys and (name := self._holder(keys)) is None:
            keys = keys[:-1]
        # What config.yaml leaves open is for the experiment to say.
        if not keys or (name == PRIMARY and keys != _keys(place)):
            name = f"experiment/{self.base.choices['experiment']}"
        return f"{self.folder}/{name}.yaml"

    def _holder(self, keys: tuple[str, ...]) -> str | None:
        for name, below in reversed(self.base.parts):
            if keys[: len(below)] == below and holds(self.files, name, keys[len(below) :]):
                return name
        return None


def _misplaced(words: Sequence[Override], origin: _Origin) -> Iterator[Refusal]:
    """Yield the words whose key is not there to be set, or is there and cannot be added."""
    known = set(_places(origin.base.tree, ""))
    added: list[Override] = []
    for word in words:
        if word.is_group:
            continue
        is_known = word.key in known or any(earlier.sets(word.key) for earlier in added)
        if word.kind in {"set", "delete"} and not is_known:
            yield _unknown(word, known, origin)
        if word.kind == "add" and is_known and origin.value(word.key) is not None:
            what = f"{word.text}: {word.key} is there already, in {origin.file(word.key)}; it is set without the +"
            yield Refusal(what=what, text=word.text, instead=word.text[1:])
        if word.kind in {"add", "force"}:
            added.append(word)


def _places(tree: object, above: str) -> Iterator[str]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        place = f"{above}{key}"
        yield place
        yield from _places(value, f"{place}.")


def _unknown(word: Override, known: set[str], origin: _Origin) -> Refusal:
    below = sorted(place for place in known if place.endswith(f".{word.key}"))
    meant = below[0] if below else nearest(word.key, sorted(known))
    what = f"{word.key}: unknown key in {origin.file(meant or word.key)}"
    what += f"; did you mean {meant}?" if meant else ""
    if word.kind == "set" and _keys(word.key)[0] in _FREE_GROUPS:
        what += f" To add a new key: +{word.text}"
    instead = word.text.replace(word.key, meant, 1) if meant else None
    return Refusal(what=what, text=word.text, instead=instead)


def _typed_as_defaults(
    tree: Mapping[str, Any], words: Sequence[Override], origin: _Origin, mistakes: list[Mistake]
) -> dict[str, Any]:
    """Return a tree in which the experiment's own hyperparameters have the types of their defaults."""
    typed = dict(tree)
    for group in _FREE_GROUPS:
        if not isinstance(typed.get(group), Mapping):
            continue
        typed[group] = dict(typed[group])
        for key, value in typed[group].items():
            place = f"{group}.{key}"
            default = origin.value(place)
            if default is None or not any(word.kind == "set" and word.sets(place) for word in words):
                continue
            if type(default) is float and type(value) is int:
                typed[group][key] = float(value)
            elif type(default) is not type(value) and not str(default).startswith("${"):
                what = f"expected {type(default).__name__}, found {type(value).__name__} {value!r}"
                mistakes.append(Mistake(place=place, what=what))
    return typed


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


def _refusal(mistake: Mistake, words: Sequence[Override], origin: _Origin) -> Refusal:
    """Say where a mistake stands: in a word of the command line, or in a file."""
    word = next((word for word in reversed(words) if word.sets(mistake.place)), None)
    file = origin.file(mistake.place)
    if word is None:
        return Refusal(what=f"{file}: {mistake}")
    default = origin.value(mistake.place)
    if default is None or isinstance(default, Mapping | list):
        return Refusal(what=str(mistake))
    return Refusal(what=f"{mistake} ({file} has {default})", text=word.text, instead=f"{mistake.place}={default}")
