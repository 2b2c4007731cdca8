"""The processes of a run: one is run directly, more are started by torch's own launcher."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed
from torch.nn import functional

from runner.inside.knobs import is_elastic
from runner.inside.refusal import EXIT_STOPPED, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.inside.job import Job

# The ranks of a container meet inside it; no name is looked up and no other machine is spoken to.
_ADDRESS = "127.0.0.1"
# Collectives give up after the watch has, so that the place of a hang is what is reported.
_COLLECTIVE_GRACE_S = 60.0
# Signals that no launcher sends: a rank that died of one is the cause.
_DEADLY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


class Ranks(NamedTuple):
    """Who this process is among the processes of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Rank 0 writes what is written once."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """What the device calls itself."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        # torch's own all_gather_object needs NumPy, which an image may lack.
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(size) for (size,) in self.gather_numbers([len(content)])]
        parts = self._gather(functional.pad(content, (0, max(sizes) - len(content))))
        return [pickle.loads(bytes(part[:size].tolist())) for part, size in zip(parts, sizes)]  # noqa: S301, our ranks

    def require_equal(self, weights: str) -> None:
        """Raise Refused unless all ranks have weights of the same digest."""
        first, *others = self.gather(weights)
        for rank, digest in enumerate(others, 1):
            if digest != first:
                raise Refused(f"rank {rank} ends with other weights than rank 0: {digest}, not {first}")

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return every rank's numbers, in the order of ranks, on every rank. All have as many."""
        if self.world_size == 1:
            return [list(numbers)]
        return [part.tolist() for part in self._gather(torch.tensor(numbers, dtype=torch.float64))]

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        own = tensor.to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(parts, own)
        return [part.cpu() for part in parts]


def is_rank() -> bool:
    """Say whether this process is one of several, started by the launcher."""
    return "RANK" in os.environ


def require_possible(job: Job) -> None:
    """Raise Refused unless the level holds on as many ranks as compute the run."""
    pinned, virtual_ranks, level = job.spec["ranks"], job.spec["virtual_ranks"], job.spec["determinism"]["level"]
    if job.ranks != pinned and not is_elastic(level):
        raise Refused(f"level {level} promises nothing on {job.ranks} ranks: the run has {pinned}")
    if job.ranks > virtual_ranks:
        raise Refused(f"{job.ranks} ranks cannot share {virtual_ranks} virtual ranks")


def join(job: Job) -> Ranks:
    """Return this process's place among the ranks; blocks until all are there."""
    world_size = job.ranks
    rank = int(os.environ["RANK"]) if world_size > 1 else 0
    device = torch.device("cpu")
    if job.spec["hardware"]["device"] == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    if world_size > 1:
        timeout = timedelta(seconds=job.hang_timeout_s + _COLLECTIVE_GRACE_S)
        backend = "gloo" if device.type == "cpu" else "nccl"
        distributed.init_process_group(backend, timeout=timeout)
    return Ranks(rank, world_size, device)


def leave(ranks: Ranks) -> None:
    """Leave the group of ranks, if there is one."""
    if ranks.world_size > 1:
        distributed.destroy_process_group()


def launch(job: Job) -> int:
    """Start every rank with this process's program and wait. Returns 0, or the first failed rank's exit code.

    The first failure ends all ranks. One that died of a signal wrote nothing, so this process writes for it.
    """
    # torch.distributed's launcher is slow to import, and one rank does without it.
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.ranks,
        run_id="xrun",
        rdzv_backend="static",
        rdzv_endpoint=f"{_ADDRESS}:{_free_port()}",
        rdzv_configs={"rank": 0, "timeout": 900},
        max_restarts=0,
        local_addr=_ADDRESS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "runner.inside")
    except ChildFailedError as failed:
        if any(failure.exitcode == EXIT_STOPPED for failure in failed.failures.values()):
            return EXIT_STOPPED
        killed = [rank for rank, failure in failed.failures.items() if -failure.exitcode in _DEADLY]
        if killed:
            return _speak_for(killed[0], -failed.failures[killed[0]].exitcode, job)
        _, failure = failed.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


def _speak_for(rank: int, signal_number: int, job: Job) -> int:
    """Say of what a rank died that could not say it itself. Returns its exit code."""
    errors = job.out / "errors" / f"rank{rank}.txt"
    opened_at_ns = errors.stat().st_mtime_ns
    if not errors.stat().st_size:
        errors.write_text(f"error: rank {rank} was ended by {signal.Signals(signal_number).name}\n", encoding="utf-8")
    # The earliest error is taken for the cause, and by now the others have failed of this one.
    os.utime(errors, ns=(opened_at_ns, opened_at_ns))
    return 128 + signal_number


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        return int(probe.getsockname()[1])
