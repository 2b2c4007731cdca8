"""Blame as a pure function: records in, a verdict out. And bisection, which reads few records."""

import hashlib
from dataclasses import dataclass, replace

import pytest

from runner.blame import diverged, diverged_before, first_difference
from runner.inside.trace import CHANNELS, SLICED, Header, Record, Tensor, first_link, link, word

DIGEST = "sha256:" + "0" * 64
NAMES = ("conv1.weight", "layer1.weight", "fc.weight")


def make_header(*, slices: int = 1, world_size: int = 1, weights: str = DIGEST) -> Header:
    return Header(
        digest="sha256/8",
        level="repeat",
        virtual_rank=0,
        virtual_ranks=world_size,
        world_size=world_size,
        torch="2",
        knobs={},
        numerics={},
        weights=weights,
        slices=slices,
        parameters=tuple(Tensor(name, (4,), "float32", place % slices) for place, name in enumerate(NAMES)),
        buffers=(Tensor("bn.mean", (4,), "float32", 0),),
    )


def make_record(step: int, *different: str, tensors: tuple[str, ...] = NAMES[:2], slices: int = 1) -> Record:
    header = make_header(slices=slices)

    def of(channel: str, name: str) -> bytes:
        changed = channel in different and (name in tensors or channel == "buffers" or not name)
        return hashlib.sha256(f"{step} {channel} {name} {changed}".encode()).digest()[:8]

    return Record(
        step,
        {channel: word(0.5 + (channel in different)) if channel == "loss" else of(channel, "") for channel in CHANNELS},
        {channel: tuple(of(channel, entry.name) for entry in header.looked_at(channel, step)) for channel in SLICED},
        bytes(32),
    )


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("sample_ids", "the samples differ: they were drawn in another order"),
        ("batch", "the batch differs; its samples were equal: the data or what was made of it is other"),
        (
            "rng_before",
            "the random generators differ; samples and batch were equal: something drew another number before",
        ),
        (
            "weights_before",
            "conv1.weight differs before the step (and 1 more): something wrote to it since the step before",
        ),
        (
            "output",
            (
                "the model's output differs; batch, RNG and weights before it were equal: "
                "the forward pass computed other bits"
            ),
        ),
        (
            "loss",
            (
                "the loss differs (0.5 then, 1.5 now); batch, RNG and weights before it and the output were equal: "
                "its function computed other bits"
            ),
        ),
        (
            "local_grad",
            (
                "gradient of layer1.weight differs (and 1 more); batch, RNG and weights before it were equal: "
                "the backward pass computed other bits"
            ),
        ),
        (
            "optimizer",
            (
                "the optimizer's state of conv1.weight differs (and 1 more); gradient, scaler and learning rate were "
                "equal: the optimizer's update computed other bits"
            ),
        ),
        (
            "buffers",
            (
                "buffer bn.mean differs; gradient, scaler and learning rate and the output were equal: "
                "something else wrote to it"
            ),
        ),
        (
            "weights",
            (
                "conv1.weight differs after the step (and 1 more); gradient, scaler and learning rate and the "
                "optimizer's state were equal: the optimizer's update computed other bits"
            ),
        ),
    ],
)
def test_the_first_channel_in_causal_order_is_blamed(channel: str, message: str) -> None:
    # Whatever the cause is, all that follows from it differs, too.
    later = CHANNELS[CHANNELS.index(channel) :]
    verdict = diverged((make_header(), make_header()), [make_record(17)], [make_record(17, *later)])
    assert verdict.message == f"diverged at step 17: {message}"
    assert (verdict.step, verdict.channel) == (17, channel)


def test_the_rank_whose_own_part_differs_first_is_blamed() -> None:
    header, past = make_header(world_size=3), [make_record(3)] * 3
    spread = make_record(3, "reduced_grad", "weights")
    verdict = diverged(
        (header, header), past, [spread, make_record(3, "local_grad", "reduced_grad", "weights"), spread]
    )
    assert (verdict.ranks, verdict.channel, verdict.tensor) == ((1,), "local_grad", "layer1.weight")
    assert verdict.message.startswith("diverged at step 3, rank 1: gradient of layer1.weight differs")


def test_equal_gradients_with_another_average_blame_the_collective() -> None:
    header, again = make_header(world_size=2), [make_record(3, "reduced_grad", "weights")] * 2
    assert diverged((header, header), [make_record(3)] * 2, again).message == (
        "diverged at step 3, on all ranks: averaged gradient of layer1.weight differs (and 1 more); each rank's own "
        "was equal: the collective that averages them computed other bits"
    )


def test_a_slice_says_since_when_a_difference_may_have_been_there() -> None:
    header = make_header(slices=2)
    pair = ([make_record(9, slices=2)], [make_record(9, "weights_before", slices=2)])
    assert diverged((header, header), *pair).message == (
        "diverged at step 9: layer1.weight differs before the step: something wrote to it since it was last looked at "
        "(last seen equal at step 7: each step looks at 1 of 2 slices of the tensors)"
    )
    pair = ([make_record(9, slices=2)], [make_record(9, "output", slices=2)])
    assert diverged((header, header), *pair).message.endswith(" (of the weights, this step looked at 1 of 2 slices)")


def test_settings_that_differ_are_named_beside_the_bits() -> None:
    past = make_header()._replace(torch="2.12.1", knobs={"aten": "AVX512", "threads": 1})
    again = past._replace(torch="2.13.0", knobs={"aten": "AVX2", "threads": 1})
    verdict = diverged((past, again), [make_record(3)], [make_record(3, "output")])
    settings = "; aten was AVX512 then, AVX2 now; torch was 2.12.1 then, 2.13.0 now"
    assert verdict.message == (
        "diverged at step 3: the model's output differs; batch, RNG and weights before it were equal: "
        "the forward pass computed other bits" + settings
    )
    again = again._replace(weights="sha256:" + "1" * 64)
    assert diverged_before((past, again)).message == f"diverged before step 1: the initial weights differ{settings}"


def test_a_header_with_countless_settings_does_not_fill_the_screen() -> None:
    past = make_header()._replace(knobs={f"{number:02}" + "\x1b" * 1000: "x" * 1000 for number in range(50)})
    verdict = diverged((past, make_header()), [make_record(3)], [make_record(3, "output")])
    assert len(verdict.message) < 2000
    assert verdict.message.endswith(" then, None now; 44 more settings differ")


def test_names_that_would_move_the_cursor_are_spelled_out() -> None:
    header = make_header()
    header = header._replace(parameters=(header.parameters[0]._replace(name="\x1b[2J"), *header.parameters[1:]))
    verdict = diverged((header, header), [make_record(1)], [make_record(1, "weights")])
    assert "\\x1b[2J differs after the step" in verdict.message


def test_other_initial_weights_are_told_from_another_model() -> None:
    past = make_header()
    again = past._replace(weights="sha256:" + "1" * 64)
    assert diverged_before((past, again)).message == "diverged before step 1: the initial weights differ"
    smaller = again._replace(parameters=past.parameters[:1])
    assert diverged_before((past, smaller)).message == (
        "diverged before step 1: the model's parameters or buffers are others"
    )


@dataclass
class Chains:
    """A trace of chains alone, which counts how often it is read."""

    steps: int
    fault: int
    header: Header
    reads: int = 0

    def count(self) -> int:
        return self.steps

    def chain(self, index: int) -> bytes:
        self.reads += 1
        if index < 0:
            return first_link(self.header.weights)
        return link(self.header.weights.encode(), bytes([index + 1 >= self.fault]) + index.to_bytes(8, "little"))

    def record(self, index: int) -> Record:
        raise AssertionError(f"record {index} was read")


@pytest.mark.parametrize("fault", [1, 2, 63, 64, 65, 99_999, 100_000])
def test_the_first_differing_step_is_found_in_few_reads(fault: int) -> None:
    past = Chains(100_000, 200_000, make_header())
    again = replace(past, fault=fault)
    assert first_difference(past, again) == fault
    assert again.reads <= 18


def test_equal_traces_have_no_difference_and_other_initial_weights_are_step_0() -> None:
    past = Chains(1000, 2000, make_header())
    assert first_difference(past, replace(past, steps=500)) is None
    assert first_difference(past, replace(past, header=make_header(weights="sha256:" + "1" * 64))) == 0
