"""What the folder of a run on SLURM holds of its own: all that passes between host and nodes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from runner import durable
from runner.canonical import canonical_bytes
from runner.errors import StoreError
from runner.parse import ParseError, parse, plain
from runner.record import Status
from runner.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a node needs to know of a run beside its spec, and beside what was known at its start."""

    engine: str
    source: str
    """Folder of the unpacked source snapshot."""
    data: str | None
    """Folder of the data sets; None where the image holds them."""
    self_test_steps: int
    past: str | None = None
    """`out` of the run that is gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """By what the queue's jobs tell that one of them is a run's. Kept before the job exists."""

    name: str
    folder: str
    task: int | None
    """Index in the array; None for a job of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """How the record of a run that was cancelled is to say so."""

    status: Status
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exit:
    job: str
    exit: int


class SlurmFiles:
    """The files below `slurm/` in a run's folder."""

    def __init__(self, run: RunFolder) -> None:
        self.folder = run.slurm

    @property
    def script(self) -> Path:
        """The batch script."""
        return self.folder / "batch.sh"

    @property
    def time_is_over(self) -> Path:
        """Left by the batch script when SLURM says so."""
        return self.folder / "time-is-over"

    @property
    def is_cancelled(self) -> Path:
        """Left by who wants the run to end for good."""
        return self.folder / "cancelled"

    def keep_cancelled(self, status: Status, why: str) -> None:
        """Have the run end for good, and say how its record is to say so. Raises StoreError."""
        durable.write(self.is_cancelled, canonical_bytes({"status": status, "why": why}))

    def cancelled(self) -> Cancelled:
        """Return how the record of a run that was cancelled is to say so. Raises StoreError."""
        return _parsed(Cancelled, self.is_cancelled) or Cancelled(status="interrupted", why="")

    @property
    def begun(self) -> Path:
        """Left when the first attempt begins."""
        return self.folder / "begun"

    @property
    def machine(self) -> Path:
        """Facts of the machine whose checkpoint is gone on from: the next one must compute the same bits."""
        return self.folder / "machine.json"

    @property
    def nonce(self) -> Path:
        """Of the present attempt, the same on all its nodes."""
        return self.folder / "nonce"

    @property
    def exit_file(self) -> Path:
        """Left by the batch script when it ends."""
        return self.folder / "exit.json"

    def failures(self) -> list[Path]:
        """Return what nodes have left of why they could not take part."""
        return sorted(self.folder.glob("failed-node*.txt"))

    def failure_of(self, node: int) -> Path:
        """Return where a node leaves why it could not take part."""
        return self.folder / f"failed-node{node}.txt"

    def keep_order(self, order: Order) -> None:
        """Keep what the nodes are to do. Raises StoreError."""
        durable.write(self.folder / "order.json", canonical_bytes(plain(order)))

    def order(self) -> Order:
        """Return what the nodes are to do. Raises StoreError."""
        order = _parsed(Order, self.folder / "order.json")
        if order is None:
            raise StoreError(f"{self.folder / 'order.json'} is missing")
        return order

    def keep_claim(self, claim: Claim) -> None:
        """Keep by what the job will be known. Raises StoreError."""
        durable.write(self.folder / "claim.json", canonical_bytes(plain(claim)))

    def claim(self) -> Claim | None:
        """Return by what the job is known; None for a run that nobody has begun to submit. Raises StoreError."""
        return _parsed(Claim, self.folder / "claim.json")

    def keep_job(self, job: str) -> None:
        """Keep the job's id. Raises StoreError."""
        durable.write(self.folder / "job", f"{job}\n".encode())

    def job(self) -> str | None:
        """Return the job's id; None where it has not been submitted, or its submitter died just then."""
        try:
            return (self.folder / "job").read_text().strip()
        except FileNotFoundError:
            return None

    def exit_code(self) -> int | None:
        """Return the exit code that the job's last attempt left; None where it left none."""
        left = _parsed(_Exit, self.exit_file)
        return None if left is None else left.exit


T = TypeVar("T")


def _parsed(kind: type[T], path: Path) -> T | None:
    try:
        return parse(kind, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ParseError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
