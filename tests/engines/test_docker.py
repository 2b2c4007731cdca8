"""The docker engine beyond what every engine does: its payload, its daemon's failures, xrun's death."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import container_name
from engines.tiny_image import TinyImage, TinyImages
from engines.trial import ENVIRONMENT, LIMITS, MIB, Trial, outcome_of, perform, request_of, until
from runner.engines import docker_payload
from runner.engines.docker import DockerEngine
from runner.engines.docker_payload import container_payload, differences
from runner.engines.dockerd import connect, plain_text
from runner.engines.request import Mount, Outcome, fit
from runner.errors import EngineError

SHA = f"sha256:{'a' * 64}"
ENDED = {"Status": "exited", "FinishedAt": "2026-01-01T00:00:00Z", "OOMKilled": False, "ExitCode": 0}


def test_a_payload_says_everything(image: TinyImage) -> None:
    request = dataclasses.replace(
        request_of(
            Trial(script="true", mounts=(Mount(source=Path("/a"), target="/b"),)), image.pin, Path("/o"), "run-1"
        ),
        gpus=("GPU-1",),
        workdir="/b",
        store="/store",
    )
    described = {
        "Id": SHA,
        "Config": {"Env": ["LD_PRELOAD=/x", "PATH=/y"], "Volumes": {"/b": {}, "/var": {}}, "Entrypoint": ["/z"]},
    }
    assert container_payload(request, LIMITS, described, user=(1000, 100)) == {
        "Image": SHA,
        "Entrypoint": [],
        "Cmd": ["/bin/sh", "-c", "true"],
        "User": "1000:100",
        "WorkingDir": "/b",
        "Env": ["HOME=/tmp", "LC_ALL=C.UTF-8", "PATH=/bin", "PWD=/b", "HOSTNAME", "LD_PRELOAD"],
        "Hostname": "localhost",
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "Labels": {"xrun.run": "run-1", "xrun.store": "/store"},
        "HostConfig": {
            "AutoRemove": False,
            "CapDrop": ["ALL"],
            "DeviceRequests": [
                {"Driver": "", "Count": 0, "DeviceIDs": ["GPU-1"], "Capabilities": [["gpu"]], "Options": {}}
            ],
            "Init": True,
            "IpcMode": "private",
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "64m", "max-file": "2"}},
            "Memory": 256 * MIB,
            "MemorySwap": 256 * MIB,
            "Mounts": [
                {"Type": "bind", "Source": "/o", "Target": "/out", "ReadOnly": False},
                {
                    "Type": "bind",
                    "Source": "/a",
                    "Target": "/b",
                    "ReadOnly": True,
                    "BindOptions": {"NonRecursive": True},
                },
                {"Type": "tmpfs", "Target": "/var", "ReadOnly": True, "TmpfsOptions": {"SizeBytes": 4096}},
            ],
            "NetworkMode": "none",
            "PidsLimit": 64,
            "Privileged": False,
            "ReadonlyRootfs": True,
            "RestartPolicy": {"Name": "no"},
            "SecurityOpt": ["no-new-privileges"],
            "ShmSize": 32 * MIB,
            "Tmpfs": {"/tmp": f"rw,nosuid,nodev,noexec,size={16 * MIB},mode=1777,uid=1000,gid=100"},
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        },
    }


def test_a_payload_says_that_the_host_s_network_is_shared_and_is_read_back(image: TinyImage) -> None:
    request = request_of(Trial(script="true", network="host"), image.pin, Path("/o"))
    payload = container_payload(request, LIMITS, {"Id": SHA}, user=(1, 1))
    config = {"Cmd": payload["Cmd"], "Entrypoint": None, "User": "1:1", "Env": payload["Env"]}
    host = payload["HostConfig"]
    assert (host["NetworkMode"], payload["Hostname"]) == ("host", "localhost")
    assert differences(payload, {"HostConfig": host | {"NetworkMode": "bridge"}, "Config": config}) == [
        "NetworkMode is 'bridge', not 'host'"
    ]


def test_a_container_that_the_daemon_made_otherwise_is_told_by_what_differs(image: TinyImage) -> None:
    request = request_of(Trial(script="true"), image.pin, Path("/o"))
    payload = container_payload(request, LIMITS, {"Id": SHA}, user=(1, 1))
    host = payload["HostConfig"] | {"Memory": 0, "Privileged": True, "DeviceRequests": None}
    config = {"Cmd": payload["Cmd"], "Entrypoint": None, "User": "1:1", "Env": [*payload["Env"], "EXTRA=1"]}
    assert differences(payload, {"HostConfig": host, "Config": config}) == [
        f"Memory is 0, not {256 * MIB}",
        "Privileged is True, not False",
        (
            "Env is ['EXTRA=1', 'HOME=/tmp', 'LC_ALL=C.UTF-8', 'PATH=/bin', 'PWD=/'], "
            "not ['HOME=/tmp', 'LC_ALL=C.UTF-8', 'PATH=/bin', 'PWD=/']"
        ),
    ]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ({"Status": "created", "ExitCode": 0, "FinishedAt": "0001-01-01T00:00:00Z"}, None),
        ({"Status": "running", "ExitCode": 0, "FinishedAt": "0001-01-01T00:00:00Z"}, None),
        ({"Status": "exited", "ExitCode": 0, "FinishedAt": "0001-01-01T00:00:00Z"}, None),
        ({"Status": "exited"}, None),
        (ENDED, Outcome(kind="exited", exit_code=0)),
        (ENDED | {"ExitCode": 3}, Outcome(kind="exited", exit_code=3)),
        (ENDED | {"ExitCode": 137}, Outcome(kind="killed", exit_code=137)),
        (
            ENDED | {"OOMKilled": True},
            Outcome(kind="out-of-memory", exit_code=0, detail="killed at the container's memory limit"),
        ),
        (
            ENDED | {"Status": "dead"},
            Outcome(kind="lost", exit_code=0, detail="the daemon could not clean up after the container"),
        ),
        (
            ENDED | {"ExitCode": 135},
            Outcome(kind="exited", exit_code=135, detail="SIGBUS: most often /dev/shm is full; raise hardware.shm_gib"),
        ),
    ],
)
def test_a_state_tells_how_a_container_ended(state: dict[str, Any], outcome: Outcome | None) -> None:
    assert docker_payload.outcome_of(state) == outcome


def test_limits_are_what_the_machine_has_at_most() -> None:
    limits = fit(LIMITS, 20 * MIB)
    assert (limits.memory_bytes, limits.shm_bytes, limits.tmp_bytes, limits.pids) == (20 * MIB, 20 * MIB, 16 * MIB, 64)


def test_a_daemon_s_words_cannot_drive_a_terminal() -> None:
    assert plain_text("a\x1b[31mred\x1b[0m \x1b]0;title\x07b\r\nc\x9b2J\u202e") == "a red b c 2J"


@pytest.mark.usefixtures("docker_engine")
def test_a_container_outlives_xrun_and_keeps_its_result(docker_client: Any, image: TinyImage, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    trial = "Trial(script='sleep 1; echo result > /out/result; echo done; exit 7')"
    name = container_name("orphan")
    code = f"""
import os, signal, pathlib
from engines.tiny_image import TinyImage, TinyImages
from engines.trial import Trial, request_of
from runner.engines.docker import DockerEngine
from runner.lock import ImagePin
pin = {image.pin!r}
engine = DockerEngine(TinyImages(TinyImage(pin=pin, root=pathlib.Path("/nowhere"), blobs={{}})))
folder = pathlib.Path({str(tmp_path)!r})
engine.start(request_of({trial}, pin, folder / "out", {name!r}), folder / "log")
os.kill(os.getpid(), signal.SIGKILL)
"""
    here = Path(__file__).parents[2]
    environment = dict(os.environ) | {"PYTHONPATH": f"{here}:{here / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    until(lambda: docker_client.inspect_container(name)["State"]["Status"] == "exited")
    assert docker_client.inspect_container(name)["State"]["ExitCode"] == 7
    assert docker_client.inspect_container(name)["Config"]["Labels"] == {"xrun.run": name, "xrun.store": ""}
    assert docker_client.logs(name) == b"done\n"
    assert (tmp_path / "out/result").read_text() == "result\n"


def test_a_run_has_one_container(docker_engine: DockerEngine, image: TinyImage, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    request = request_of(Trial(script="sleep 30"), image.pin, tmp_path / "out", container_name("twice"))
    container = docker_engine.start(request, tmp_path / "log")
    with pytest.raises(EngineError) as refused:
        docker_engine.start(request, tmp_path / "log2")
    assert refused.value.message.startswith(
        f"the Docker daemon does not create container {request.name}: Conflict. The container name"
    )
    container.stop(0)


def test_a_container_removed_by_somebody_is_lost(
    docker_client: Any, docker_engine: DockerEngine, image: TinyImage, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    request = request_of(Trial(script="sleep 30"), image.pin, tmp_path / "out", container_name("gone"))
    container = docker_engine.start(request, tmp_path / "log")
    docker_client.remove_container(request.name, force=True)
    assert outcome_of(container) == Outcome(kind="lost", exit_code=255, detail="the daemon has this container no more")
    container.remove()


def test_a_child_killed_for_memory_is_told_though_the_program_exits_with_zero(
    docker_engine: DockerEngine, image: TinyImage, tmp_path: Path
) -> None:
    limits = dataclasses.replace(LIMITS, memory_bytes=24 * MIB, shm_bytes=MIB)
    trial = Trial(script="dd if=/dev/zero of=/dev/null bs=64M count=100 & wait; sleep 0.5; exit 0", limits=limits)
    report = perform(docker_engine, trial, image.pin, tmp_path, container_name("child"))
    assert report.outcome == Outcome(kind="out-of-memory", exit_code=0, detail="killed at the container's memory limit")


def test_gpus_without_a_runtime_for_them_are_refused_and_leave_nothing(
    docker_client: Any, docker_engine: DockerEngine, image: TinyImage, tmp_path: Path
) -> None:
    if "nvidia" in docker_client.info()["Runtimes"]:
        pytest.skip("this daemon has a GPU runtime")
    (tmp_path / "out").mkdir()
    request = request_of(Trial(script="true"), image.pin, tmp_path / "out", container_name("gpu"))
    with pytest.raises(EngineError) as refused:
        docker_engine.start(dataclasses.replace(request, gpus=("GPU-1",)), tmp_path / "log")
    assert refused.value.message == (
        'the container does not start: could not select device driver "" with capabilities: [[gpu]]'
    )
    assert docker_client.containers(all=True, filters={"name": request.name}) == []
    assert (tmp_path / "out").stat().st_uid == os.geteuid()


def test_a_missing_source_is_refused_and_not_made(
    docker_engine: DockerEngine, image: TinyImage, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    trial = Trial(script="true", mounts=(Mount(source=tmp_path / "nothing", target="/data"),))
    with pytest.raises(EngineError, match="bind source path does not exist"):
        docker_engine.start(request_of(trial, image.pin, tmp_path / "out", container_name("source")), tmp_path / "log")
    assert not (tmp_path / "nothing").exists()


def test_the_process_id_is_the_host_s(docker_engine: DockerEngine, image: TinyImage, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    request = request_of(Trial(script="sleep 30"), image.pin, tmp_path / "out", container_name("pid"))
    container = docker_engine.start(request, tmp_path / "log")
    pid = container.pid()
    assert pid is not None
    assert "sleep 30" in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    container.stop(0)
    assert container.pid() is None


@pytest.fixture
def odd_daemon() -> Iterator[str]:
    """A server on loopback that answers every request with an error page that is no daemon's."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=answer)
    thread.start()
    yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_an_odd_answer_is_an_engine_error(odd_daemon: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", odd_daemon)
    with pytest.raises(EngineError) as refused:
        connect(5)
    assert refused.value.message.startswith("no Docker daemon answers: ")
    assert refused.value.hint == "start it, or use engine=embedded"


def test_no_daemon_is_an_engine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineError) as refused:
        connect(5)
    assert refused.value.message == f"no Docker daemon answers: {tmp_path}/none.sock: No such file or directory"


@pytest.mark.usefixtures("docker_client")
def test_the_proxy_of_the_user_s_docker_settings_stays_out(
    image: TinyImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "docker"
    settings.mkdir()
    (settings / "config.json").write_text('{"proxies": {"default": {"httpProxy": "http://user:secret@127.0.0.1:9"}}}')
    monkeypatch.setenv("DOCKER_CONFIG", str(settings))
    engine = DockerEngine(TinyImages(image))
    report = perform(engine, Trial(script="env"), image.pin, tmp_path, container_name("proxy"))
    assert set(report.log.splitlines()) == {f"{name}={value}" for name, value in ENVIRONMENT.items()} | {
        "PWD=/",
        "SHLVL=1",
    }
