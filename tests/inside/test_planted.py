"""Faults planted in real training steps, one at a time: each is found at its step and named. Clean runs are equal."""

from pathlib import Path

import pytest

from inside.plantings import ALONE, COLLECTIVE, PAIR, PLANTINGS, SLICED, Planting, found, train, verdict

CLEAN = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


def trained(root: Path, planting: Planting) -> Path:
    """Return the folder of a planting's runs, which are trained when they are first asked for."""
    (name,) = (name for name, other in PLANTINGS.items() if other is planting)
    if not (folder := root / name).exists():
        clean = [f"clean#{number}" for number in range(CLEAN if planting is ALONE else 2)]
        train(folder, [*clean, *planting.faults], planting.spec)
    return folder


FAULTS = [
    pytest.param(PLANTINGS[name], fault, id=f"{name}: {fault}")
    for name in PLANTINGS
    for fault in PLANTINGS[name].faults
]


@pytest.mark.parametrize(("planting", "fault"), FAULTS)
def test_a_fault_is_found_at_its_step_and_named(root: Path, planting: Planting, fault: str) -> None:
    assert found(trained(root, planting), fault) == planting.faults[fault]


@pytest.mark.parametrize("planting", PLANTINGS.values(), ids=PLANTINGS)
def test_clean_runs_are_equal(root: Path, planting: Planting) -> None:
    folder = trained(root, planting)
    clean = sorted(path.name for path in folder.glob("clean#*"))[1:]
    assert [found(folder, name) for name in clean] == [None] * len(clean)


@pytest.mark.parametrize(
    ("planting", "fault", "message"),
    [
        (
            ALONE,
            "bias between steps",
            "diverged at step 4: 4.bias differs before the step: something wrote to it since the step before",
        ),
        (ALONE, "weight after the last step", "diverged after the last step: the final weights differ"),
        (ALONE, "ended a step early", "diverged: the replay ended after step 5, the run after step 6"),
        (
            PAIR,
            "gradient of a late layer",
            (
                "diverged at step 4, rank 1: gradient of 4.weight differs; batch, RNG and weights before it were "
                "equal: this rank's backward pass computed other bits"
            ),
        ),
        (
            PAIR,
            "averaged gradient on all ranks",
            (
                "diverged at step 4, on all ranks: averaged gradient of 1.weight differs; each rank's own was equal: "
                "the collective that averages them computed other bits"
            ),
        ),
        (
            SLICED,
            "sign of a weight of another slice",
            (
                "diverged at step 4: the model's output differs; batch, RNG and weights before it were equal: "
                "the forward pass computed other bits (of the weights, this step looked at 1 of 4 slices)"
            ),
        ),
        (
            SLICED,
            "weight of another slice that no output depends on",
            (
                "diverged at step 5: 1.weight differs before the step: something wrote to it since it was last looked "
                "at (last seen equal at step 1: each step looks at 1 of 4 slices of the tensors)"
            ),
        ),
    ],
)
def test_a_verdict_says_what_a_researcher_needs(root: Path, planting: Planting, fault: str, message: str) -> None:
    said = verdict(trained(root, planting), fault)
    assert said is not None
    assert said.message == message


def test_a_trace_that_is_cut_within_a_record_is_no_proof(root: Path) -> None:
    folder = trained(root, ALONE)
    path = folder / "clean#1" / "out" / "trace-rank0.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        said = verdict(folder, "clean#1")
    finally:
        path.write_bytes(content)
    assert said is not None
    assert said.message.startswith("diverged: the replay's trace cannot be used: out/trace-rank0.bin is cut short: ")


def test_from_the_level_resume_on_no_bit_depends_on_the_size_of_buckets(tmp_path: Path) -> None:
    spec = Planting({**COLLECTIVE.changes, "determinism__level": "resume"}, {}, ranks=3).spec
    train(tmp_path, ["clean#0", "smaller buckets"], spec)
    said = verdict(tmp_path, "smaller buckets")
    assert said is not None
    assert said.message.startswith("identical: every step on 3 ranks and the final weights; ")
