"""Options of something that others wrote, given by name: held against its signature before it is made."""

import inspect
from collections.abc import Collection, Mapping

from runner.errors import ConfigError
from runner.parse import Mistake, Scalar, nearest

_KINDS: Mapping[str, type] = {"bool": bool, "int": int, "float": float, "str": str, "None": type(None)}


def checked_options(
    of: str, place: str, signature: inspect.Signature, given: Mapping[str, Scalar], *, without: Collection[str]
) -> dict[str, Scalar]:
    """Return options as a signature takes them. Raises ConfigError with every one that is unknown or of another type.

    Only what can be written in a config is known: parameters that are said to be a bool, int, float, str or None.
    """
    known = {name: kinds for name, kinds in _plain_parameters(signature).items() if name not in without}
    mistakes = [mistake for name, value in given.items() if (mistake := _mistake(of, f"{place}.{name}", value, known))]
    mistakes += [
        Mistake(place=f"{place}.{name}", what="missing")
        for name in known
        if signature.parameters[name].default is inspect.Parameter.empty and name not in given
    ]
    if mistakes:
        raise ConfigError("\n".join(map(str, mistakes)))
    return {
        name: float(value) if isinstance(value, int) and float in known[name] and int not in known[name] else value
        for name, value in given.items()
    }


def _plain_parameters(signature: inspect.Signature) -> dict[str, tuple[type, ...]]:
    words = {name: _annotation(each).split(" | ") for name, each in signature.parameters.items()}
    return {name: tuple(_KINDS[word] for word in each) for name, each in words.items() if _KINDS.keys() >= set(each)}


def _annotation(parameter: inspect.Parameter) -> str:
    said = parameter.annotation
    return said if isinstance(said, str) else inspect.formatannotation(said)


def _mistake(of: str, place: str, value: Scalar, known: Mapping[str, tuple[type, ...]]) -> Mistake | None:
    name = place.rpartition(".")[2]
    if name not in known:
        near = nearest(name, known)
        meant = f"; did you mean {near}?" if near else ";"
        has = f"{meant} options: {', '.join(sorted(known))}" if known else "; it has none"
        return Mistake(place=place, what=f"no option of {of}{has}")
    kinds = known[name]
    if type(value) in kinds or (type(value) is int and float in kinds):
        return None
    expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    return Mistake(place=place, what=f"expected {expected}, found {type(value).__name__} {value!r}")
