"""Slots of this machine, GPUs and shares of its CPUs: a kernel lock each, given out first come, first served.

A slot's file is never removed, and the kernel lets go of it when its holder dies in whatever way. What is written in
it outlives the holder: whoever comes next sees whether the holder's container still runs.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from runner import note as notes
from runner import processes, shared
from runner.errors import StoreError
from runner.note import NOTE_BYTES, Note, Slot
from runner.record import timestamp
from runner.terminal import clipped

_POLL_S = 0.02
_POLL_CAP_S = 0.3
_RETAKE_S = 5.0
_NAMED_AT_MOST = 3

Outlives = Callable[[Note], bool]
"""Says whether a dead xrun's container lives whose first process is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a run holds while it runs."""

    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs that would do, in order of preference."""
    gpu_count: int = 0
    cpu_slots: int = 0
    """For runs without a GPU: threads x ranks."""


class Lease:
    """Slots that this process holds; `with` lets go of them at the end."""

    def __init__(self, held: dict[str, int]) -> None:
        self._held = held

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of the GPUs."""
        return tuple(name.removeprefix("gpu-") for name in self._held if name.startswith("gpu-"))

    @property
    def cpu_slots(self) -> tuple[int, ...]:
        """Numbers of the CPU slots."""
        return tuple(int(name.removeprefix("cpu-")) for name in self._held if name.startswith("cpu-"))

    @property
    def label(self) -> str:
        """What is held, in a few characters; empty where nothing is."""
        if self.gpus:
            return ",".join(clipped(uuid, 9) for uuid in self.gpus)
        return f"cpu {','.join(map(str, self.cpu_slots))}" if self.cpu_slots else ""

    def note(self, run: Path, engine: str, pid: int | None) -> None:
        """Write down which container uses the slots; pid is its first process, None while it is not known.

        Raises StoreError.
        """
        container = processes.process(pid) if pid else None
        said = replace(_own_note(), run=str(run), engine=engine, container=container)
        for descriptor in self._held.values():
            _write(descriptor, said)

    def release(self) -> None:
        """Let go of the slots. What stands in their files stays there if the container lives nevertheless."""
        while self._held:
            _, descriptor = self._held.popitem()
            said = _read(descriptor)
            with suppress(OSError):
                if said is None or said.container is None or not processes.lives(said.container):
                    os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _own_note() -> Note:
    return Note(user=processes.user_name(), pid=os.getpid(), since=timestamp(time.time()))


def _write(descriptor: int, said: Note) -> None:
    data = notes.to_bytes(said)
    if len(data) > NOTE_BYTES:
        raise StoreError(f"{said.run}: the path is too long for a lease")
    try:
        os.pwrite(descriptor, data, 0)
    except OSError as error:
        raise StoreError(f"cannot write down who holds a slot: {error.strerror}") from error


def _read(descriptor: int) -> Note | None:
    try:
        data = os.pread(descriptor, NOTE_BYTES + 1, 0)
    except OSError:
        return None
    return notes.from_bytes(data) if len(data) == NOTE_BYTES else None


def _unknown(note: Note) -> bool:
    """Say of a container whose first process is not known that it lives, where only a daemon could tell."""
    return note.engine == "docker"


def container_lives(note: Note, outlives: Outlives = _unknown) -> bool:
    """Say whether the container that a note speaks of still runs."""
    if note.container is not None:
        return processes.lives(note.container)
    return bool(note.run) and outlives(note)


def lease(
    folder: Path, need: Need, slots: int, *, waiting: Callable[[str], bool], outlives: Outlives = _unknown
) -> Lease | None:
    """Hold what is needed, first come, first served; of a need for more CPU slots than there are (`slots`), all.

    `waiting` is called several times a second with a line that says who holds the slots; where it returns False,
    waiting is given up (None). Raises StoreError.
    """
    kind = "gpu" if need.gpu_count else "cpu"
    wanted = [f"gpu-{uuid}" for uuid in need.gpus] if need.gpu_count else [f"cpu-{slot}" for slot in range(slots)]
    count = need.gpu_count or min(need.cpu_slots, slots)
    assert len(wanted) >= count, "what can never be had is refused before"
    shared.make_folder(folder)
    held: dict[str, int] = {}
    with shared.place_in_line(folder, kind) as number, ExitStack() as undo:
        undo.callback(Lease(held).release)
        while True:
            before = shared.ahead(folder, kind, number)
            if not before and _take(folder, wanted, count, held, outlives):
                undo.pop_all()
                return Lease({name: held[name] for name in wanted if name in held})
            if not waiting(_why(folder, [name for name in wanted if name not in held], outlives, before)):
                return None
            time.sleep(min(_POLL_S * (1 + before), _POLL_CAP_S))


def _take(folder: Path, wanted: list[str], count: int, held: dict[str, int], outlives: Outlives) -> bool:
    """Hold free slots until there are as many as are needed, and say whether there are."""
    for name in wanted:
        if len(held) == count:
            break
        if name in held or (descriptor := _locked(folder, name)) is None:
            continue
        left = _read(descriptor)
        if left is not None and container_lives(left, outlives):
            os.close(descriptor)
            continue
        held[name] = descriptor
        _write(descriptor, _own_note())
    return len(held) == count


def _locked(folder: Path, name: str) -> int | None:
    path = folder / f"{name}.lock"
    try:
        return shared.lock_file(path)
    except PermissionError:  # its maker has not opened it to all yet, or has closed it again
        return None
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from error


def retake(folder: Path, run: Path) -> Lease:
    """Hold the slots of a run again whose xrun is dead: those that nobody else has got since. Raises StoreError."""
    shared.make_folder(folder)
    held: dict[str, int] = {}
    # Whoever looks at a slot keeps it for a moment.
    deadline_s = time.monotonic() + _RETAKE_S
    while names := [slot.name for slot in listed(folder) if slot.name not in held and _is_of(slot.note, run)]:
        for name in names:
            descriptor = _locked(folder, name)
            if descriptor is not None and _is_of(_read(descriptor), run):
                held[name] = descriptor
            elif descriptor is not None:
                os.close(descriptor)
        if time.monotonic() > deadline_s:
            break
        time.sleep(_POLL_S)
    return Lease(held)


def _is_of(said: Note | None, run: Path) -> bool:
    return said is not None and said.run == str(run)


def listed(folder: Path) -> list[Slot]:
    """Return the slots that were ever given out here. Raises StoreError."""
    try:
        names = [path.name.removesuffix(".lock") for path in folder.glob("[cg]pu-*.lock")]
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from error
    return [_look(folder, name) for name in sorted(names, key=lambda name: (len(name), name))]


def _look(folder: Path, name: str) -> Slot:
    path = folder / f"{name}.lock"
    try:
        descriptor = shared.opened_to_read(path)
    except (StoreError, OSError):
        return Slot(name=name, is_held=False, note=None)
    try:
        return Slot(name=name, is_held=not shared.lock(descriptor, path), note=_read(descriptor))
    finally:
        os.close(descriptor)


def _why(folder: Path, names: list[str], outlives: Outlives, before: int) -> str:
    """Return in one line who holds slots."""
    held = [said for name in names if (said := holder(_look(folder, name), outlives))]
    more = [f"{len(held) - _NAMED_AT_MOST} more are held"] if len(held) > _NAMED_AT_MOST else []
    return "; ".join([*held[:_NAMED_AT_MOST], *more]) or ("others came first" if before else "")


def holder(slot: Slot, outlives: Outlives = _unknown) -> str:
    """Return in words who holds a slot; empty where nobody does."""
    if not slot.is_held and (slot.note is None or not container_lives(slot.note, outlives)):
        return ""
    return slot.words(processes.user_name())
