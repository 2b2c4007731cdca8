"""Runs of the locked image on SLURM nodes on which nothing is installed for it."""

import json

import pytest
from bare_machine import BareMachine

from slurm.cluster import Cluster

pytestmark = pytest.mark.image

SMALL = (
    "experiment=resnet50",
    "training.steps=3",
    "training.batch_size=8",
    "data.test_images=64",
    "data.test_batch_size=8",
    "tracking=off",
)


def run(machine: BareMachine, *words: str, **variables: str) -> "dict[str, object]":
    machine.xrun(*SMALL, *words, check=True, **variables)
    return dict(json.loads(machine.xrun("show", "last", "--json").stdout))


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_image_on_slurm_gives_the_fingerprint_of_this_machine(
    machine: BareMachine, cluster: Cluster, nodes: int
) -> None:
    ranks = f"hardware.ranks={nodes}"
    here = run(machine, "engine=embedded", ranks)
    there = run(machine, "scheduler=slurm", ranks, f"hardware.nodes={nodes}", **cluster.environment)
    assert (there["status"], there["engine"]) == ("done", "embedded")
    assert there["fingerprint"] == here["fingerprint"]
