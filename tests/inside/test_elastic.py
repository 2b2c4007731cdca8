"""One fingerprint on any number of processes: what is computed belongs to virtual ranks, whoever computes it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from inside.jobs import make_spec, run
from inside.shipped import CHARGPT, RESNET50, write_data
from runner.inside.tree import Subtree, fold, owned, push, shape

# Batch norm and dropout, in each precision; 6 is no power of two and leaves subtrees over.
ELASTIC: list[tuple[int, list[int], dict[str, Any]]] = [
    (8, [1, 2, 3, 4, 8], {"config__training__clip_norm": 1.0}),
    (
        8,
        [1, 3],
        {"config__precision": "bf16", "config__training__micro_batches": 2, "config__training__batch_size": 32},
    ),
    (8, [1, 4], {"config__precision": "fp16"}),
    (6, [1, 4, 6], {"config__training__batch_size": 24}),
]


@pytest.mark.parametrize(("virtual_ranks", "world_sizes", "changes"), ELASTIC)
def test_any_number_of_processes_gives_one_fingerprint(
    tmp_path: Path, virtual_ranks: int, world_sizes: list[int], changes: dict[str, Any]
) -> None:
    changes = {"determinism__level": "elastic", "virtual_ranks": virtual_ranks, "config__training__steps": 4, **changes}
    ran = [run(tmp_path, make_spec(ranks=ranks, **changes), name=f"on-{ranks}") for ranks in world_sizes]
    assert len({each.done["fingerprint"] for each in ran}) == 1
    assert len({str(each.done["metrics"]) for each in ran}) == 1
    for number in range(virtual_ranks):
        traces = [(each.out / f"trace-rank{number}.bin").read_bytes().partition(b"\n")[2] for each in ran]
        assert traces == traces[:1] * len(ran)


@pytest.mark.parametrize("experiment", [RESNET50, CHARGPT], ids=["resnet50", "chargpt"])
def test_a_shipped_experiment_has_one_fingerprint_on_1_3_and_8_processes(
    tmp_path: Path, experiment: dict[str, Any]
) -> None:
    write_data(tmp_path / "data")
    changes = {**experiment, "config__training__steps": 2, "config__training__batch_size": 16}
    changes |= {"config__schedule__warmup_steps": 1, "determinism__level": "elastic", "virtual_ranks": 8}
    ran = [run(tmp_path, make_spec(ranks=ranks, **changes), name=f"on-{ranks}") for ranks in (1, 3, 8)]
    assert len({each.done["fingerprint"] for each in ran}) == 1


def test_another_number_of_virtual_ranks_is_another_experiment(tmp_path: Path) -> None:
    four, eight = (
        run(tmp_path, make_spec(virtual_ranks=count, determinism__level="elastic"), name=str(count)) for count in (4, 8)
    )
    assert four.done["fingerprint"] != eight.done["fingerprint"]


@pytest.mark.parametrize("virtual_ranks", [1, 2, 3, 5, 6, 7, 8, 12, 16])
def test_a_tree_sum_has_the_same_bits_however_its_leaves_are_shared(virtual_ranks: int) -> None:
    torch.manual_seed(0)
    leaves = torch.randn(virtual_ranks, 1000) * 10.0 ** torch.randint(-8, 8, (virtual_ranks, 1000))
    sums = []
    for world_size in range(1, virtual_ranks + 1):
        whole: list[Subtree] = []
        for rank in range(world_size):
            forest: list[Subtree] = []
            for leaf in owned(virtual_ranks, world_size, rank):
                push(forest, Subtree(leaf, 1, [leaves[leaf].clone()]))
            assert [(tree.first, tree.leaves) for tree in forest] == shape(owned(virtual_ranks, world_size, rank))
            for tree in forest:
                push(whole, tree)
        (total,) = fold(whole)
        assert total is not None
        sums.append(total)
    assert all(torch.equal(total, sums[0]) for total in sums)
    # The order matters: added from left to right, the same numbers give another sum.
    assert virtual_ranks < 4 or not torch.equal(sum(leaves[1:], leaves[0]), sums[0])


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_every_virtual_rank_has_one_owner(world_size: int) -> None:
    assert [number for rank in range(world_size) for number in owned(8, world_size, rank)] == list(range(8))
