"""The host engine: container paths become the host's, a whole group ends with its program."""

import dataclasses
import os
from pathlib import Path

import pytest

from engines.trial import LIMITS, Trial, outcome_of, perform, request_of, until
from runner.engines.host import HostEngine, host_argv, host_environment
from runner.engines.request import ContainerRequest, Mount, Outcome
from runner.errors import EngineError
from runner.lock import ImagePin

PIN = ImagePin(name="any", ref="any", platform="linux/amd64", python="python3", source="recipe", manifest="sha256:0")
REQUEST = ContainerRequest(
    name="run",
    image=PIN,
    argv=("python3", "-m", "inside", "/xrun/spec.json", "/xrun/specification", "--out=/out"),
    environment=(("HOME", "/tmp"), ("PATH", "/image/bin"), ("XRUN_OUT", "/out"), ("XRUN_SPEC", "/xrun/spec.json")),
    mounts=(
        Mount(source=Path("/host/source"), target="/xrun/source"),
        Mount(source=Path("/host/spec"), target="/xrun/spec.json"),
        Mount(source=Path("/host/out"), target="/out", read_only=False),
    ),
    limits=LIMITS,
    workdir="/xrun/source",
)


def test_python_and_paths_are_the_host_s() -> None:
    assert host_argv(REQUEST, "/host/python") == [
        "/host/python",
        "-m",
        "inside",
        "/host/spec",
        "/xrun/specification",
        "--out=/out",
    ]


def test_the_environment_is_the_request_s_with_the_host_s_search_paths() -> None:
    host = {"PATH": "/host/bin", "LD_LIBRARY_PATH": "/host/lib", "WANDB_API_KEY": "secret"}
    assert host_environment(REQUEST, host) == {
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": "/tmp",
        "LD_LIBRARY_PATH": "/host/lib",
        "PATH": "/host/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XRUN_OUT": "/host/out",
        "XRUN_SPEC": "/host/spec",
    }


def test_only_the_request_s_gpus_are_visible() -> None:
    gpus = dataclasses.replace(REQUEST, gpus=("GPU-1", "GPU-2"))
    assert host_environment(gpus, {})["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"


def test_a_program_runs_in_its_folder_and_is_logged(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    request = dataclasses.replace(
        request_of(Trial(script=""), PIN, tmp_path / "out"),
        argv=("python3", "-c", "import os; print(os.getcwd()); raise SystemExit(4)"),
        workdir="/out",
    )
    container = HostEngine().start(request, tmp_path / "log")
    assert outcome_of(container) == Outcome(kind="exited", exit_code=4)
    assert (tmp_path / "log").read_text() == f"{tmp_path}/out\n"


def test_a_stopped_program_takes_its_whole_group_with_it(tmp_path: Path) -> None:
    script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$; sleep 60' & wait; wait"
    report = perform(HostEngine(), Trial(script=script, stop_at="\n", grace_s=0.2), PIN, tmp_path)
    assert report.outcome == Outcome(kind="killed", exit_code=137)
    child = Path(f"/proc/{int(report.log)}")
    until(lambda: not child.exists() or ") Z " in (child / "stat").read_text())


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    request = dataclasses.replace(request_of(Trial(script=""), PIN, tmp_path / "out"), argv=("/no/program",))
    with pytest.raises(EngineError, match=r"^engine=host cannot start /no/program: No such file or directory$"):
        HostEngine().start(request, tmp_path / "log")


def test_another_python_may_be_named(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "asked for: $@"\n')
    program.chmod(0o755)
    (tmp_path / "out").mkdir()
    request = dataclasses.replace(request_of(Trial(script=""), PIN, tmp_path / "out"), argv=("python3", "-m", "inside"))
    container = HostEngine(os.fspath(program)).start(request, tmp_path / "log")
    assert outcome_of(container) == Outcome(kind="exited", exit_code=0)
    assert (tmp_path / "log").read_text() == "asked for: -m inside\n"
