"""What a lock pins of the probed operators: asked of a real process, kept, opened, and told of."""

from dataclasses import replace
from pathlib import Path

import pytest
from inside.jobs import source_folder
from test_resolve import CONFIG, IMAGE

from runner import numerics
from runner.config import Config, Precision
from runner.container import Conduct, limits_of
from runner.engines.host import HostEngine
from runner.errors import RunFailed
from runner.lock import Lock
from runner.locking import changes, relock
from runner.resolve import PinnedImage, resolve, run_spec
from runner.source import Source

DIGEST = "sha256:" + "d" * 64
KNOWN = replace(resolve(CONFIG, IMAGE, {}), numerics={"exp": "0" * 16, "mm": "1" * 16})


def probe(folder: Path, config: Config = CONFIG, engine: HostEngine | None = None) -> dict[str, str]:
    source = Source(folder=source_folder(folder), digest=DIGEST)
    spec = run_spec(resolve(config, IMAGE, {}), config, config, DIGEST)
    limits = limits_of(config.hardware)
    conduct = Conduct(nonce="a" * 32, log_every_steps=1, hang_timeout_s=60, limits=limits)
    return numerics.probe(spec, source, engine or HostEngine(), conduct, folder)


def test_the_probe_runs_as_a_run_would_and_hands_over_its_leaves(tmp_path: Path) -> None:
    leaves = probe(tmp_path)
    assert len(leaves) == 61
    assert not {"sqrt", "adamw"} & set(leaves)


def test_what_the_probe_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as failed:
        probe(tmp_path, replace(CONFIG, precision=Precision(name="tf32")))
    assert failed.value.message == (
        "the numerics probe failed: precision tf32 is a GPU's arithmetic; this run's device is cpu"
    )


def test_a_probe_that_leaves_nothing_is_no_probe(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as failed:
        probe(tmp_path, engine=HostEngine("/bin/true"))
    assert failed.value.message == "the numerics probe left no numerics.json that can be read"


def relocked(config: Config, image: PinnedImage = IMAGE) -> Lock:
    return relock(config, KNOWN, lambda _: image, {})


def test_operators_stay_pinned_while_image_level_threads_and_precision_do() -> None:
    assert relocked(CONFIG) == KNOWN
    assert relocked(replace(CONFIG, seed=1)).numerics == KNOWN.numerics
    other = replace(IMAGE, pin=replace(IMAGE.pin, manifest=DIGEST))
    threads = replace(CONFIG, hardware=replace(CONFIG.hardware, threads=4))
    half = replace(CONFIG, precision=Precision(name="bf16"))
    assert [lock.numerics for lock in (relocked(CONFIG, other), relocked(threads), relocked(half))] == [None] * 3


def test_changed_operators_are_named_in_one_line() -> None:
    opened = replace(KNOWN, numerics=None)
    other = replace(KNOWN, numerics={"exp": "0" * 16, "mm": "2" * 16})
    assert changes(opened, KNOWN) == ["numerics: open -> 2 operators"]
    assert changes(KNOWN, other) == ["numerics: 1 of 2 operators compute other bits: mm"]
    assert changes(KNOWN, KNOWN) == []
