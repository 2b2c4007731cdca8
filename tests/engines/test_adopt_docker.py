"""A run under docker whose xrun was killed: its slot, its log, its record."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_runs import DIGEST, make_spec, make_started

from engines.conftest import container_name
from engines.tiny_image import TinyImage
from engines.trial import LIMITS, until
from runner.adopt import adopt
from runner.config import Scheduler, Tracking
from runner.container import Conduct
from runner.engines.docker import DockerEngine
from runner.engines.log import GAP
from runner.execute import Job, Watcher
from runner.leases import Need, lease
from runner.record import Conducted
from runner.run_folder import RunFolder
from runner.slurm.order import Order, SlurmFiles
from runner.store import RunStore

HERE = Path(__file__).parents[2]
# What a run's container executes is `<python> -m runner.inside`: here sh, which finds a script of that name.
SCRIPT = """
echo one
while [ ! -e /xrun/control/go ]; do sleep 0.05; done
echo two
printf '{"nonce":"%s","fingerprint":"DIGEST","weights":null,"steps":1,"metrics":{},"files":{}}' $NONCE > /out/done.json
exit $CODE
"""
DOOMED = """
import os, pathlib, signal, sys, threading, time
from pathlib import Path, PosixPath
from engines.tiny_image import TinyImage, TinyImages
from runner.config import Scheduler, Tracking
from runner.container import Conduct, Stretch
from runner.engines.docker import DockerEngine
from runner.engines.request import Limits
from runner.execute import Job, Watcher, execute
from runner.leases import Need, lease
from runner.lock import DeterminismPin, HardwarePin, ImagePin
from runner.record import Conducted, Started
from runner.spec import RunSpec
from runner.store import RunStore
job = {job!r}
engine = DockerEngine(TinyImages(TinyImage(pin=job.spec.image, root=Path("/nowhere"), blobs={{}})))
store = RunStore(Path({store!r}))
def die():
    while not [log for log in store.root.glob("*/log.txt") if "one" in log.read_text()]:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
watcher = Watcher(begin=lambda *_: threading.Thread(target=die).start(), event=print, end=lambda r: r, say=print)
with lease(Path({leases!r}), Need(cpu_slots=1), 1, waiting=lambda _: True) as held:
    execute(job, engine=engine, store=store, watcher=watcher, lease=held)
"""
WATCHER = Watcher(begin=lambda *_: None, event=lambda _: None, end=lambda record: record, say=lambda _: None)


@dataclasses.dataclass(frozen=True)
class Orphan:
    """A run whose xrun was killed after its container had said a word."""

    store: RunStore
    folder: RunFolder
    leases: Path

    def has_a_free_slot(self) -> bool:
        held = lease(self.leases, Need(cpu_slots=1), 1, waiting=lambda _: False)
        if held is not None:
            held.release()
        return held is not None


def make_orphan(image: TinyImage, folder: Path, exit_code: int) -> Orphan:
    source = folder / "source"
    source.mkdir()
    script = SCRIPT.replace("DIGEST", DIGEST).replace("$NONCE", "$XRUN_NONCE").replace("$CODE", str(exit_code))
    (source / "runner.inside").write_text(script)
    pin = dataclasses.replace(image.pin, python="/bin/sh")
    spec = dataclasses.replace(make_spec(), experiment=container_name("adopted"), image=pin)
    tracking = Tracking(wandb="off", project="p", entity=None, tags=(), group=None, log_every_steps=1)
    scheduler = Scheduler(kind="local", timeout_s=0, hang_timeout_s=600)
    conducted = Conducted(limits=LIMITS, tracking=tracking, scheduler=scheduler, data_recipe=None)
    nonce = "a" * 32
    started = dataclasses.replace(
        make_started(), engine="docker", spec_digest=spec.digest, conducted=conducted, nonce=nonce
    )
    conduct = Conduct(nonce=nonce, log_every_steps=1, hang_timeout_s=600, limits=LIMITS)
    job = Job(spec=spec, started=started, source=source, data=None, conduct=conduct)
    store, leases = RunStore(folder / "runs"), folder / "leases"
    code = DOOMED.format(job=job, store=str(store.root), leases=str(leases))
    environment = {"PYTHONPATH": f"{HERE}:{HERE / 'tests'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert done.returncode == -9
    [run_id] = store.ids()
    return Orphan(store=store, folder=store.find(run_id), leases=leases)


def words_logged(orphan: Orphan) -> list[str]:
    """Return what the script said, without sh's complaint that it has no terminal.

    That comes on stderr, and a daemon may keep it in another order than it sent it: then the log begins again.
    """
    whole = orphan.folder.log.read_text().rpartition(GAP.decode())[2]
    return [line for line in whole.splitlines() if not line.startswith("runner.inside: ")]


def test_a_container_keeps_its_slot_until_its_run_is_taken_up_to_its_end(
    docker_client: Any, docker_engine: DockerEngine, image: TinyImage, tmp_path: Path
) -> None:
    orphan = make_orphan(image, tmp_path, 0)
    assert orphan.store.look(orphan.folder).status == "interrupted"
    assert not orphan.has_a_free_slot()
    told: list[str] = []

    def begin(*_: object) -> None:
        told.append(orphan.store.look(orphan.folder).status)
        assert not orphan.has_a_free_slot()
        (orphan.folder.control / "go").touch()

    record = adopt(
        orphan.folder,
        engine=docker_engine,
        store=orphan.store,
        watcher=dataclasses.replace(WATCHER, begin=begin),
        leases=orphan.leases,
    )
    assert told == ["running"]
    assert record is not None
    assert (record.status, record.exit_code, record.fingerprint) == ("done", 0, DIGEST)
    assert orphan.store.load(orphan.folder) == record
    assert words_logged(orphan) == ["one", "two"]
    assert orphan.has_a_free_slot()
    assert docker_client.containers(all=True, filters={"label": f"xrun.run={orphan.folder.id}"}) == []


@pytest.mark.parametrize(("exit_code", "status"), [(0, "done"), (7, "failed")])
def test_what_ended_while_nobody_watched_is_recorded_as_it_ended(
    docker_engine: DockerEngine, image: TinyImage, tmp_path: Path, exit_code: int, status: str
) -> None:
    orphan = make_orphan(image, tmp_path, exit_code)
    (orphan.folder.control / "go").touch()
    until(orphan.has_a_free_slot)
    record = adopt(orphan.folder, engine=docker_engine, store=orphan.store, watcher=WATCHER, leases=orphan.leases)
    assert record is not None
    assert (record.status, record.exit_code) == (status, exit_code)
    assert words_logged(orphan) == ["one", "two"]


def test_a_result_that_is_there_when_a_run_is_asked_to_stop_is_kept(
    docker_engine: DockerEngine, image: TinyImage, tmp_path: Path
) -> None:
    orphan = make_orphan(image, tmp_path, 0)
    orphan.folder.ask_to_stop()
    (orphan.folder.control / "go").touch()
    record = adopt(orphan.folder, engine=docker_engine, store=orphan.store, watcher=WATCHER, leases=orphan.leases)
    assert record is not None
    assert record.status == "done"


def test_the_next_attempt_on_a_node_ends_and_removes_the_container_that_the_last_one_left(
    docker_client: Any,
    docker_engine: DockerEngine,  # noqa: ARG001, has the image
    image: TinyImage,
    tmp_path: Path,
) -> None:
    orphan = make_orphan(image, tmp_path, 0)
    order = Order(engine="docker", source=str(tmp_path), data=None, self_test_steps=0)
    (orphan.folder.path / "slurm").mkdir()
    SlurmFiles(orphan.folder).keep_order(order)
    label = {"label": f"xrun.run={orphan.folder.id}"}
    assert len(docker_client.containers(filters=label)) == 1
    reaped = subprocess.run([sys.executable, "-m", "runner.node", "reap", orphan.folder.path], check=False, cwd=HERE)
    assert reaped.returncode == 0
    assert docker_client.containers(all=True, filters=label) == []
