"""The digest that a GPU computes, computed here by a CPU: its numbers, what it sees, and a whole trace made with it."""

import struct
from pathlib import Path

import pytest
import torch

from inside.plantings import ALONE, found, train
from runner.inside.device_digest import digest

_MASK = (1 << 64) - 1


def by_the_book(content: bytes) -> int:
    """The digest in Python's integers, as the module's text says it."""

    def mixed(number: int) -> int:
        z = number * 0x9E3779B97F4A7C15 & _MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        return z ^ z >> 31

    content += bytes(-len(content) % 4)
    words = struct.unpack(f"<{len(content) // 4}I", content)
    total: int = sum(word * (mixed(place) | 1) for place, word in enumerate(words)) + mixed(len(words))
    return total & _MASK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_the_digest_is_what_its_text_says(dtype: torch.dtype, count: int) -> None:
    tensor = (torch.arange(count) * 37 % 251 - 120).to(dtype)
    content = bytes(tensor.view(torch.uint8).tolist()) if count else b""
    assert int(digest(tensor)) & _MASK == by_the_book(content)


def test_every_changed_bit_and_every_swapped_pair_shows() -> None:
    tensor = torch.arange(64, dtype=torch.int32) * 40503
    seen = {int(digest(tensor))}
    for place in range(64):
        for bit in range(32):
            other = tensor.clone()
            other[place] ^= torch.tensor(1 << bit).to(torch.int32)
            seen.add(int(digest(other)))
        for with_ in range(place):
            other = tensor.clone()
            other[[place, with_]] = tensor[[with_, place]]
            seen.add(int(digest(other)))
    assert len(seen) == 1 + 64 * 32 + 64 * 63 // 2


def test_zeros_of_different_length_have_different_digests() -> None:
    assert len({int(digest(torch.zeros(count))) for count in range(100)}) == 100


def test_a_part_of_a_tensor_has_the_digest_of_its_own_content() -> None:
    whole = torch.arange(40, dtype=torch.bfloat16).view(8, 5)
    for part in (whole[1], whole[1:4], whole[:, 2], whole.t()):
        assert int(digest(part)) == int(digest(part.clone(memory_format=torch.contiguous_format)))


def test_a_trace_made_with_it_finds_faults_and_raises_no_false_alarm(tmp_path: Path) -> None:
    faults = ["pixel", "layer's output", "gradient of a late layer", "weight between steps", "weight after the update"]
    # There is no GPU here, so the recorder is told that the CPU's tensors are on one.
    script = "from runner.inside import lane; lane.is_on_device = lambda tensor: True; from inside import planted"
    train(tmp_path, ["clean#0", "clean#1", *faults], ALONE.spec, program=("-c", f"{script}; planted.main()"))
    assert found(tmp_path, "clean#1") is None
    assert {name: found(tmp_path, name) for name in faults} == {name: ALONE.faults[name] for name in faults}
