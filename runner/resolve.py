"""From what is asked (Config) to what is pinned (Lock), and from both to what is run (RunSpec). Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath

from runner.canonical import canonical_bytes
from runner.config import Config, Hardware, hyperparameters, virtual_ranks
from runner.errors import LockError
from runner.levels import environment, level_of
from runner.lock import DeterminismPin, HardwarePin, ImagePin, Lock, to_mapping
from runner.parse import Scalar
from runner.spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedImage:
    """An image choice, pinned, and the digests of the data sets it brings."""

    pin: ImagePin
    data: dict[str, dict[str, str]]
    """Data set -> path below /data/<set> -> digest."""


def resolve(config: Config, image: PinnedImage, recorded: Mapping[str, Scalar]) -> Lock:
    """Pin a config. `recorded` holds this machine's facts. Raises LockError for a data set that nothing brings."""
    absent = [name for name in config.experiment.data if name not in image.data]
    if absent:
        raise LockError(
            f"experiment.data: image {config.image.name} brings no data set {', '.join(absent)};"
            f" it brings {', '.join(sorted(image.data)) or 'none'}",
            hint=f"add it under [data] in images/{config.image.data_recipe or config.image.ref}/recipe.toml",
        )
    return Lock(
        experiment=config.experiment.name,
        hardware_name=config.hardware.name,
        image=image.pin,
        hardware=hardware_pin(config.hardware),
        recorded=dict(recorded),
        determinism=determinism_pin(config),
        data={name: image.data[name] for name in sorted(config.experiment.data)},
        config=hyperparameters(config),
    )


def hardware_pin(hardware: Hardware) -> HardwarePin:
    """Return the part of the hardware that a run refuses to miss."""
    return HardwarePin(
        device=hardware.device,
        arch_level=hardware.arch_level,
        threads=hardware.threads,
        gpu_model=hardware.gpu_model,
        gpu_count=hardware.gpu_count,
        gpu_memory_gib=hardware.gpu_memory_gib,
        driver_min=hardware.driver_min,
    )


def determinism_pin(config: Config) -> DeterminismPin:
    """Return the level that a config runs at and every variable the level sets."""
    level = level_of(config)
    return DeterminismPin(level=level, environment=environment(level, config.hardware.threads, config.precision.name))


def moved_pins(lock: Lock, config: Config) -> list[str]:
    """Name each pin that is not what the config asks for: `hardware.threads: lock 2, asked 4`."""
    image = {key: getattr(lock.image, key) for key in ("name", "ref", "platform", "python", "source")}
    pinned = {"image": image, "hardware": to_mapping(lock.hardware), "data": sorted(lock.data)}
    choice = {key: getattr(config.image, key) for key in image}
    asked = {
        "image": choice,
        "hardware": to_mapping(hardware_pin(config.hardware)),
        "data": sorted(config.experiment.data),
    }
    return _said(differences(pinned, asked))


def moved_values(lock: Lock, base: Config) -> list[str]:
    """Name each hyperparameter and knob in which `conf/` is no longer what was locked."""
    locked = lock.config | {"determinism": to_mapping(lock.determinism)}
    asked = hyperparameters(base) | {"determinism": to_mapping(determinism_pin(base))}
    return _said(differences(locked, asked))


def differences(
    old: Mapping[str, object],
    new: Mapping[str, object],
    place: str = "",
) -> Iterator[tuple[str, str, str]]:
    """Yield key, old and new value of each leaf in which two trees differ, keys sorted."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        where = f"{place}.{key}" if place else key
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, where)
        elif canonical_bytes(before) != canonical_bytes(after):  # unlike ==, it tells 1 from 1.0 and True
            yield where, _shown(before), _shown(after)


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)


def _said(moved: Iterator[tuple[str, str, str]]) -> list[str]:
    return [f"{place}: lock {old}, asked {new}" for place, old, new in moved]


def require_pins(lock: Lock, config: Config, path: PurePath, asked: str) -> None:
    """Raise LockError unless a lock pins the image, hardware and data that a config asks for.

    `asked` is the command line's words, for the command to paste.
    """
    if moved := moved_pins(lock, config):
        raise LockError(f"{path} pins something else:\n" + _indented(moved), hint=f"xrun lock {asked}")


def require_current(lock: Lock, base: Config, path: PurePath, asked: str) -> None:
    """Raise LockError, naming each key, unless a lock holds what `conf/` says now."""
    if moved := [*moved_pins(lock, base), *moved_values(lock, base)]:
        raise LockError(f"{path} is out of date:\n" + _indented(moved), hint=f"xrun lock {asked}")


def _indented(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def refreshed(lock: Lock, base: Config) -> Lock:
    """Return a lock with the hyperparameters and knobs that `conf/` says now; no pin moves."""
    fresh = replace(lock, config=hyperparameters(base), determinism=determinism_pin(base))
    return replace(fresh, numerics=numerics_of(lock, fresh.determinism, fresh.config))


def numerics_of(lock: Lock, determinism: DeterminismPin, config: Mapping[str, object]) -> dict[str, str] | None:
    """Return what a lock pins of the probed operators, None where that is of other settings or another precision."""
    same = determinism == lock.determinism and config["precision"] == lock.config["precision"]
    return lock.numerics if same else None


def run_spec(lock: Lock, base: Config, config: Config, source: str) -> RunSpec:
    """Return what is run: the lock, with the command line's overrides (config beside base) laid over it."""
    same_level = determinism_pin(config) == determinism_pin(base)
    determinism = lock.determinism if same_level else determinism_pin(config)
    varied = _varied(lock.config, hyperparameters(base), hyperparameters(config))
    return RunSpec(
        experiment=lock.experiment,
        image=lock.image,
        hardware=lock.hardware,
        ranks=config.hardware.ranks,
        virtual_ranks=virtual_ranks(config),
        determinism=determinism,
        numerics=numerics_of(lock, determinism, varied),
        data=lock.data,
        config=varied,
        source=source,
    )


def _varied(
    locked: Mapping[str, object],
    base: Mapping[str, object],
    asked: Mapping[str, object],
) -> dict[str, object]:
    """Lay what `asked` changes of `base` over what is locked."""
    varied = dict(locked)
    for key in {*base, *asked}:
        old, new, kept = base.get(key), asked.get(key), varied.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and isinstance(kept, Mapping):
            varied[key] = _varied(kept, old, new)
        elif key not in asked:
            varied.pop(key, None)
        elif old != new:
            varied[key] = new
    return varied
