from dataclasses import replace
from pathlib import PurePath

import pytest

from runner.errors import LockError
from runner.lock import DeterminismPin, HardwarePin, ImagePin, Lock
from runner.lockfile import lock_text, read_lock

PATH = PurePath("lock/tiny.cpu.lock")
DIGEST = "sha256:" + "a" * 64
LOCK = Lock(
    experiment="tiny",
    hardware_name="cpu",
    image=ImagePin(
        name="cpu",
        ref="cpu",
        platform="linux/amd64",
        python="python3",
        source="recipe",
        manifest=DIGEST,
        config=DIGEST,
        diff_ids=(DIGEST, "sha256:" + "b" * 64),
        recipe_digest=DIGEST,
    ),
    hardware=HardwarePin(device="cpu", arch_level="x86-64-v3", threads=2),
    recorded={"cpu": "AMD EPYC"},
    determinism=DeterminismPin(level="portable-v3", environment={"OMP_NUM_THREADS": "2"}),
    data={"letters": {"a/b.txt": DIGEST}},
    config={"optim": {"lr": 0.1, "nesterov": True}, "seed": 0, "precision": "fp32"},
)


def test_a_lock_survives_the_way_to_its_file_and_back() -> None:
    assert read_lock(lock_text(LOCK).encode(), PATH) == LOCK


def test_operators_survive_the_way_too_and_open_ones_are_not_written() -> None:
    known = replace(LOCK, numerics={"conv 3x3": "0123456789abcdef", "mm": "0" * 16})
    assert read_lock(lock_text(known).encode(), PATH) == known
    assert '[numerics]\n"conv 3x3" = "0123456789abcdef"\nmm = "0000000000000000"\n' in lock_text(known)
    assert "numerics" not in lock_text(LOCK)


def test_an_operator_without_a_digest_is_refused() -> None:
    with pytest.raises(LockError) as refusal:
        read_lock(lock_text(replace(LOCK, numerics={"mm": "equal"})).encode(), PATH)
    assert refusal.value.message == (
        "lock/tiny.cpu.lock is not a lock that xrun wrote:\n  numerics: expected operators and 16 hex digits for each"
    )


def test_every_flipped_bit_of_a_lockfile_is_refused() -> None:
    text = lock_text(LOCK).encode()
    for index in range(len(text)):
        for bit in range(8):
            tampered = bytearray(text)
            tampered[index] ^= 1 << bit
            with pytest.raises(LockError):
                read_lock(bytes(tampered), PATH)


def test_a_lockfile_cut_at_any_length_is_refused() -> None:
    text = lock_text(LOCK).encode()
    for length in range(len(text)):
        with pytest.raises(LockError):
            read_lock(text[:length], PATH)


def test_an_edited_value_is_refused_with_both_digests() -> None:
    text = lock_text(LOCK)
    edited = replace(LOCK, config=LOCK.config | {"optim": {"lr": 0.2, "nesterov": True}})
    with pytest.raises(LockError) as refusal:
        read_lock(text.replace("lr = 0.1", "lr = 0.2").encode(), PATH)
    assert str(refusal.value) == (
        f"lock/tiny.cpu.lock has been edited: its content has digest {edited.digest}, it says {LOCK.digest}\n\n"
        "hint: git checkout -- lock/tiny.cpu.lock"
    )


def test_an_edited_comment_is_refused_with_its_line() -> None:
    with pytest.raises(LockError) as refusal:
        read_lock(lock_text(LOCK).replace("do not edit", "do edit").encode(), PATH)
    assert refusal.value.message == "lock/tiny.cpu.lock has been edited: line 1 is not as xrun writes it"


def test_a_tag_where_a_digest_belongs_is_refused() -> None:
    tagged = replace(LOCK, image=replace(LOCK.image, manifest="latest"))
    with pytest.raises(LockError) as refusal:
        read_lock(lock_text(tagged).encode(), PATH)
    assert refusal.value.message == (
        "lock/tiny.cpu.lock is not a lock that xrun wrote:\n"
        "  image.manifest: expected a digest (sha256:<64 hex>), found 'latest'"
    )


def test_unknown_keys_missing_keys_and_wrong_types_are_all_named_at_once() -> None:
    text = lock_text(LOCK).replace("threads = 2", 'threads = "two"').replace("[recorded]", "[recoded]")
    with pytest.raises(LockError) as refusal:
        read_lock(text.encode(), PATH)
    assert refusal.value.message == (
        "lock/tiny.cpu.lock is not a lock that xrun wrote:\n"
        "  recoded: unknown key; did you mean recorded?\n"
        "  recorded: missing\n"
        "  hardware.threads: expected int, found str 'two'"
    )


def test_a_float_that_lost_digits_is_refused() -> None:
    precise = replace(LOCK, config={"lr": 0.30000000000000004})
    with pytest.raises(LockError, match="has been edited: its content has digest"):
        read_lock(lock_text(precise).replace("0.30000000000000004", "0.3").encode(), PATH)


def test_an_open_interpolation_is_refused() -> None:
    leaking = replace(LOCK, config={"optim": {"lr": "${oc.env:LR}"}})
    with pytest.raises(LockError) as refusal:
        read_lock(lock_text(leaking).encode(), PATH)
    assert refusal.value.message.endswith("config.optim.lr: unresolved interpolation '${oc.env:LR}'")


def test_what_looks_like_a_key_is_refused_and_not_repeated() -> None:
    secret = "0123456789abcdef0123456789abcdef01234567"
    leaking = replace(LOCK, config={"data": {"names": ["x", secret]}})
    with pytest.raises(LockError) as refusal:
        read_lock(lock_text(leaking).encode(), PATH)
    assert secret not in str(refusal.value)
    assert refusal.value.message.endswith(
        "config.data.names[1]: looks like a secret; a lock is committed and shared",
    )


def test_a_lock_of_another_version_says_which_one_is_read() -> None:
    with pytest.raises(LockError) as refusal:
        read_lock(lock_text(replace(LOCK, version=2)).encode(), PATH)
    assert refusal.value.message.endswith("version: this xrun reads version 1, found 2")
