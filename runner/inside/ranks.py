"""The processes of a run: one is run directly, more are started by torch's own launcher."""

from __future__ import annotations

import os
import pickle
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed
from torch.nn import functional

from runner.inside.causes import DEADLY, speak_for
from runner.inside.knobs import is_elastic
from runner.inside.network import LOOPBACK, free_port, interface_of, own_address
from runner.inside.refusal import EXIT_STOPPED, Called, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.inside.job import Job

# Collectives give up after the watch has, so that the place of a hang is what is reported.
_COLLECTIVE_GRACE_S = 60.0
_MEETING_TIMEOUT_S = 900


class Ranks(NamedTuple):
    """Who this process is among the processes of the run."""

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0
    """Counted on this node alone."""

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
    if job.node is not None and job.ranks % job.node.nodes:
        raise Refused(f"{job.ranks} ranks do not split evenly over {job.node.nodes} nodes")


def join(job: Job) -> Ranks:
    """Return this process's place among the ranks; blocks until all are there."""
    world_size = job.ranks
    rank, local_rank = (int(os.environ[name]) if world_size > 1 else 0 for name in ("RANK", "LOCAL_RANK"))
    device = torch.device("cpu")
    if job.spec["hardware"]["device"] == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world_size > 1:
        timeout = timedelta(seconds=job.hang_timeout_s + _COLLECTIVE_GRACE_S)
        backend = "gloo" if device.type == "cpu" else "nccl"
        distributed.init_process_group(backend, timeout=timeout)
    return Ranks(rank, world_size, device, local_rank)


def leave(ranks: Ranks) -> None:
    """Leave the group of ranks, if there is one."""
    if ranks.world_size > 1:
        distributed.destroy_process_group()


def launch(job: Job) -> int:
    """Start this node's ranks with this process's program and wait. Returns 0, or the first failed rank's exit code.

    The first failure ends all ranks. One that died of a signal wrote nothing, so this process writes for it.
    Raises Called where this process of a node is to end.
    """
    # torch.distributed's launcher is slow to import, and one rank does without it.
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import elastic_launch  # noqa: PLC0415

    try:
        elastic_launch(_launch_config(job), sys.executable)("-m", "runner.inside")
    except ChildFailedError as failed:
        if any(failure.exitcode == EXIT_STOPPED for failure in failed.failures.values()):
            return EXIT_STOPPED
        killed = [rank for rank, failure in failed.failures.items() if -failure.exitcode in DEADLY]
        if killed:
            return speak_for(killed[0], -failed.failures[killed[0]].exitcode, job)
        _, failure = failed.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException:
        if job.node is None:
            raise
        raise Called from None
    return 0


def _launch_config(job: Job) -> Any:
    """Return how the launchers of all nodes meet. Every launcher knows its place, so nothing is negotiated."""
    from torch.distributed.launcher.api import LaunchConfig  # noqa: PLC0415, as above

    node = job.node
    # The ranks of one node meet inside their container; no name is looked up and no other machine is spoken to.
    address = LOOPBACK if node is None else own_address(node.master_address)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if node is None else interface_of(address)
    if node is not None:
        # NCCL takes a name for the beginning of one, unless it is told otherwise.
        os.environ["NCCL_SOCKET_IFNAME"] = f"={os.environ['GLOO_SOCKET_IFNAME']}"
    master, port = (LOOPBACK, free_port()) if node is None else (node.master_address, node.master_port)
    return LaunchConfig(
        min_nodes=node.nodes if node else 1,
        max_nodes=node.nodes if node else 1,
        nproc_per_node=len(job.ranks_of(0)),
        run_id="xrun",
        rdzv_backend="static",
        rdzv_endpoint=f"{master}:{port}",
        rdzv_configs={"rank": node.number if node else 0, "timeout": _MEETING_TIMEOUT_S},
        max_restarts=0,
        local_addr=address,
    )
