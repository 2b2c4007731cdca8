"""What stands in a lock file: who holds the slot, and which container uses it. Plain values and their exact bytes."""

import json
from dataclasses import dataclass
from pathlib import PurePath

from runner.canonical import canonical_bytes
from runner.parse import ParseError, parse, plain
from runner.terminal import clipped, printable

# One page: the kernel writes it whole even where the writer is killed meanwhile.
NOTE_BYTES = 4096
_NUMBER_CAP = 1 << 63
_UUID_SHOWN = 12
_SHOWN_CAP = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process, told from a later one that got its number."""

    pid: int
    start: int
    """When it started, in clock ticks since the machine did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Who holds a slot."""

    user: str
    pid: int
    """Of xrun."""
    since: str
    """UTC, as `timestamp` writes it."""
    run: str = ""
    """The run's folder; empty while there is none yet, or the slot is held for one that waits for more."""
    engine: str = ""
    container: Process | None = None
    """The container's first process; None where it is out of sight, or has not started."""

    @property
    def run_id(self) -> str:
        """The run's id."""
        return PurePath(self.run).name


def to_bytes(note: Note) -> bytes:
    """Return a note as it stands in a lock file; longer than NOTE_BYTES where the run's path is."""
    return canonical_bytes(plain(note)).ljust(NOTE_BYTES)


def from_bytes(data: bytes) -> Note | None:
    """Read a note. Anybody may have written it: None for anything else."""
    try:
        note = parse(Note, json.loads(data))
    except (ValueError, RecursionError, ParseError):
        return None
    numbers = [note.pid, *((note.container.pid, note.container.start) if note.container else ())]
    return note if all(0 < number < _NUMBER_CAP for number in numbers) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A slot as others see it."""

    name: str
    """`cpu-<number>` or `gpu-<UUID>`."""
    is_held: bool
    """Whether a living process holds it."""
    note: Note | None
    """Of who holds it; of who died while he held it."""

    @property
    def label(self) -> str:
        """The slot's name in a few characters."""
        kind, _, rest = self.name.partition("-")
        return f"cpu slot {rest}" if kind == "cpu" else clipped(printable(rest), _UUID_SHOWN)

    def words(self, reader: str) -> str:
        """Return in words who holds the slot, a living process or a container whose xrun is dead."""
        said = self.note
        if said is None:
            return f"{self.label} is held"
        run, user = shown(said.run_id), shown(said.user)
        if self.is_held:
            what = f"held by {run}" if run else "taken"
            return f"{self.label} is {what} ({user}, pid {said.pid})"
        whose = "" if said.user == reader else f" ({user})"
        return (
            f"{self.label} is held by the container of {run}{whose}, whose xrun was killed; "
            f"xrun resume {run} takes it up, xrun stop {run} ends it"
        )


def shown(text: str) -> str:
    """Return a text of a note as a terminal may show it."""
    return clipped(printable(text), _SHOWN_CAP)
