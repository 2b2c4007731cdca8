"""What no single key can say: whether the values of a config fit together and can be run at all."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath

from runner.config import Config, virtual_ranks
from runner.parse import Mistake, plain

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"\d+(\.\d+)*")

_AT_LEAST: Mapping[str, int] = {
    "seed": 0,
    "training.steps": 1,
    "training.batch_size": 1,
    "training.micro_batches": 1,
    "training.eval_every_steps": 0,
    "training.checkpoint_every_steps": 0,
    "training.checkpoints_kept": 0,
    "schedule.warmup_steps": 0,
    "hardware.threads": 1,
    "hardware.ranks": 1,
    "hardware.nodes": 1,
    "hardware.gpu_count": 0,
    "hardware.pids": 16,
    "tracking.log_every_steps": 1,
    "scheduler.timeout_s": 0,
    "scheduler.hang_timeout_s": 1,
    "scheduler.grace_s": 0,
    "sweep.retries": 0,
    "sweep.seed": 0,
    "scheduler.array_parallelism": 0,
    "scheduler.max_requeues": 0,
    "scheduler.slots": 1,
}

_MATCH: Mapping[str, tuple[re.Pattern[str], str]] = {
    "experiment.name": (_NAME, "small letters, digits, '.', '_' and '-'"),
    "hardware.name": (_NAME, "small letters, digits, '.', '_' and '-'"),
    "image.name": (_NAME, "small letters, digits, '.', '_' and '-'"),
    "experiment.module": (re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII), "a module of experiments/"),
    "hardware.arch_level": (re.compile(r"x86-64-v[234]"), "one of x86-64-v2, x86-64-v3, x86-64-v4"),
    "hardware.driver_min": (_VERSION, "a version such as 580 or 580.65"),
    "scheduler.time": (
        re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}|UNLIMITED", re.ASCII),
        "a time such as 4:00:00",
    ),
    "scheduler.namespace": (_LABEL, "a name that Kubernetes takes: small letters, digits and '-'"),
    "scheduler.queue": (_LABEL, "a name that Kubernetes takes: small letters, digits and '-'"),
    "scheduler.claim": (_LABEL, "a name that Kubernetes takes: small letters, digits and '-'"),
    "image.platform": (re.compile(r"linux/[a-z0-9]+(/[a-z0-9]+)?"), "a platform such as linux/amd64"),
}


def mistakes_in(config: Config) -> list[Mistake]:
    """Return everything that is wrong with a config whose keys and types are right."""
    checks: tuple[Callable[[Config], Iterator[Mistake]], ...] = (
        _out_of_bounds,
        _unlike,
        _not_numbers,
        _experiment,
        _training,
        _hardware,
        _nodes,
        _determinism,
        _sweep,
        _scheduler,
    )
    return [mistake for check in checks for mistake in check(config)]


def _value(config: Config, place: str) -> object:
    value: object = config
    for key in place.split("."):
        value = getattr(value, key)
    return value


def _out_of_bounds(config: Config) -> Iterator[Mistake]:
    for place, least in _AT_LEAST.items():
        value = _value(config, place)
        if value is None:
            continue
        assert isinstance(value, int)
        if not least <= value < 1 << 63:
            bound = f"at least {least}" if value < least else "below 2^63"
            yield Mistake(place=place, what=f"expected {bound}, found {value}")


def _unlike(config: Config) -> Iterator[Mistake]:
    for place, (pattern, expected) in _MATCH.items():
        value = _value(config, place)
        if value is not None and pattern.fullmatch(str(value)) is None:
            yield Mistake(place=place, what=f"expected {expected}, found {value!r}")


def _not_numbers(config: Config) -> Iterator[Mistake]:
    for group, values in plain(config).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, float) and not math.isfinite(value):
                yield Mistake(place=f"{group}.{key}", what=f"expected a number, found {value}")


def _experiment(config: Config) -> Iterator[Mistake]:
    experiment = config.experiment
    if (experiment.module is None) == (not experiment.command):
        yield Mistake(place="experiment", what="expected either a module or a command")
    if experiment.module is not None and (experiment.outputs or experiment.metrics):
        yield Mistake(place="experiment", what="outputs and metrics are declared by a command; a module's are known")
    for path in (*experiment.outputs, *filter(None, [experiment.metrics])):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or path in {"", "."}:
            yield Mistake(place="experiment.outputs", what=f"expected a file below /out, found {path!r}")
    for name in experiment.data:
        if _NAME.fullmatch(name) is None:
            yield Mistake(place="experiment.data", what=f"expected the name of a data set, found {name!r}")


def _training(config: Config) -> Iterator[Mistake]:
    training, schedule = config.training, config.schedule
    shares = virtual_ranks(config)
    parts = shares * training.micro_batches
    # A command has no loop that would split anything.
    if not config.experiment.command and parts > 0 and training.batch_size % parts:
        kind = "ranks" if shares == config.hardware.ranks else "virtual ranks"
        what = f"{training.batch_size} samples do not split evenly over {shares} {kind}"
        yield Mistake(place="training.batch_size", what=f"{what} x {training.micro_batches} micro-batches")
    if training.clip_norm is not None and training.clip_norm <= 0:
        yield Mistake(place="training.clip_norm", what=f"expected more than 0 or null, found {training.clip_norm}")
    if not 0 <= schedule.final_scale <= 1:
        yield Mistake(place="schedule.final_scale", what=f"expected 0 to 1, found {schedule.final_scale}")


def _hardware(config: Config) -> Iterator[Mistake]:
    hardware = config.hardware
    for key, value in (("memory_gib", hardware.memory_gib), ("shm_gib", hardware.shm_gib)):
        if value <= 0:
            yield Mistake(place=f"hardware.{key}", what=f"expected more than 0, found {value}")
    if hardware.device == "cpu" and (hardware.gpu_count or hardware.gpu_model):
        yield Mistake(place="hardware.gpu_count", what="expected 0 and no gpu_model with hardware.device=cpu")
    if hardware.device == "cuda" and hardware.gpu_model is None:
        yield Mistake(
            place="hardware.gpu_model", what="expected the GPU's name with hardware.device=cuda, found nothing"
        )
    if hardware.device == "cuda" and hardware.ranks > hardware.gpu_count:
        what = f"{hardware.ranks} ranks need {hardware.ranks} GPUs; hardware.gpu_count is {hardware.gpu_count}"
        yield Mistake(place="hardware.ranks", what=what)
    if hardware.device == "cpu" and config.precision.name == "tf32":
        yield Mistake(place="precision.name", what="tf32 is a GPU's arithmetic; hardware.device is cpu")


def _nodes(config: Config) -> Iterator[Mistake]:
    hardware, place = config.hardware, "hardware.nodes"
    nodes = hardware.nodes
    if nodes <= 1:
        return
    if hardware.ranks % nodes:
        yield Mistake(place=place, what=f"{hardware.ranks} ranks do not split evenly over {nodes} nodes")
    if hardware.gpu_count % nodes:
        yield Mistake(place=place, what=f"{hardware.gpu_count} GPUs do not split evenly over {nodes} nodes")
    if config.scheduler.kind == "local":
        yield Mistake(place=place, what=f"{nodes} nodes need scheduler=slurm; scheduler=local has this machine alone")
    if config.experiment.command:
        yield Mistake(place=place, what=f"a command runs on 1 node, found {nodes}")


def _determinism(config: Config) -> Iterator[Mistake]:
    asked, ranks = config.determinism.virtual_ranks, config.hardware.ranks
    if asked is not None and asked < max(ranks, 1):
        what = f"expected at least {max(ranks, 1)}, as many as hardware.ranks, found {asked}"
        yield Mistake(place="determinism.virtual_ranks", what=what)


def _sweep(config: Config) -> Iterator[Mistake]:
    sweep = config.sweep
    if not sweep.metrics:
        yield Mistake(place="sweep.metrics", what="a sweep's trials are compared by at least one metric")
    elif len(sweep.directions) != len(sweep.metrics):
        what = f"{len(sweep.directions)} for {len(sweep.metrics)} metrics; each has one"
        yield Mistake(place="sweep.directions", what=what)
    if sweep.jobs is not None and sweep.jobs < 1:
        yield Mistake(place="sweep.jobs", what=f"expected at least 1, or null for all slots, found {sweep.jobs}")
    if sweep.kind == "optuna" and sweep.trials < 1:
        yield Mistake(place="sweep.trials", what=f"expected at least 1, found {sweep.trials}")


def _scheduler(config: Config) -> Iterator[Mistake]:
    """Say what must not get into a batch script, of which each value is one line."""
    for key, value in plain(config.scheduler).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and (not text.strip() or not text.isprintable()):
                yield Mistake(place=f"scheduler.{key}", what=f"expected one line of printable text, found {text!r}")
    for option in config.scheduler.extra:
        if re.match(r"--?[a-zA-Z]", option) is None:
            yield Mistake(place="scheduler.extra", what=f"expected an option of sbatch, found {option!r}")
