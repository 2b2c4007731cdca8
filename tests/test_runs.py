"""Whole runs in real containers: precision, ranks, experiments, what a container sees, what is refused."""

import json
import re
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from bare_machine import BareMachine

pytestmark = pytest.mark.image

SHORT = (
    "experiment=resnet50",
    "training.steps=3",
    "training.batch_size=8",
    "data.test_images=64",
    "data.test_batch_size=8",
)
ENGINES = ("embedded", "docker")


def run(machine: BareMachine, words: Sequence[str], docker_host: str) -> dict[str, object]:
    machine.xrun(*words, DOCKER_HOST=docker_host)
    record = json.loads(machine.xrun("show", "last", "--json").stdout)
    assert record["status"] == "done"
    return dict(record)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("hardware.ranks=2", "precision=bf16"),
        ("precision=fp16",),
        ("training.micro_batches=2", "training.clip_norm=1.0"),
    ],
    ids=" ".join,
)
def test_twice_on_each_engine_gives_one_fingerprint(
    machine: BareMachine, docker_host: str, words: tuple[str, ...]
) -> None:
    records = [run(machine, (*SHORT, *words, f"engine={name}"), docker_host) for name in (*ENGINES, *ENGINES)]
    assert [record["engine"] for record in records] == [*ENGINES, *ENGINES]
    assert len({record["fingerprint"] for record in records}) == 1


def test_another_seed_gives_another_fingerprint(machine: BareMachine, docker_host: str) -> None:
    records = [run(machine, (*SHORT, f"seed={seed}", "engine=embedded"), docker_host) for seed in (0, 1)]
    assert len({record["fingerprint"] for record in records}) == 2


def test_chargpt_learns(machine: BareMachine, docker_host: str) -> None:
    record = run(machine, ("experiment=chargpt",), docker_host)
    events = (machine.folder / "runs" / str(record["id"]) / "out" / "events.jsonl").read_text().splitlines()
    losses = [event["loss"] for event in map(json.loads, events) if event["kind"] == "step"]
    assert losses[0] > 3.0
    assert losses[-1] < 2.5


def test_a_command_is_an_experiment_too(machine: BareMachine, docker_host: str) -> None:
    records = [run(machine, ("experiment=hello", f"engine={name}"), docker_host) for name in ENGINES]
    assert len({record["fingerprint"] for record in records}) == 1


KEY = "canary" * 8
PROBE = """
import json, os, socket, sys
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
    network = "reached"
except OSError as error:
    network = error.strerror
json.dump({
    "network": network,
    "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line),
    "environment": dict(os.environ),
    "wandb": any(os.path.exists(folder + "/wandb") for folder in sys.path),
}, open("/out/probe.json", "w"))
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_container_has_no_network_no_key_and_no_wandb(machine: BareMachine, docker_host: str, engine: str) -> None:
    experiment = machine.folder / "conf" / "experiment" / "probe.yaml"
    argv = json.dumps(["python3", "-c", PROBE])
    experiment.write_text(
        f"# @package _global_\nexperiment: {{name: probe, command: {argv}, outputs: [probe.json]}}\n"
        "training: {steps: 1, batch_size: 1}\n"
    )
    try:
        machine.xrun("experiment=probe", f"engine={engine}", "tracking=off", DOCKER_HOST=docker_host, WANDB_API_KEY=KEY)
    finally:
        experiment.unlink()
        (machine.folder / "lock" / "probe.cpu.lock").unlink(missing_ok=True)
    record = json.loads(machine.xrun("show", "last", "--json").stdout)
    folder = machine.folder / "runs" / record["id"]
    seen = json.loads((folder / "out" / "probe.json").read_text())
    assert seen["network"] == "Network is unreachable"
    assert seen["interfaces"] == ["lo"]
    assert not seen["wandb"]
    assert not [name for name in seen["environment"] if name.startswith("WANDB")]
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert KEY.encode() not in written


def test_the_offline_wandb_run_holds_every_value_that_was_logged(machine: BareMachine, docker_host: str) -> None:
    record = run(machine, (*SHORT, "engine=embedded", "tracking.wandb=offline"), docker_host)
    folder = machine.folder / "runs" / str(record["id"])
    [log] = folder.joinpath("wandb").rglob("*.wandb")
    read = machine.bash(f". .venv/bin/activate && wandb leet inspect --json '{log}'").stdout
    events = [json.loads(line) for line in (folder / "out" / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event["kind"] == "step":
            assert repr(event["loss"]) in read
    assert str(record["fingerprint"]) in read


def refusal(machine: BareMachine, *words: str, **variables: str) -> tuple[int, str]:
    ran = machine.xrun(*words, check=False, **variables)
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("edited", ["lock/resnet50.cpu.lock"], indirect=True)
def test_an_edited_lock_is_refused(machine: BareMachine, edited: Path) -> None:
    lock = edited.read_text()
    edited.write_text(lock.replace("threads = 2", "threads = 3"))
    code, message = refusal(machine, "experiment=resnet50")
    assert code == 3
    assert re.fullmatch(
        r"error: lock/resnet50\.cpu\.lock has been edited: its content has digest sha256:[0-9a-f]{64}, it says"
        rf" {tomllib.loads(lock)['digest']}\n\nhint: git checkout -- lock/resnet50\.cpu\.lock\n",
        message,
    )


def test_a_changed_pin_needs_a_new_lock(machine: BareMachine) -> None:
    code, message = refusal(machine, "experiment=resnet50", "hardware.threads=4")
    assert code == 3
    assert message == (
        "error: lock/resnet50.cpu.lock pins something else:\n  hardware.threads: lock 2, asked 4\n\n"
        "hint: xrun lock experiment=resnet50 hardware=cpu\n"
    )


@pytest.mark.parametrize("edited", ["conf/experiment/resnet50.yaml"], indirect=True)
def test_locked_names_the_key_that_conf_has_changed(machine: BareMachine, edited: Path) -> None:
    edited.write_text(re.sub(r"momentum: [\d.]+", "momentum: 0.5", edited.read_text()))
    for words in (("experiment=resnet50", "--locked"), ("lock", "experiment=resnet50", "--check")):
        code, message = refusal(machine, *words)
        assert code == 3
        assert "lock/resnet50.cpu.lock is out of date:\n  optim.momentum: lock 0.9, asked 0.5\n" in message


def test_a_missing_lock_is_refused_by_locked(machine: BareMachine) -> None:
    (machine.folder / "lock" / "hello.cpu.lock").unlink(missing_ok=True)
    code, message = refusal(machine, "experiment=hello", "--locked")
    assert code == 3
    assert message == "error: lock/hello.cpu.lock is missing\n\nhint: xrun lock experiment=hello hardware=cpu\n"


def test_hardware_that_is_not_here_is_refused(machine: BareMachine) -> None:
    code, message = refusal(machine, "experiment=resnet50", "hardware=h200")
    assert code == 6
    assert message.startswith("error: this machine is not what lock/resnet50.h200.lock requires:\n  1 x NVIDIA H200")


def test_a_tampered_layer_is_refused_before_docker_sees_it(machine: BareMachine, docker_host: str) -> None:
    lock = tomllib.loads((machine.folder / "lock" / "resnet50.cpu.lock").read_text())
    layer = lock["image"]["diff_ids"][1]
    blob = Path(machine.environment["HOME"], ".cache/xrun/images/blobs/sha256", layer.removeprefix("sha256:"))
    content = blob.read_bytes()
    subprocess.run(["docker", "image", "rm", "-f", lock["image"]["config"]], check=False, capture_output=True)
    tampered = bytearray(content)
    tampered[len(content) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(bytes(tampered))
    try:
        code, message = refusal(machine, *SHORT, "engine=docker", DOCKER_HOST=docker_host)
        assert code == 4
        assert layer in message
        code, message = refusal(machine, "image", "verify")
        assert code == 4
        assert layer in message
    finally:
        blob.write_bytes(content)


def test_a_failing_experiment_shows_its_traceback_and_exits_1(machine: BareMachine, docker_host: str) -> None:
    broken = machine.folder / "experiments" / "broken.py"
    config = machine.folder / "conf" / "experiment" / "broken.yaml"
    broken.write_text("def load(config, folder):\n    raise ValueError('no such layer')\n")
    config.write_text(
        "# @package _global_\nexperiment: {name: broken, module: broken}\ntraining: {steps: 1, batch_size: 1}\n"
    )
    try:
        code, message = refusal(machine, "experiment=broken", "engine=embedded", DOCKER_HOST=docker_host)
    finally:
        broken.unlink()
        config.unlink()
        (machine.folder / "lock" / "broken.cpu.lock").unlink(missing_ok=True)
    assert code == 1
    assert "ValueError: no such layer" in message
    record = json.loads(machine.xrun("show", "last", "--json").stdout)
    assert (record["status"], record["fingerprint"]) == ("failed", None)


@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_stops_the_container_and_marks_the_run(machine: BareMachine, docker_host: str, engine: str) -> None:
    environment = {**machine.environment, "DOCKER_HOST": docker_host}
    argv = [str(machine.folder / ".venv/bin/xrun"), "experiment=resnet50", f"engine={engine}"]
    running = subprocess.Popen(
        argv, cwd=machine.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    while "step" not in (line := running.stderr.readline()):
        assert line, "xrun ended early"
    running.send_signal(2)
    running.communicate(timeout=60)
    assert running.returncode == 130
    record = json.loads(machine.xrun("show", "last", "--json").stdout)
    assert (record["status"], record["message"]) == ("interrupted", "stopped by a signal, with a checkpoint")
    assert not [path for path in Path("/proc").glob("[0-9]*") if _speaks_of(path, record["id"].encode())]


def _speaks_of(process: Path, words: bytes) -> bool:
    try:
        return words in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_a_run_whose_xrun_was_killed_is_taken_up_to_the_fingerprint_of_one_that_was_not(
    machine: BareMachine, docker_host: str
) -> None:
    whole = run(machine, (*SHORT, "engine=docker"), docker_host)
    environment = {**machine.environment, "DOCKER_HOST": docker_host}
    argv = [str(machine.folder / ".venv/bin/xrun"), *SHORT, "engine=docker"]
    running = subprocess.Popen(argv, cwd=machine.folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    while "started" not in (line := running.stderr.readline()):
        assert line, "xrun ended early"
    running.kill()
    running.communicate()
    killed = json.loads(machine.xrun("show", "last", "--json").stdout)
    assert killed["status"] == "interrupted"
    machine.xrun("resume", killed["id"], DOCKER_HOST=docker_host)
    record = json.loads(machine.xrun("show", killed["id"], "--json").stdout)
    assert (record["status"], record["exit_code"]) == ("done", 0)
    assert record["fingerprint"] == whole["fingerprint"]
    log = (machine.folder / "runs" / killed["id"] / "log.txt").read_text()
    assert log == (machine.folder / "runs" / str(whole["id"]) / "log.txt").read_text()
