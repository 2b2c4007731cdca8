"""`xrun … scheduler=slurm`: a run is submitted and followed; Ctrl-C lets it go on."""

import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from runner.config import Config
from runner.container import Conduct, Places, container_request
from runner.engines.cluster_argv import cluster_argv
from runner.errors import ConfigError, SchedulerError
from runner.launch import Launch, data_of, report, started
from runner.lock import ImagePin
from runner.outputs import EventReader
from runner.prepare import Workshop, make_ready
from runner.progress import Progress
from runner.record import Placed, Record
from runner.run_folder import RunFolder
from runner.slurm.client import Slurm, Unanswered, runtime
from runner.slurm.order import Order
from runner.slurm.placement import Placement, commit, prepare, script_of, settled, states, submit
from runner.slurm.states import JobState
from runner.store import RunStore

_LOOK_S = 0.3
# A record may be on its way through a shared file system when the job has ended already.
_RECORD_S = 5.0
# Runtimes whose command is known, and has never been run.
_NOT_RUN = ("pyxis", "apptainer")


def engine_on_nodes(config: Config) -> str:
    """Return what executes the image on the nodes, which need not be what would here."""
    if config.scheduler.container is not None:
        return config.scheduler.container
    if config.engine != "auto":
        return config.engine
    return "embedded" if config.hardware.device == "cpu" else "docker"


def placement_of(launch: Launch, engine: str, workshop: Workshop) -> Placement:
    """Return a launch as SLURM is given it. Raises ImageError where its data cannot be had."""
    data = data_of(launch, engine, workshop)
    past = launch.stretch.past
    order = Order(
        engine=engine,
        source=str(launch.source.folder),
        data=None if data is None else str(data),
        self_test_steps=launch.self_test_steps,
        past=None if past is None else str(past),
    )
    return Placement(spec=launch.spec, started=started(launch, engine), order=order, conducted=launch.conducted)


def described(placement: Placement, workshop: Workshop) -> str:
    """Return the batch script that would be submitted. Raises ImageError where a runtime cannot have the image."""
    store = RunStore(workshop.project.runs)
    folder = RunFolder(path=store.root / store.next_id(placement.spec.run_stem))
    script = script_of(placement, folder.path, runtime(workshop.home))
    if placement.order.engine not in _NOT_RUN:
        return script
    return script + _container_command(placement, folder)


def _container_command(placement: Placement, folder: RunFolder) -> str:
    """Return what would start the container on a node, as comments below the script."""
    order, conducted = placement.order, placement.conducted
    places = Places(
        store=folder.store,
        source=Path(order.source),
        spec=folder.spec,
        out=folder.out,
        control=folder.control,
        data=Path(order.data) if order.data else None,
    )
    conduct = Conduct(
        nonce="$XRUN_NONCE",
        log_every_steps=conducted.tracking.log_every_steps,
        hang_timeout_s=conducted.scheduler.hang_timeout_s,
        limits=conducted.limits,
    )
    argv = cluster_argv(order.engine, container_request(folder.id, placement.spec, places, conduct))
    words = " \\\n#     ".join(map(shlex.quote, argv))
    return f"\n# The container would be started by this command, which has never been run:\n#   {words}\n"


def make_ready_on_nodes(pin: ImagePin, engine: str, workshop: Workshop, hint: str, *, offline: bool) -> None:
    """Have an image as the nodes' engine needs it. Raises ImageError, ConfigError for one that was never run.

    `hint`: the command that helps where the image cannot be had.
    """
    if engine in _NOT_RUN:
        raise ConfigError(
            f"scheduler.container={engine}: its command is known (--dry-run prints it), but was never run",
            hint="scheduler.container=embedded",
        )
    if engine != "host":
        make_ready(pin, workshop, hint, offline=offline)
    if engine == "embedded":
        workshop.images.rootfs(pin)


def submit_run(placement: Placement, workshop: Workshop, *, detach: bool, offline: bool, hint: str) -> int:
    """Submit a run and follow it to its end. Returns xrun's exit code; raises XrunError.

    `hint`: the command that helps where its image cannot be had.
    """
    engine = placement.order.engine
    make_ready_on_nodes(placement.spec.image, engine, workshop, hint, offline=offline)
    slurm, store = Slurm(), RunStore(workshop.project.runs)
    slurm.queue()  # before anything is made of a run that could not be submitted
    folder = prepare(placement, store, runtime(workshop.home))
    try:
        job = submit(folder, slurm)
    except SchedulerError as error:
        if not isinstance(error, Unanswered):
            commit(folder, store, "failed", f"was not submitted: {error.message}", Placed(job="", attempts=0))
        raise
    workshop.say(f"{folder.id}: submitted as SLURM job {job}, engine {engine}")
    if detach:
        _say_what_next(folder, workshop.say)
        return 0
    try:
        record = follow(folder, store, slurm)
    except KeyboardInterrupt:
        workshop.say(f"\n{folder.id} goes on as SLURM job {job}")
        _say_what_next(folder, workshop.say)
        raise
    return report(record, workshop.say)


def _say_what_next(folder: RunFolder, say: Callable[[str], None]) -> None:
    say(f"\nnext:\n  xrun logs {folder.id} -f\n  xrun stop {folder.id}\n  xrun ls")


class _Follower:
    """Shows how a run gets on, through all its attempts."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._progress = Progress(sys.stderr)
        self._attempts = len(folder.outs)
        self._events = EventReader(folder.out)
        self._said = ""

    def look(self) -> None:
        """Show the events that are new. A new attempt has events of its own."""
        if (attempts := len(self._folder.outs)) != self._attempts:
            self._attempts, self._events = attempts, EventReader(self._folder.out)
        for event in self._events.read():
            self._progress.event(event)

    def say(self, line: str) -> None:
        """Print a line, unless it is the last one again."""
        if line != self._said:
            self._progress.say(line)
        self._said = line

    def close(self) -> None:
        """Go below the live line."""
        self._progress.close()


def follow(folder: RunFolder, store: RunStore, slurm: Slurm) -> Record:
    """Show how a run gets on until it has a record: its node's, or one that says how its job ended without."""
    follower = _Follower(folder)
    ended_s = math.inf
    try:
        while not folder.record.exists():
            try:
                state = states([folder], slurm).get(folder.id)
            except SchedulerError as error:  # it may come back, and the run goes on meanwhile
                follower.say(f"SLURM does not answer: {error.message}")
            else:
                follower.say(_in_words(state))
                if state is None or state.has_ended:
                    ended_s = min(ended_s, time.monotonic())
            follower.look()
            if time.monotonic() - ended_s > _RECORD_S:
                settled([store.look(folder)], store, slurm)
            time.sleep(_LOOK_S)
        follower.look()
    finally:
        follower.close()
    return store.load(folder)


def _in_words(state: JobState | None) -> str:
    if state is None:
        return "not submitted"
    return f"{state.word}: {state.reason}" if state.reason else state.word
