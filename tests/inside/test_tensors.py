"""Digests, randomness, schedule and ResNet-50, as values."""

import importlib
import math

import pytest
import torch

from runner.inside.digests import digest_of_tensors
from runner.inside.schedule import scale_at
from runner.inside.seeding import Sampler, philox, sample_order


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([2.0, 1.0, 3.0, 4.0])},
        {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])},
        {"w": torch.tensor([1.0, 2.0, 3.0, 4.0]).view(torch.int32)},
        {"v": torch.tensor([1.0, 2.0, 3.0, 4.0])},
        {"w": torch.tensor([1.0, 2.0, 3.0, 4.0]), "empty": torch.empty(0)},
        {"w": torch.tensor([1.0, 2.0, 3.0, math.nextafter(4.0, 5.0)]).double()},
    ],
    ids=["swapped", "shape", "dtype", "name", "one more", "last bit"],
)
def test_a_digest_sees_every_difference(other: dict[str, torch.Tensor]) -> None:
    assert digest_of_tensors({"w": torch.tensor([1.0, 2.0, 3.0, 4.0])}) != digest_of_tensors(other)


def test_a_digest_sees_content_and_not_layout() -> None:
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert digest_of_tensors({"x": image}) == digest_of_tensors({"x": image.to(memory_format=torch.channels_last)})
    half = torch.ones(3, dtype=torch.bfloat16)
    assert digest_of_tensors({"b": half, "a": half}) == digest_of_tensors({"a": half, "b": half})


def test_philox_gives_its_authors_known_answers() -> None:
    zeros = (torch.zeros(1, dtype=torch.int64),) * 4
    ones = tuple(word + 0xFFFFFFFF for word in zeros)
    answers = [
        [int(word) for word in philox(zeros, (0, 0))],
        [int(word) for word in philox(ones, (0xFFFFFFFF, 0xFFFFFFFF))],
    ]
    assert answers == [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ]


def test_an_epoch_shows_each_sample_once_and_in_its_own_order() -> None:
    orders = [sample_order(0, epoch, 100).tolist() for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))
    assert orders[0] != orders[1]


def test_samples_and_their_draws_do_not_depend_on_how_they_are_cut_into_batches() -> None:
    whole = Sampler(3, 10).draws(0, 24)
    parts = [Sampler(3, 10).draws(first, 8) for first in (0, 8, 16)]
    assert whole.epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 4
    assert torch.cat([part.ids for part in parts]).tolist() == whole.ids.tolist()
    assert torch.cat([part.integers("shift", 5) for part in parts]).tolist() == whole.integers("shift", 5).tolist()


def test_the_schedule_warms_up_and_falls_to_its_final_scale() -> None:
    schedule = {"kind": "cosine", "warmup_steps": 4, "final_scale": 0.1}
    scales = [scale_at(step, 12, schedule) for step in range(1, 13)]
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[7] == 0.55
    assert scales[-1] == 0.1
    assert scales[3:] == [pytest.approx(0.55 + 0.45 * math.cos(math.pi * part / 8)) for part in range(9)]


def test_a_constant_schedule_stays() -> None:
    schedule = {"kind": "constant", "warmup_steps": 0, "final_scale": 0.0}
    assert [scale_at(step, 3, schedule) for step in (1, 2, 3)] == [1.0, 1.0, 1.0]


def test_resnet50_has_the_parameters_that_published_weights_have() -> None:
    resnet50 = importlib.import_module("experiments.resnet50")
    with torch.device("meta"):
        network = resnet50.ResNet50(classes=1000, in_channels=3)
    names = list(network.state_dict())
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    assert len(names) == 320
    assert names[:7] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
        "layer1.0.conv1.weight",
    ]
    assert names[-2:] == ["fc.weight", "fc.bias"]
    assert network.state_dict()["layer4.0.downsample.0.weight"].shape == (2048, 1024, 1, 1)
    assert network.state_dict()["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)
