"""One attempt of a run on SLURM, as one node of it sees it: what it starts, on which GPUs, going on from where."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runner import machine
from runner.container import WHOLE, Node, Stretch
from runner.engines.request import Engine
from runner.engines.select import pick
from runner.errors import HardwareError
from runner.execute import Job
from runner.images.store import ImageStore
from runner.launch import Launch, again, conduct, host_facts
from runner.levels import is_resumable
from runner.project import home
from runner.record import Placed, Started
from runner.replay import identity_reasons
from runner.run_folder import RunFolder
from runner.slurm.attempt import allotted, machine_before, newest_checkpoint
from runner.slurm.client import job_of_this_process
from runner.slurm.order import Order, SlurmFiles
from runner.spec import RunSpec
from runner.store import RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One attempt of a run, as one node of it sees it."""

    folder: RunFolder
    store: RunStore
    spec: RunSpec
    started: Started
    order: Order
    node: int
    attempts: int

    @property
    def files(self) -> SlurmFiles:
        """What passes between host and nodes."""
        return SlurmFiles(self.folder)

    @property
    def placed(self) -> Placed:
        """What the record says of where the run ran."""
        nodes = os.environ.get("SLURM_JOB_NODELIST", "")
        return Placed(job=job_of_this_process(), attempts=self.attempts, nodes=nodes)

    @property
    def nodes(self) -> int:
        """Nodes of the run."""
        return self.started.conducted.nodes if self.started.conducted else 1

    @property
    def gpu_count(self) -> int:
        """Of this node."""
        return self.spec.hardware.gpu_count // self.nodes

    @property
    def is_first(self) -> bool:
        """Whether this node commits the record."""
        return self.node == 0


def turn_of(folder: RunFolder, environment: Mapping[str, str]) -> Turn:
    """Return the attempt that this process is part of. Raises StoreError."""
    store = RunStore(folder.path.parent)
    return Turn(
        folder=folder,
        store=store,
        spec=store.load_spec(folder),
        started=store.started(folder),
        order=SlurmFiles(folder).order(),
        node=int(environment.get("SLURM_NODEID", "0")),
        attempts=len(folder.outs),
    )


def node_engine(name: str) -> Engine:
    """Return the node's engine. Podman is spoken to through the service that it has for Docker's clients."""
    if name == "podman":
        runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
        os.environ.setdefault("DOCKER_HOST", f"unix://{runtime}/podman/podman.sock")
        name = "docker"
    assert name in {"docker", "embedded", "host"}, name
    return pick(name, ImageStore(home(os.environ)))  # type: ignore[arg-type]


def launch_turn(turn: Turn, here: machine.Machine) -> Launch:
    """Return the launch of this attempt. Raises HardwareError where its bits would be others than the ones before."""
    spec, started = turn.spec, turn.started
    facts = host_facts(here, turn.order.engine)
    share = replace(spec, hardware=replace(spec.hardware, gpu_count=turn.gpu_count))
    machine.require(share.hardware, here, f"the spec of {turn.folder.id}")
    past = _past(turn)
    if turn.is_first or past is not None:
        before = machine_before(turn.folder, facts, goes_on=past is not None)
        if reasons := identity_reasons(replace(started, host=before, conducted=None), share, here):
            raise HardwareError(
                f"{turn.folder.id} cannot go on on {facts['name']} with the bits it promises:\n"
                + "\n".join(f"  {why}" for why in reasons),
                hint="scheduler.constraint=<feature of nodes that are alike>",
            )
    assert started.conducted is not None
    return replace(
        again(started, spec, turn.store, here, started.argv[1:]),
        conducted=started.conducted,
        continues=started.continues,
        stretch=Stretch(past=past) if past else WHOLE,
        self_test_steps=turn.order.self_test_steps if past is None else 0,
    )


def _past(turn: Turn) -> Path | None:
    """Return the `out` that is gone on from; None where the run begins with its first step, as its level may need."""
    if not is_resumable(turn.spec.determinism.level):
        return None
    return newest_checkpoint(turn.folder) or (Path(turn.order.past) if turn.order.past else None)


def job_of_turn(turn: Turn, launch: Launch) -> Job:
    """Return what this node executes. Raises HardwareError where SLURM gave it too few GPUs."""
    gpus = allotted(launch.here.gpus, os.environ)
    if len(gpus) < turn.gpu_count:
        raise HardwareError(f"SLURM gave {len(gpus)} GPUs of this node to the run, which needs {turn.gpu_count}")
    given = tuple(gpu.uuid for gpu in gpus[: turn.gpu_count])
    how = replace(conduct(launch, given), nonce=turn.files.nonce.read_text())
    if turn.nodes > 1:
        place = Node(
            count=turn.nodes,
            number=turn.node,
            master_address=os.environ["XRUN_MASTER_ADDRESS"],
            master_port=int(os.environ["XRUN_MASTER_PORT"]),
        )
        how = replace(how, node=place)
    return Job(
        spec=turn.spec,
        started=replace(turn.started, host=host_facts(launch.here, turn.order.engine), nonce=how.nonce),
        source=Path(turn.order.source),
        data=Path(turn.order.data) if turn.order.data else None,
        conduct=how,
    )
