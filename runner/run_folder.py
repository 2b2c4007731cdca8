"""One run's folder: with the store and the source snapshot the only module that spells a path below `runs/`."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """One run's folder, and where each thing of it lies."""

    path: Path
    owner: int | None = None
    """Descriptor that holds the run, in the process that started it."""

    @property
    def id(self) -> str:
        """The run id: `<experiment>-<8 hex of the spec's digest>-<n>`."""
        return self.path.name

    @property
    def store(self) -> Path:
        """The folder of runs that this one is in."""
        return self.path.parent

    @property
    def spec(self) -> Path:
        """The RunSpec as canonical JSON; its digest is in the id."""
        return self.path / "spec.json"

    @property
    def started(self) -> Path:
        """What was known before the container existed."""
        return self.path / "started.json"

    @property
    def record(self) -> Path:
        """Written once, last: a run with a record has ended."""
        return self.path / "record.json"

    @property
    def log(self) -> Path:
        """What the container printed."""
        return self.path / "log.txt"

    def container_of(self, node: int) -> str:
        """Return the name of the container of one of several nodes."""
        return f"{self.id}-node{node}" if node else self.id

    def log_of(self, node: int) -> Path:
        """Return the file of what the container of one of several nodes printed."""
        return self.path / f"log-node{node}.txt" if node else self.log

    @property
    def out(self) -> Path:
        """The one folder that the container writes. Its content is hostile."""
        return self.path / "out"

    @property
    def control(self) -> Path:
        """What xrun asks of the container while it runs."""
        return self.path / "control"

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether the run was asked to end after its step, by whomever."""
        return (self.control / "stop").exists()

    def ask_to_stop(self) -> None:
        """Ask the run to end after its step, with a checkpoint. Raises OSError."""
        (self.control / "stop").touch()

    @property
    def wandb(self) -> Path:
        """W&B's files of the run."""
        return self.path / "wandb"

    @property
    def slurm(self) -> Path:
        """What passes between the host and the nodes of a run on SLURM; only such runs have it."""
        return self.path / "slurm"

    @property
    def outs(self) -> list[Path]:
        """`out`, and those of the run's earlier attempts, the newest first."""
        with contextlib.suppress(OSError):
            earlier = sorted((int(entry.name) for entry in os.scandir(self.path / "attempts")), reverse=True)
            return [self.out, *(self.attempt(number) / "out" for number in earlier)]
        return [self.out]

    def attempt(self, number: int) -> Path:
        """Return where an earlier attempt's `out` and W&B files lie; the first is 0."""
        return self.path / "attempts" / str(number)

    @property
    def lock(self) -> Path:
        """The file whose kernel lock says that the run's xrun lives."""
        return self.path / "owner"
