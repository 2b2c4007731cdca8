"""Plain mappings (YAML, TOML, JSON) to frozen dataclasses: strict, every mistake at once, each with its place."""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping

Scalar: typing.TypeAlias = bool | int | float | str | None
T = typing.TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing wrong in a mapping. `place` is the dotted key, '' for the whole."""

    place: str
    what: str

    def __str__(self) -> str:
        """Return the mistake as a message shows it."""
        return f"{self.place}: {self.what}" if self.place else self.what


class ParseError(Exception):
    """All mistakes of one mapping."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes


def parse(kind: type[T], value: object) -> T:
    """Build a value of a dataclass from a mapping. Raises ParseError with every mistake in it."""
    mistakes: list[Mistake] = []
    parsed = _parse(kind, value, "", mistakes)
    if mistakes:
        raise ParseError(mistakes)
    return typing.cast("T", parsed)


def nearest(word: str, words: typing.Iterable[str]) -> str | None:
    """Return the word most like another, or None where none is near."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)), None)


def _parse(kind: typing.Any, value: object, place: str, mistakes: list[Mistake]) -> object:  # noqa: PLR0911, one return a kind of type
    if type(value) is kind:
        return value
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(typing.cast("type", kind), value, place, mistakes)
    if origin is typing.Literal:
        return _parse_choice(typing.get_args(kind), value, place, mistakes)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(typing.get_args(kind), value, place, mistakes)
    if origin is tuple:
        return _parse_tuple(typing.get_args(kind)[0], value, place, mistakes)
    if origin is dict or kind is dict:
        return _parse_dict(typing.get_args(kind), value, place, mistakes)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        mistakes.append(_wrong(place, kind.__name__, value))
    return value


def _wrong(place: str, expected: str, value: object) -> Mistake:
    found = "nothing" if value is None else f"{type(value).__name__} {value!r}"
    return Mistake(place=place, what=f"expected {expected}, found {found}")


def _parse_dataclass(kind: type, value: object, place: str, mistakes: list[Mistake]) -> object:
    if not isinstance(value, Mapping):
        mistakes.append(_wrong(place, "a group of keys", value))
        return None
    hints, required = _keys(kind)
    for key in value:
        if key not in hints:
            near = nearest(str(key), hints)
            meant = f"; did you mean {near}?" if near else f"; known keys: {', '.join(sorted(hints))}"
            mistakes.append(Mistake(place=_join(place, str(key)), what=f"unknown key{meant}"))
    mistakes += [Mistake(place=_join(place, key), what="missing") for key in sorted(required - set(value))]
    known = {key: _parse(hints[key], value[key], _join(place, key), mistakes) for key in hints if key in value}
    return None if mistakes else kind(**known)


@functools.cache
def _keys(kind: type) -> tuple[dict[str, typing.Any], frozenset[str]]:
    """Return the types of a dataclass's keys, and which keys it must have."""
    required = (
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    return typing.get_type_hints(kind), frozenset(required)


def _parse_choice(choices: tuple[object, ...], value: object, place: str, mistakes: list[Mistake]) -> object:
    if value not in choices:
        words = ", ".join(str(choice) for choice in choices)
        near = nearest(str(value), [str(choice) for choice in choices])
        meant = f"; did you mean {near}?" if near else ""
        mistakes.append(Mistake(place=place, what=f"expected one of {words}, found {value!r}{meant}"))
    return value


def _parse_union(kinds: tuple[typing.Any, ...], value: object, place: str, mistakes: list[Mistake]) -> object:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds:
        attempt: list[Mistake] = []
        parsed = _parse(kind, value, place, attempt)
        if not attempt:
            return parsed
    if len(kinds) == 1:
        mistakes += attempt
    else:
        mistakes.append(_wrong(place, " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds), value))
    return value


def _parse_tuple(kind: typing.Any, value: object, place: str, mistakes: list[Mistake]) -> object:
    if not isinstance(value, list | tuple):
        mistakes.append(_wrong(place, "a list", value))
        return ()
    return tuple(_parse(kind, item, f"{place}[{index}]", mistakes) for index, item in enumerate(value))


def _parse_dict(kinds: tuple[typing.Any, ...], value: object, place: str, mistakes: list[Mistake]) -> object:
    if not isinstance(value, Mapping):
        mistakes.append(_wrong(place, "a group of keys", value))
        return {}
    kind = kinds[1] if kinds else object
    if kind is typing.Any or kind is object:
        return dict(value)
    return {str(key): _parse(kind, item, _join(place, str(key)), mistakes) for key, item in value.items()}


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def plain(value: object) -> typing.Any:
    """Return a dataclass as plain mappings and lists, for canonical JSON and TOML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
