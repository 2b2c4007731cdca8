"""A run's events to Weights & Biases, in a process of its own: the only import of wandb.

`python -m runner.wandb_log <run folder>`; an Assignment and at the end an Ending on stdin, Reports on stdout.
The key comes in the environment. When whoever started it dies, its stdin ends, and so does it.
"""

import json
import math
import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from runner.canonical import canonical_bytes
from runner.outputs import Event, EventReader
from runner.parse import parse, plain
from runner.run_folder import RunFolder
from runner.terminal import printable
from runner.tracked import Assignment, Ending, Report

if TYPE_CHECKING:
    import wandb

_LOOK_S = 0.5
_INIT_S = 10.0
_SAMPLE_S = 5.0
_NAME_CAP = 128
_NAMES_CAP = 1_000
_NICENESS = 10
T = TypeVar("T")


def main() -> int:
    """Log one run, from its first event to its end. Any trouble is told, once."""
    # The training comes first: on two cores, W&B's start would slow its first steps.
    os.nice(_NICENESS)
    parent = _Parent()
    try:
        _follow(RunFolder(path=Path(sys.argv[1])), parent)
    except Exception as error:
        parent.tell(Report(kind="trouble", message=_first_line(error)))
        raise
    parent.tell(Report(kind="finished"))
    return 0


def _follow(folder: RunFolder, parent: "_Parent") -> None:
    run = _start(folder, _parsed(Assignment, parent.first_line()), parent)
    reader = EventReader(folder.out)
    names: set[str] = set()
    has_ended = False
    while not has_ended:
        has_ended = parent.has_ended(_LOOK_S)
        for event in _new_events(reader):
            _log(run, event, names)
    last = parent.last_line()
    _finish(run, _parsed(Ending, last) if last else None)


class _Parent:
    """The process that started this one: it tells by stdin, a line first and a line last, and is told by stdout."""

    def __init__(self) -> None:
        self._heard = b""
        # From here on, what a library prints goes to stderr and cannot pass for a report.
        self._reports = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def first_line(self) -> bytes:
        """Return the first line, waiting for it."""
        while b"\n" not in self._heard:
            self._heard += self._read() or b"\n"
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def has_ended(self, timeout_s: float) -> bool:
        """Say whether nothing more will be told, after at most timeout_s of silence."""
        while select.select([sys.stdin], [], [], timeout_s)[0]:
            if not (data := self._read()):
                return True
            self._heard += data
        return False

    def last_line(self) -> bytes:
        """Return what was told last; nothing if the parent was killed."""
        return self._heard.strip()

    def tell(self, report: Report) -> None:
        """Tell how it goes."""
        with suppress(BrokenPipeError):  # a parent that was killed needs no report; the run is logged to its end
            os.write(self._reports, canonical_bytes(plain(report)) + b"\n")

    @staticmethod
    def _read() -> bytes:
        return os.read(sys.stdin.fileno(), 1 << 16)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _parsed(kind: type[T], line: bytes) -> T:
    return parse(kind, json.loads(line))


def _start(folder: RunFolder, assignment: Assignment, parent: "_Parent") -> "wandb.Run":
    """Start W&B's run; offline where the server cannot be had. The URL and the folder are parent."""
    import wandb  # noqa: PLC0415, it takes a second; the assignment is taken first

    try:
        run = _init(folder, assignment, assignment.mode)
    except (wandb.errors.Error, OSError) as error:
        if assignment.mode == "offline":
            raise
        parent.tell(Report(kind="trouble", message=f"cannot go online, logged offline: {_first_line(error)}"))
        run = _init(folder, assignment, "offline")
    mode: Literal["online", "offline"] = "offline" if run.offline else "online"
    path = Path(run.dir).parent.relative_to(folder.path).as_posix()
    parent.tell(Report(kind="started", id=run.id, mode=mode, url=run.url if mode == "online" else None, path=path))
    return run


def _init(folder: RunFolder, assignment: Assignment, mode: Literal["online", "offline"]) -> "wandb.Run":
    import wandb  # noqa: PLC0415, as above

    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        docker=assignment.image_digest or None,
        # Of this machine W&B learns the run's load, and neither name nor user, path or argv.
        host="",
        init_timeout=_INIT_S,
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_disable_stats=assignment.pid is None,
        x_save_requirements=False,
        x_stats_pid=assignment.pid or os.getpid(),
        x_stats_sampling_interval=_SAMPLE_S,
        x_stats_track_process_tree=True,
    )
    return wandb.init(
        mode=mode,
        dir=folder.wandb.parent,
        settings=settings,
        # Not the run id: two machines may give the same one, and W&B's is to be the only one in its project.
        id=os.urandom(8).hex(),
        name=assignment.name,
        project=assignment.project,
        entity=assignment.entity,
        group=assignment.group,
        job_type=assignment.job_type,
        tags=assignment.tags,
        config=assignment.config,
    )


def _new_events(reader: EventReader) -> Iterator[Event]:
    position = -1
    while position != reader.position:
        position = reader.position
        yield from reader.read()


def _log(run: "wandb.Run", event: Event, names: set[str]) -> None:
    """Log one event. A container may write anything: what is no number at a step is left out."""
    step = event.get("step")
    if type(step) is not int or not 0 <= step < 1 << 53:
        return
    values = {}
    if event["kind"] == "step":
        values = {f"train/{name}": value for name, value in event.items() if name not in {"kind", "step", "steps"}}
    elif event["kind"] == "eval" and isinstance(event.get("metrics"), dict):
        values = {f"eval/{name}": value for name, value in event["metrics"].items()}
    numbers = {printable(name): number for name, value in values.items() if (number := _number(value)) is not None}
    names.update(name for name in numbers if len(name) <= _NAME_CAP and len(names) < _NAMES_CAP)
    if kept := {name: number for name, number in numbers.items() if name in names}:
        run.log(kept, step=step)


def _number(value: object) -> float | None:
    """Return what W&B may plot: the harness writes null for what JSON cannot say."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _finish(run: "wandb.Run", ending: Ending | None) -> None:
    """End W&B's run as the run ended; without an ending, whoever watched the run was killed."""
    if ending is None:
        run.summary.update({"status": "interrupted"})
        run.finish(exit_code=1)
        return
    final = {f"final/{name}": value for name, value in ending.metrics.items()}
    facts = {"status": ending.status, "exit_code": ending.exit_code, "fingerprint": ending.fingerprint}
    run.summary.update({**facts, **final})
    run.finish(exit_code=0 if ending.status == "done" else 1)


if __name__ == "__main__":
    sys.exit(main())
