"""What stands in `conf/`: the groups and their options, and what every file keeps to before Hydra may read it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import ConfigError

_MAX_BYTES = 64 << 10
_MAX_DEPTH = 16
_HYDRAS_PACKAGE = re.compile(r"^#\s*@package\s+(_global_\.)?hydra\b", re.MULTILINE)
_HYDRAS_NAME = re.compile(r"(^|[\s/@.])hydra($|[/@.:])")

Files = Mapping[str, Mapping[str, Any]]
"""Content of each file by its name in Hydra, such as `experiment/resnet50`."""


def groups(conf: Path) -> dict[str, tuple[str, ...]]:
    """Return the options of each group, by listing files."""
    options: dict[str, list[str]] = {}
    for name in sorted(_names(conf)):
        group, _, option = name.rpartition("/")
        if group:
            options.setdefault(group, []).append(option)
    return {group: tuple(names) for group, names in options.items()}


def _names(conf: Path) -> dict[str, Path]:
    return {path.relative_to(conf).with_suffix("").as_posix(): path for path in sorted(conf.rglob("*.yaml"))}


def read_files(conf: Path) -> Files:
    """Read every file of conf/. Raises ConfigError with all that Hydra may not be given.

    A file that is not YAML is left to Hydra, which says so if the file is used.
    """
    files: dict[str, Mapping[str, Any]] = {}
    mistakes: list[str] = []
    for name, path in _names(conf).items():
        shown = f"{conf.name}/{name}.yaml"
        text = _text(path, shown)
        bound = _bound_exceeded(text)
        content = {} if bound else _content(text)
        mistakes += [f"{shown}: {bound}"] if bound else [f"{shown}: {what}" for what in _refused(name, text, content)]
        files[name] = content
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return files


def _text(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{shown}: larger than {_MAX_BYTES >> 10} KiB, the most that a config file may have")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: byte {error.start} is not UTF-8") from error


def _bound_exceeded(text: str) -> str | None:
    """Say what would let a small file become a huge or endless config: an alias, or nesting."""
    import yaml  # noqa: PLC0415, `xrun --help` lists groups and needs no YAML

    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                return f"YAML alias *{event.anchor}: values are shared by ${{key}} instead"
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                return f"nested deeper than {_MAX_DEPTH} levels"
    except yaml.YAMLError as error:
        # PyYAML has a bound of its own, which is hit before the first of so many brackets is reported.
        return f"nested deeper than {_MAX_DEPTH} levels" if "nesting depth" in str(error) else None
    return None


def _content(text: str) -> Mapping[str, Any]:
    import yaml  # noqa: PLC0415, as above

    try:
        content = yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _refused(name: str, text: str, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what would make composing run code, read the machine or leave conf/."""
    if name.startswith("hydra/") or "hydra" in content or _HYDRAS_PACKAGE.search(text[:512]):
        yield "hydra's own settings are not read; a run's folder, log and scheduler are xrun's"
    for entry in _strings(content.get("defaults")):
        if _HYDRAS_NAME.search(entry):
            yield f"defaults: {entry!r}: hydra's own settings are not read"
        elif ".." in entry.split("/") or "//" in entry or "\\" in entry:
            yield f"defaults: {entry!r} leads out of the folder"


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from (*_strings(key), *_strings(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def holds(files: Files, name: str, keys: Sequence[str]) -> bool:
    """Say whether a key stands in a file; a key that is open (`???`) does not."""
    content: object = files.get(name)
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            return False
        content = content[key]
    return content != "???"
