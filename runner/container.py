"""A run's container request: one pure function from what is run to what an engine starts."""

from dataclasses import dataclass
from pathlib import Path

from runner.config import Hardware
from runner.engines.request import ContainerRequest, Limits, Mount
from runner.spec import RunSpec

SOURCE = "/xrun/source"
SPEC = "/xrun/spec.json"
OUT = "/out"
DATA = "/data"
CONTROL = "/xrun/control"
PAST = "/xrun/past"

_GIB = 1 << 30
_PATH = "/opt/conda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where on this host a run's parts are."""

    store: Path
    """The folder of runs."""
    source: Path
    """Unpacked source snapshot."""
    spec: Path
    out: Path
    """The one folder that the container may write."""
    control: Path
    """Where xrun leaves what it asks of the run: the file `stop`."""
    data: Path | None
    """Data sets; None where the image holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The steps that are executed, where these are not all."""

    past: Path | None = None
    """`out` of the run that is gone on with; None: from the first step."""
    after_step: int | None = None
    """The checkpoint that is taken up; None: the newest that verifies."""
    last_step: int | None = None
    """None: to the end of the training."""


WHOLE = Stretch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One of several machines that compute a run together, each with a container of its own and its share of ranks."""

    count: int
    """Nodes of the run."""
    number: int
    """Of this one, from 0 on; node 0 writes what is written once."""
    master_address: str
    """Where node 0 can be reached: numeric, or a name that a container can look up."""
    master_port: int
    """Where node 0 listens; free on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How one execution of a spec is conducted; none of it decides bits."""

    nonce: str
    """Proves that a completion manifest is this run's."""
    log_every_steps: int
    hang_timeout_s: int
    limits: Limits
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs that the run holds."""
    stretch: Stretch = WHOLE
    ranks: int | None = None
    """Processes that share the virtual ranks, where these are not as many as the spec says."""
    allow_numerics: bool = False
    """Whether to go on where this machine computes other bits than the lock pins: a replay is held to its run."""
    self_test_steps: int = 0
    """Steps that are computed in other processes before, to see whether the level is kept; 0 for none."""
    operators_step: int | None = None
    """The step of which every operator is logged; None for none."""
    node: Node | None = None
    """Which of several nodes the container is on, all of which have the same `out`; None where one has all ranks."""


def container_request(name: str, spec: RunSpec, places: Places, conduct: Conduct) -> ContainerRequest:
    """Return the request that runs a spec. The whole protocol with the container is its mounts and environment."""
    mounts = [
        Mount(source=places.source, target=SOURCE),
        Mount(source=places.spec, target=SPEC),
        Mount(source=places.control, target=CONTROL),
        Mount(source=places.out, target=OUT, read_only=False),
    ]
    if places.data is not None:
        mounts.append(Mount(source=places.data, target=DATA))
    if conduct.stretch.past is not None:
        mounts.append(Mount(source=conduct.stretch.past, target=PAST))
    return ContainerRequest(
        name=name,
        store=str(places.store),
        image=spec.image,
        argv=(spec.image.python, "-m", "runner.inside"),
        environment=tuple(sorted(_environment(spec, conduct).items())),
        mounts=tuple(mounts),
        limits=conduct.limits,
        gpus=conduct.gpus,
        # `-m` looks for modules in the working folder first: it must be one that the run cannot write.
        workdir=SOURCE,
        network="none" if conduct.node is None else "host",
    )


def _environment(spec: RunSpec, conduct: Conduct) -> dict[str, str]:
    environment = {
        "HOME": "/tmp",  # noqa: S108, the container's own
        "LC_ALL": "C.UTF-8",
        # Threads that spin while they wait take the cores from those they wait for, as soon as anything else runs.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": _PATH,
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "TZ": "UTC",
        "USER": "xrun",  # a uid without a passwd entry breaks getpass
        "XRUN_CONTROL": CONTROL,
        "XRUN_DATA": DATA,
        "XRUN_HANG_TIMEOUT_S": str(conduct.hang_timeout_s),
        "XRUN_LOG_EVERY_STEPS": str(conduct.log_every_steps),
        "XRUN_NONCE": conduct.nonce,
        "XRUN_OUT": OUT,
        "XRUN_SPEC": SPEC,
    }
    if conduct.gpus:
        environment["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    stretch = conduct.stretch
    asked = {
        "XRUN_ALLOW_NUMERICS": "1" if conduct.allow_numerics else None,
        "XRUN_LAST_STEP": stretch.last_step,
        "XRUN_OPERATORS_STEP": conduct.operators_step,
        "XRUN_RANKS": conduct.ranks,
        "XRUN_RESUME": PAST if stretch.past else None,
        "XRUN_RESUME_STEP": stretch.after_step,
        "XRUN_SELF_TEST_STEPS": conduct.self_test_steps or None,
    }
    environment |= {name: str(value) for name, value in asked.items() if value is not None}
    return environment | node_variables(conduct.node) | spec.determinism.environment


def node_variables(node: Node | None) -> dict[str, str]:
    """Return the variables that tell a container which of several nodes it is on; none where there is one."""
    if node is None:
        return {}
    return {
        "XRUN_MASTER_ADDRESS": node.master_address,
        "XRUN_MASTER_PORT": str(node.master_port),
        "XRUN_NODE": str(node.number),
        "XRUN_NODES": str(node.count),
    }


def limits_of(hardware: Hardware) -> Limits:
    """Return what a container may use on a kind of hardware."""
    memory_bytes = int(hardware.memory_gib * _GIB)
    return Limits(
        memory_bytes=memory_bytes,
        pids=hardware.pids,
        shm_bytes=int(hardware.shm_gib * _GIB),
        tmp_bytes=memory_bytes // 4,
    )
