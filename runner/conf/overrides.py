"""The command line's `key=value` words, read by Hydra's own grammar; what one run cannot take is refused."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from antlr4 import CommonTokenStream, InputStream  # type: ignore[import-untyped]
from antlr4.error.ErrorListener import ErrorListener  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import OverrideType, ValueType
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from runner.errors import ConfigError
from runner.parse import nearest

_MAX_CHARACTERS = 4096
_MAX_DEPTH = 16

_KINDS: Mapping[OverrideType, Literal["set", "add", "force", "delete"]] = {
    OverrideType.CHANGE: "set",
    OverrideType.ADD: "add",
    OverrideType.FORCE_ADD: "force",
    OverrideType.DEL: "delete",
}

_OWN_WORDS = {
    "hydra/launcher": "where runs are placed is said by scheduler=local|slurm",
    "hydra/sweeper": "how trials are picked is said by `xrun -m … sweep=grid|optuna`",
    "hydra.sweeper": "how trials are picked is said by `xrun -m … sweep=grid|optuna`, sweep.trials and the like",
    "hydra.launcher": "where runs are placed is said by scheduler=local|slurm, side by side by sweep.jobs",
    "hydra.mode": "several runs are started by `xrun -m`",
    "hydra.run": "a run's folder is runs/<run-id>/",
    "hydra.sweep": "a sweep's folder is runs/sweeps/<sweep-id>/, a trial's runs/<run-id>/",
    "hydra.searchpath": "config files are read from conf/ alone",
    "hydra.job": "a run's environment and working folder are its container's",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One word of the command line."""

    text: str
    key: str
    kind: Literal["set", "add", "force", "delete"]
    value: object
    is_group: bool
    """It picks an option of a group; else it gives a key its value."""

    def sets(self, place: str) -> bool:
        """Say whether a key got its value here."""
        return not self.is_group and (place == self.key or place.startswith((self.key + ".", self.key + "[")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a word is refused, and the word that was probably meant."""

    what: str
    text: str | None = None
    instead: str | None = None


def refuse(refusals: Sequence[Refusal], texts: Sequence[str]) -> ConfigError:
    """Return the error that names every refusal; its hint is the command line with the words that were meant."""
    meant = {refusal.text: refusal.instead for refusal in refusals if refusal.text is not None}
    hint = None
    if meant and all(refusal.instead for refusal in refusals):
        hint = shlex.join(["xrun", *(meant.get(text) or text for text in texts)])
    return ConfigError("\n".join(refusal.what for refusal in refusals), hint=hint)


def read_overrides(texts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[Override]:
    """Read the words of a command line. Raises ConfigError with every word that is wrong in itself."""
    answers = [_read(text, groups) for text in texts]
    if several := [answer.what for answer in answers if isinstance(answer, _Several)]:
        raise ConfigError("\n".join(several), hint=shlex.join(["xrun", "-m", *texts]))
    if refusals := [answer for answer in answers if isinstance(answer, Refusal)]:
        raise refuse(refusals, texts)
    return [answer for answer in answers if isinstance(answer, Override)]


def _read(text: str, groups: Mapping[str, Sequence[str]]) -> Override | Refusal:
    parsed = parse_word(text, groups)
    if isinstance(parsed, Refusal):
        return parsed
    return _several(parsed, is_group=parsed.key_or_group in groups) or _override(parsed, groups)


def parse_word(text: str, groups: Mapping[str, Sequence[str]]) -> HydraOverride | Refusal:
    """Read a word by Hydra's grammar, with bounds, and without Hydra's own settings."""
    if len(text) > _MAX_CHARACTERS or _depth(text) > _MAX_DEPTH:
        what = f"longer than {_MAX_CHARACTERS} characters or nested deeper than {_MAX_DEPTH} levels"
        return Refusal(what=f"{text[:40]}…: {what}")
    try:
        parsed = OverridesParser.create().parse_override(text)
    # A function of the grammar, such as int(abc), fails with Python's own errors.
    except (HydraException, ValueError, TypeError) as error:
        return _unreadable(text, error, groups)
    if not parsed.key_or_group:
        return Refusal(what=f"{text!r}: no key before the =")
    return _hydras_own(parsed) or parsed


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


class _FirstError(ErrorListener):  # type: ignore[misc]
    """Where the grammar first fails to go on."""

    column: int | None = None

    def syntaxError(self, _recognizer: object, _symbol: object, line: int, column: int, *_: object) -> None:  # noqa: N802, antlr's name
        if self.column is None:
            self.column = column if line == 1 else None


def _unreadable(text: str, error: Exception, groups: Mapping[str, Sequence[str]]) -> Refusal:
    if "=" not in text and not text.startswith("~"):
        meant = next((f"{group}={text}" for group in groups if text in groups[group]), None)
        near = f"; did you mean {meant}?" if meant else ""
        return Refusal(what=f"{text!r}: expected key=value{near}", text=text, instead=meant)
    listener = _FirstError()
    lexer = OverrideLexer(InputStream(text))
    stream = CommonTokenStream(lexer)
    parser = OverrideParser(stream)
    for recognizer in (lexer, parser):
        recognizer.removeErrorListeners()
        recognizer.addErrorListener(listener)
    parser.override()  # type: ignore[no-untyped-call]
    if listener.column is None:
        reason = str(error).split(": ", 1)[-1].splitlines()[0]
        return Refusal(what=f"{text}: {reason}")
    return Refusal(what=f"cannot read on from the mark:\n  {text}\n  {' ' * listener.column}^")


def _hydras_own(parsed: HydraOverride) -> Refusal | None:
    key = parsed.key_or_group
    if key != "hydra" and not key.startswith(("hydra.", "hydra/")):
        return None
    own = next((words for prefix, words in _OWN_WORDS.items() if key == prefix or key.startswith(prefix + ".")), None)
    return Refusal(what=f"{key}: hydra's own settings are not read; {own or 'xrun runs without them'}")


class _Several(Refusal):
    """A word with several values, which a sweep takes and one run does not."""


def _several(parsed: HydraOverride, *, is_group: bool) -> Refusal | None:
    if not parsed.is_sweep_override():
        return None
    key, _, values = str(parsed.input_line).partition("=")
    is_listed = parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP and not is_group
    as_list = f"; a list is written '{key}=[{values}]'" if is_listed else ""
    return _Several(what=f"{parsed.input_line}: one run takes one value{as_list}")


def _override(parsed: HydraOverride, groups: Mapping[str, Sequence[str]]) -> Override | Refusal:
    key, text, value = str(parsed.key_or_group), str(parsed.input_line), parsed.value()
    kind = _KINDS[parsed.type]
    is_group = key in groups
    if not is_group and ("/" in key or parsed.package is not None):
        meant = nearest(key, groups)
        near = f"; did you mean {meant}?" if meant else ""
        return Refusal(what=f"{key}: unknown group; groups are {_words(groups)}{near}")
    if is_group and kind == "delete":
        return Refusal(what=f"{text}: every run has one of conf/{key}/: {_words(groups[key])}")
    if is_group and value not in groups[key]:
        return _unknown_option(text, key, value, groups[key])
    return Override(text=text, key=key, kind=kind, value=value, is_group=is_group)


def _unknown_option(text: str, group: str, value: object, options: Sequence[str]) -> Refusal:
    meant = nearest(str(value), options)
    near = f"; did you mean {meant}?" if meant else ""
    return Refusal(
        what=f"unknown {group} {value!r}{near or ';'} conf/{group}/ has {_words(options)}",
        text=text,
        instead=f"{group}={meant}" if meant else None,
    )


def _words(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
