"""Small runs for tests of what the store keeps."""

from runner import record
from runner.lock import DeterminismPin, HardwarePin, ImagePin
from runner.record import FileFact, Record, Started
from runner.run_folder import RunFolder
from runner.spec import RunSpec
from runner.store import RunStore

DIGEST = "sha256:" + "0" * 64


def make_spec(seed: int = 0) -> RunSpec:
    return RunSpec(
        experiment="resnet50",
        image=ImagePin(
            name="cpu",
            ref="images/cpu",
            platform="linux/amd64",
            python="python3",
            source="recipe",
            manifest=DIGEST,
            config=DIGEST,
        ),
        hardware=HardwarePin(device="cpu", arch_level="x86-64-v3", threads=2),
        ranks=1,
        virtual_ranks=1,
        determinism=DeterminismPin(level="repeat", environment={}),
        data={},
        config={"seed": seed},
        source=DIGEST,
    )


def make_started(seed: int = 0, seconds: float = 0.0) -> Started:
    return Started(
        xrun="0.1.0",
        engine="embedded",
        level="repeat",
        spec_digest=make_spec(seed).digest,
        image_digest=DIGEST,
        source=DIGEST,
        overrides=(f"seed={seed}",),
        started_at=record.timestamp(seconds),
        host={"cpu": "EPYC"},
    )


def make_record(run_id: str, started: Started) -> Record:
    return Record(
        **started.facts(),
        id=run_id,
        status="done",
        exit_code=0,
        fingerprint=DIGEST,
        metrics={"accuracy": 0.1, "loss": "nan"},
        finished_at=record.timestamp(60.0),
        duration_s=60.0,
        files={"out/weights.bin": FileFact(size=4, digest=DIGEST)},
    )


def finished(runs: RunStore, seed: int = 0, seconds: float = 0.0) -> RunFolder:
    started = make_started(seed, seconds)
    folder = runs.start(make_spec(seed), started)
    runs.finish(folder, make_record(folder.id, started))
    return folder
