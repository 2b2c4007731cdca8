"""Two nodes as two containers of this machine, which share its network: the fingerprint of one container."""

import json
import os
from pathlib import Path

import pytest

from runner.conf.compose import compose
from runner.container import Conduct, Node, Places, container_request, limits_of
from runner.engines.embedded import EmbeddedEngine
from runner.engines.request import Outcome
from runner.images.store import ImageStore
from runner.inside.network import LOOPBACK, free_port
from runner.locking import load
from runner.project import home
from runner.resolve import run_spec
from runner.source import snapshot

ROOT = Path(__file__).parent.parent
SMALL = ("experiment=resnet50", "hardware.ranks=4", "training.steps=2", "training.batch_size=8", "data.test_images=200")
NONCE = "a-nonce"


@pytest.fixture
def images(request: pytest.FixtureRequest) -> ImageStore:
    """Images that hold the locked one: this user's, or else those of the README's first command."""
    lock = load(ROOT, Path("lock/resnet50.cpu.lock"))
    assert lock is not None
    store = ImageStore(home(os.environ))
    return store if store.has(lock.image) else ImageStore(home(request.getfixturevalue("machine").environment))


def run_in_containers(folder: Path, images: ImageStore, count: int) -> str:
    """Run the small training in one container a node, and return its fingerprint."""
    base, config = compose(ROOT / "conf", SMALL[:1]), compose(ROOT / "conf", SMALL)
    lock = load(ROOT, Path("lock/resnet50.cpu.lock"))
    assert lock is not None
    source = snapshot(ROOT / "experiments", folder / "runs")
    spec = run_spec(lock, base, config, source.digest)
    for name in ("out", "control"):
        (folder / name).mkdir(parents=True)
    (folder / "spec.json").write_bytes(spec.canonical())
    places = Places(
        store=folder,
        source=source.folder,
        spec=folder / "spec.json",
        out=folder / "out",
        control=folder / "control",
        data=None,
    )
    engine, port, containers = EmbeddedEngine(images), free_port(), []
    engine.require(spec.image)
    for number in range(count):
        node = Node(count=count, number=number, master_address=LOOPBACK, master_port=port) if count > 1 else None
        conduct = Conduct(
            nonce=NONCE, log_every_steps=1, hang_timeout_s=120, limits=limits_of(config.hardware), node=node
        )
        request = container_request(f"node{number}", spec, places, conduct)
        containers.append(engine.start(request, folder / f"node{number}.log"))
    outcomes = [container.wait(600) for container in containers]
    said = "".join(log.read_text() for log in sorted(folder.glob("node*.log")))
    assert outcomes == [Outcome(kind="exited", exit_code=0)] * count, said
    return str(json.loads((folder / "out" / "done.json").read_bytes())["fingerprint"])


@pytest.mark.image
def test_2_containers_of_2_ranks_give_the_fingerprint_of_1_container(tmp_path: Path, images: ImageStore) -> None:
    assert run_in_containers(tmp_path / "2x2", images, 2) == run_in_containers(tmp_path / "1x4", images, 1)
