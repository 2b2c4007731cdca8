"""What a job's batch script runs: `python -m runner.node begin|run <run folder>`, on the nodes of its allocation.

`begin` runs once an attempt, `run` on every node: it starts the container there and supervises it. The first node
commits the record, unless the run has stopped with a checkpoint and is to go on in the job's next turn.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from runner import machine
from runner.container import WHOLE, Stretch
from runner.engines.request import Container, Engine
from runner.engines.select import pick
from runner.errors import HardwareError, RunFailed, XrunError
from runner.execute import Ending, Job, not_started, record_of, start, supervise
from runner.images.store import ImageStore
from runner.launch import Launch, again, conduct, host_facts, report, watcher
from runner.parse import Scalar
from runner.project import home
from runner.record import Placed, Record, Started
from runner.replay import identity_reasons
from runner.run_folder import RunFolder
from runner.slurm.attempt import allotted, begin_attempt, machine_before, newest_checkpoint
from runner.slurm.client import job_of_this_process
from runner.slurm.leftovers import end_processes
from runner.slurm.order import Order, SlurmFiles
from runner.slurm.placement import commit
from runner.slurm.script import GOES_ON
from runner.spec import RunSpec
from runner.store import RunStore


class Terminated(KeyboardInterrupt):
    """SIGTERM: SLURM wants the nodes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
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
        return SlurmFiles(self.folder)

    @property
    def placed(self) -> Placed:
        nodes = tuple(filter(None, [os.environ.get("SLURMD_NODENAME")]))
        return Placed(job=job_of_this_process(), attempts=self.attempts, nodes=nodes)

    @property
    def is_first(self) -> bool:
        return self.node == 0


def main() -> int:
    """Do what the batch script asks for, and return its exit code."""
    verb, path = sys.argv[1:]
    turn = _turn(RunFolder(path=Path(path)), os.environ)
    try:
        return _begin(turn) if verb == "begin" else _run(turn)
    except RunFailed as error:  # recorded already
        _say(str(error))
        return error.exit_code
    except XrunError as error:
        _say(str(error))
        if turn.is_first:
            _commit(turn, not_started(error))
        else:
            turn.files.failure_of(turn.node).write_text(f"{error.message}\n")
        return error.exit_code


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _turn(folder: RunFolder, environment: Mapping[str, str]) -> _Turn:
    store = RunStore(folder.path.parent)
    return _Turn(
        folder=folder,
        store=store,
        spec=store.load_spec(folder),
        started=store.started(folder),
        order=SlurmFiles(folder).order(),
        node=int(environment.get("SLURM_NODEID", "0")),
        attempts=len(folder.outs),
    )


def _begin(turn: _Turn) -> int:
    """Make ready for an attempt, or end a run that is to have no other."""
    assert turn.started.conducted is not None
    most = turn.started.conducted.scheduler.max_requeues
    requeues = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if turn.files.is_cancelled.exists():
        return _commit(turn, _interrupted("cancelled"))
    if requeues > most:
        return _commit(turn, _interrupted(f"was requeued {requeues} times; scheduler.max_requeues is {most}"))
    begin_attempt(turn.folder)
    return 0


def _interrupted(message: str) -> Ending:
    return Ending(status="interrupted", exit_code=None, message=message)


def _run(turn: _Turn) -> int:
    """Run this node's part of the attempt."""
    if turn.is_first:
        # Held while it runs: a second job of the same run ends here.
        turn = replace(turn, folder=turn.store.take(turn.folder))
    end_processes(turn.folder.out)
    here = machine.probe()
    engine = _engine(turn.order.engine)
    facts = host_facts(here, turn.order.engine)
    launch = _launch(turn, here, facts)
    run = _job(turn, launch, allotted(here.gpus, os.environ))
    engine.require(run.spec.image)
    looks_on = watcher(launch, run.started)
    begun_s = time.monotonic()
    container = _deaf_to_term(lambda: start(run, turn.folder, engine), ranks=run.spec.ranks)
    ending, _ = supervise(run, turn.folder, container, looks_on)
    record = looks_on.end(replace(record_of(run, turn.folder, ending, begun_s), placed=turn.placed))
    if not turn.is_first:
        return 0 if ending.status in {"done", "interrupted"} else 1
    if (final := _final(turn, record)) is None:
        _say(f"{turn.folder.id}: {record.message}; goes on in this job's next turn")
        return GOES_ON
    turn.store.finish(turn.folder, final)
    return report(final, _say)


def _engine(name: str) -> Engine:
    """Return the node's engine. Podman is spoken to through the service that it has for Docker's clients."""
    if name == "podman":
        runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
        os.environ.setdefault("DOCKER_HOST", f"unix://{runtime}/podman/podman.sock")
        name = "docker"
    assert name in {"docker", "embedded", "host"}, name
    return pick(name, ImageStore(home(os.environ)))  # type: ignore[arg-type]


def _launch(turn: _Turn, here: machine.Machine, facts: dict[str, Scalar]) -> Launch:
    """Return the launch of this attempt. Raises HardwareError where its bits would be others than the first one's."""
    machine.require(turn.spec.hardware, here, f"the spec of {turn.folder.id}")
    past = newest_checkpoint(turn.folder) or (Path(turn.order.past) if turn.order.past else None)
    before = machine_before(turn.folder, facts, goes_on=past is not None)
    if reasons := identity_reasons(replace(turn.started, host=before), turn.spec, here):
        raise HardwareError(
            f"{turn.folder.id} cannot go on on {facts['name']} with the bits it promises:\n"
            + "\n".join(f"  {why}" for why in reasons),
            hint="scheduler.constraint=<feature of nodes that are alike>",
        )
    launch = again(turn.started, turn.spec, turn.store, here, turn.started.argv[1:])
    return replace(
        launch,
        continues=turn.started.continues,
        stretch=Stretch(past=past) if past else WHOLE,
        self_test_steps=turn.order.self_test_steps if past is None else 0,
    )


def _job(turn: _Turn, launch: Launch, gpus: tuple[machine.Gpu, ...]) -> Job:
    size = -(-turn.spec.hardware.gpu_count // turn.order.nodes)
    if len(gpus) < size:
        raise HardwareError(f"SLURM gave {len(gpus)} GPUs of this node to the run, which needs {size}")
    scheduler = launch.conducted.scheduler
    return Job(
        spec=turn.spec,
        started=replace(turn.started, host=host_facts(launch.here, turn.order.engine)),
        source=Path(turn.order.source),
        data=Path(turn.order.data) if turn.order.data else None,
        conduct=conduct(launch, gpus[:size]),
        timeout_s=scheduler.timeout_s,
        grace_s=scheduler.grace_s,
    )


def _deaf_to_term(begin: Callable[[], Container], *, ranks: int) -> Container:
    """Start a container; from then on SIGTERM asks the run to stop with a checkpoint.

    Where SLURM tracks processes without cgroups, it signals the training itself, too, which must not die of it: a
    signal that is ignored stays so in child processes. Torch's launcher of several ranks takes it in any case.
    """
    if ranks == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return begin()
    finally:
        signal.signal(signal.SIGTERM, _raise_terminated)


def _raise_terminated(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _final(turn: _Turn, record: Record) -> Record | None:
    """Return the record that ends the run, or None for a run that goes on when its job has its next turn."""
    if turn.files.is_cancelled.exists() and record.status == "interrupted":
        return replace(record, message=f"cancelled: {record.message}")
    if failed := turn.files.failures():
        return replace(record, status="failed", message=f"{failed[0].stem}: {failed[0].read_text().strip()}")
    if record.status != "interrupted":
        return record
    return _after_the_time(turn, record) if turn.files.time_is_over.exists() else None


def _after_the_time(turn: _Turn, record: Record) -> Record | None:
    assert record.conducted is not None
    most = record.conducted.scheduler.max_requeues
    if turn.spec.is_command:
        return replace(record, status="timeout", message="the time of its SLURM job was over (scheduler.time)")
    if turn.attempts > most:
        message = f"the time was over in attempt {turn.attempts}; scheduler.max_requeues is {most}; {record.message}"
        return replace(record, status="timeout", message=message)
    return None


def _commit(turn: _Turn, ending: Ending) -> int:
    """Commit the record of a run that has no container now. Returns the exit code."""
    record = commit(turn.folder, turn.store, ending.status, ending.message, turn.placed)
    _say(f"{turn.folder.id}: {record.status}: {record.message}")
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(main())
