"""Where each key of a config comes from, and what a message says about one that is wrong."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from runner.conf.files import Files, holds
from runner.conf.overrides import Override, Refusal
from runner.conf.session import PRIMARY, hydra_session
from runner.parse import Mistake, nearest

FREE_GROUPS = ("model", "optim", "data")
"""The experiment's own hyperparameters: new keys are welcome, and a key's type is that of its default."""

_MEANT = re.compile(r"; did you mean (\S+)\?$")


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached property
class Origin:
    """What conf/ says before the command line's values, and in which file."""

    conf: Path
    files: Files
    chosen: list[str]
    """Words that pick the groups' options."""
    choices: Mapping[str, str]
    """Option of each group."""
    tree: Mapping[str, Any]

    def value(self, place: str) -> object:
        """Return the value that conf/ gives a key, None where it gives none."""
        value: object = self.tree
        for key in _keys(place):
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value == "???" else value

    def file(self, place: str) -> str:
        """Return the file where a key stands, or where it should."""
        keys = asked = _keys(place)
        while keys and (name := self._holder(keys)) is None:
            keys = keys[:-1]
        # What config.yaml leaves open is for the experiment to say.
        if not keys or (name == PRIMARY and keys != asked):
            name = f"experiment/{self.choices['experiment']}"
        return f"{self.conf.name}/{name}.yaml"

    def _holder(self, keys: tuple[str, ...]) -> str | None:
        for name, below in reversed(self._parts):
            if keys[: len(below)] == below and holds(self.files, name, keys[len(below) :]):
                return name
        return None

    @cached_property
    def _parts(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each file that is laid over the ones before it, and the key that its content stands below."""
        with hydra_session(self.conf) as hydra:
            parts = hydra.config_loader.compute_defaults_list(PRIMARY, self.chosen, RunMode.RUN).defaults
            return [(part.config_path, _keys((part.package or "").replace("_global_", ""))) for part in parts]


def _keys(place: str) -> tuple[str, ...]:
    """Split a dotted key: `experiment.data[0]` is experiment, data, 0."""
    return tuple(key for key in re.split(r"[.\[\]]", place) if key)


def misplaced(words: Sequence[Override], origin: Origin) -> Iterator[Refusal]:
    """Yield the words whose key is not there to be set, or is there and cannot be added."""
    known = dict(_places(origin.tree, ""))
    added: list[Override] = []
    for word in words:
        if word.is_group:
            continue
        is_known = word.key in known or any(earlier.sets(word.key) for earlier in added)
        if word.kind in {"set", "delete"} and not is_known:
            yield _unknown(word, known, origin)
        if word.kind == "add" and origin.value(word.key) is not None:
            what = f"{word.text}: {word.key} is there already, in {origin.file(word.key)}; it is set without the +"
            yield Refusal(what=what, text=word.text, instead=word.text[1:])
        if word.kind in {"add", "force"}:
            added.append(word)


def _places(tree: object, above: str) -> Iterator[tuple[str, object]]:
    """Yield every dotted key of a tree with its value."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield f"{above}{key}", value
        yield from _places(value, f"{above}{key}.")


def _unknown(word: Override, known: Mapping[str, object], origin: Origin) -> Refusal:
    meant = _meant(word.key, sorted(place for place, value in known.items() if not isinstance(value, Mapping)))
    what = f"{word.key}: unknown key in {origin.file(meant or word.key)}"
    if meant:
        what += f"; did you mean {meant}?"
    else:
        above = word.key.rpartition(".")[0]
        beside = origin.value(above) if above else origin.tree
        what += f"; known keys: {', '.join(sorted(map(str, beside)))}" if isinstance(beside, Mapping) else ""
    if word.kind == "set" and word.key.startswith(tuple(f"{group}." for group in FREE_GROUPS)):
        what += f"{'' if meant else ';'} to add a new key: +{word.text}"
    return Refusal(what=what, text=word.text, instead=word.text.replace(word.key, meant, 1) if meant else None)


def _meant(key: str, known: Sequence[str]) -> str | None:
    """Return the key that was probably meant: beside it, or of another group if no group was said."""
    above, _, name = key.rpartition(".")
    by_name = {place.rpartition(".")[2]: place for place in reversed(known) if place.rpartition(".")[0] == above}
    if not by_name:
        return nearest(key, known)
    if not above:
        by_name = {place.rpartition(".")[2]: place for place in reversed(known)} | by_name
    near = nearest(name, by_name)
    return by_name[near] if near else None


def refusal(mistake: Mistake, words: Sequence[Override], origin: Origin) -> Refusal:
    """Say where a mistake stands: in a word of the command line, or in a file."""
    word = next((word for word in reversed(words) if word.sets(mistake.place)), None)
    file = origin.file(mistake.place)
    if word is None:
        return Refusal(what=f"{file}: {mistake}")
    default = origin.value(mistake.place)
    if default is None or isinstance(default, Mapping | list):
        return Refusal(what=str(mistake))
    meant = _MEANT.search(mistake.what)
    has = json.dumps(default) if isinstance(default, bool) else str(default)
    right = meant[1] if meant else has
    return Refusal(what=f"{mistake} ({file} has {has})", text=word.text, instead=f"{mistake.place}={right}")
