"""TOML, written one way only: sorted keys, one value a line, so that a lock has one sequence of bytes."""

import json
import math
from collections.abc import Mapping, Sequence


def toml_text(mapping: Mapping[str, object]) -> str:
    """Return the one TOML text of nested mappings, lists and scalars. Raises ValueError for what TOML cannot say."""
    return "\n".join(_table(mapping, ())).lstrip("\n") + "\n"


def _table(mapping: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    """Return the lines of a table: its own values first, then its tables, each sorted.

    A table of nothing but tables needs no header of its own.
    """
    tables = {key: item for key, item in mapping.items() if isinstance(item, Mapping)}
    arrays = {key: item for key, item in mapping.items() if isinstance(item, list | tuple) and _holds_tables(item)}
    values = {key: item for key, item in mapping.items() if key not in tables and key not in arrays}
    lines = [f"{_key(key)} = {_value(values[key])}" for key in sorted(values)]
    for key in sorted(tables):
        inner = (*path, key)
        header = [] if _holds_tables(list(tables[key].values())) else ["", f"[{_path(inner)}]"]
        lines += [*header, *_table(tables[key], inner)]
    for key in sorted(arrays):
        inner = (*path, key)
        for item in arrays[key]:
            lines += ["", f"[[{_path(inner)}]]", *_table(item, inner)]
    return lines


def _holds_tables(items: Sequence[object]) -> bool:
    return bool(items) and all(isinstance(item, Mapping) for item in items)


def _path(keys: Sequence[str]) -> str:
    return ".".join(_key(key) for key in keys)


def _key(key: str) -> str:
    bare = key.replace("-", "").replace("_", "")
    return key if bare.isascii() and bare.isalnum() else _string(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)  # the shortest text that reads back as the same bits
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return _list(value)
    raise ValueError(f"TOML has no word for {value!r}")


def _list(items: Sequence[object]) -> str:
    if len(items) <= 1:
        return "[" + ", ".join(_value(item) for item in items) + "]"
    return "[\n" + "".join(f"    {_value(item)},\n" for item in items) + "]"


def _string(text: str) -> str:
    # JSON's escapes are TOML's; DEL alone is free in JSON and forbidden in TOML.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
