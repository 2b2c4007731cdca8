"""What the host handed over: the spec, the folders, and how often to speak. Read from the environment once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.inside.files import digest_of_file
from runner.inside.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping


class Node(NamedTuple):
    """One of several machines that compute a run, each with a container of its own."""

    nodes: int
    number: int
    master_address: str
    """Where node 0 is: numeric, or a name that can be looked up in here."""
    master_port: int
    """Where node 0 listens, for the launchers and the ranks of all nodes."""

    @property
    def is_first(self) -> bool:
        """Node 0 does what is done once."""
        return self.number == 0


class Job(NamedTuple):
    """One run, as its process sees it."""

    spec: Mapping[str, Any]
    """RunSpec (runner/spec.py); keys that are open are left out."""
    out: Path
    """The one folder that the run writes."""
    data: Path
    """Folder of the data sets."""
    nonce: str
    """Repeated in done.json, so that no other run's done.json can pass for this one's."""
    log_every_steps: int
    hang_timeout_s: float
    control: Path | None = None
    """Folder in which the host asks for something: the file `stop`."""
    resume: Path | None = None
    """`out` of the run that this one continues."""
    resume_step: int | None = None
    """The checkpoint to continue from; None for the newest."""
    last_step: int | None = None
    """Where to end; None for the end of training."""
    allow_numerics: bool = False
    """Whether the run may compute other bits than its lock pins."""
    other_ranks: int | None = None
    """Processes that compute the run instead of the spec's number."""
    operators_step: int | None = None
    """The step of which every operator is logged; None for none."""
    self_test_steps: int = 0
    """Steps that are computed twice before the run, to see whether it keeps its level; 0 for none."""
    node: Node | None = None
    """Which of several nodes this is; None where one node has all ranks."""
    traces_only: bool = False
    """Whether to end after the last step without evaluation, checkpoint and done.json, having looked at all tensors."""

    @property
    def ranks(self) -> int:
        """Processes of the run."""
        return int(self.other_ranks or self.spec["ranks"])

    @property
    def is_first_node(self) -> bool:
        """Whether this node does what is done once."""
        return self.node is None or self.node.is_first

    @property
    def first_rank(self) -> int:
        """The first of this node's ranks."""
        return 0 if self.node is None else self.ranks_of(self.node.number)[0]

    def ranks_of(self, node: int) -> range:
        """Return the ranks of a node: as many on each."""
        here = self.ranks // (self.node.nodes if self.node else 1)
        return range(node * here, (node + 1) * here)

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether the host wants the run to end after this step."""
        return self.control is not None and (self.control / "stop").exists()

    @property
    def config(self) -> Mapping[str, Any]:
        """The hyperparameters: seed, model, optim, data, training, schedule, precision."""
        config: Mapping[str, Any] = self.spec["config"]
        return config


def from_environment() -> Job:
    """Return the job that the host's variables describe."""
    return Job(
        spec=json.loads(Path(os.environ["XRUN_SPEC"]).read_bytes()),
        out=Path(os.environ["XRUN_OUT"]),
        data=Path(os.environ["XRUN_DATA"]),
        nonce=os.environ["XRUN_NONCE"],
        log_every_steps=int(os.environ["XRUN_LOG_EVERY_STEPS"]),
        hang_timeout_s=float(os.environ["XRUN_HANG_TIMEOUT_S"]),
        control=_path("XRUN_CONTROL"),
        resume=_path("XRUN_RESUME"),
        resume_step=_number("XRUN_RESUME_STEP"),
        last_step=_number("XRUN_LAST_STEP"),
        allow_numerics=os.environ.get("XRUN_ALLOW_NUMERICS") == "1",
        other_ranks=_number("XRUN_RANKS"),
        operators_step=_number("XRUN_OPERATORS_STEP"),
        self_test_steps=_number("XRUN_SELF_TEST_STEPS") or 0,
        node=_node(),
        traces_only=bool(os.environ.get("XRUN_TRACES_ONLY")),
    )


def _node() -> Node | None:
    count, number, port = (_number(f"XRUN_{name}") for name in ("NODES", "NODE", "MASTER_PORT"))
    if count is None or count == 1:
        return None
    assert number is not None
    assert port is not None
    return Node(count, number, os.environ["XRUN_MASTER_ADDRESS"], port)


def _path(name: str) -> Path | None:
    return Path(os.environ[name]) if os.environ.get(name) else None


def _number(name: str) -> int | None:
    return int(os.environ[name]) if os.environ.get(name) else None


def verify_data(job: Job) -> None:
    """Read every pinned data file. Raises Refused with all that are missing or not as pinned."""
    wrong = []
    for name, files in sorted(job.spec["data"].items()):
        for path, pinned in sorted(files.items()):
            file = job.data / name / path
            if not file.is_file():
                wrong.append(f"  {name}/{path} is missing")
                continue
            digest = digest_of_file(file)
            if digest != pinned:
                wrong.append(f"  {name}/{path} is {digest}, pinned is {pinned}")
    if wrong:
        raise Refused("the data is not what the lock pins\n" + "\n".join(wrong))
