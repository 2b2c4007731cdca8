"""What a trial costs beside a bare `docker run` of the same container: image, argv, mounts, variables, limits."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.sweep_project import SweepProject
from runner.container import Conduct, Places, container_request
from runner.engines.docker_image import require_image
from runner.engines.docker_payload import UNPRIVILEGED, container_payload
from runner.engines.dockerd import connect
from runner.engines.ownership import give
from runner.engines.request import fit
from runner.images.store import ImageStore
from runner.project import home
from runner.source import stored
from runner.store import RunStore

NONCE = "n" * 32


def cost(folder: Path, engine: str, experiment: str, trials: int, rounds: int) -> dict[str, Any]:
    """Run as many trials by xrun and by bare `docker run`, one after the other, in turns. Returns seconds a trial."""
    project = SweepProject(folder / "project", engine, 2)
    project.lay_out()
    words = [f"experiment={experiment}", "training.steps=1"]
    project.run(*words)  # the lock, the image
    bare = Bare(project.store, folder)
    bare.run(1)
    by_xrun_s, steady_s, by_docker_s = [], [], []
    for number in range(rounds):
        begun_s = time.monotonic()
        project.run("-m", *words, "sweep.jobs=1", f"seed=range({trials * number + 1},{trials * number + 1 + trials})")
        by_xrun_s.append((time.monotonic() - begun_s) / trials)
        uses = sorted({(use.from_s, use.to_s) for use in project.uses() if use.from_s >= begun_s})
        assert len(uses) == trials, f"{len(uses)} of {trials} trials have run"
        steady_s.append((uses[-1][1] - uses[0][0]) / trials)
        by_docker_s.append(bare.run(trials) / trials)
        print(json.dumps([by_xrun_s[-1], steady_s[-1], by_docker_s[-1]]), file=sys.stderr, flush=True)
    return {
        "trials": trials,
        "rounds_s": {
            who: [round(seconds, 3) for seconds in measured]
            for who, measured in (("xrun", by_xrun_s), ("docker run", by_docker_s))
        },
        "xrun_s": round(statistics.median(by_xrun_s), 3),
        "xrun_s_from_the_first_start_on": round(statistics.median(steady_s), 3),
        "docker_run_s": round(statistics.median(by_docker_s), 3),
        "ratio": round(statistics.median(by_xrun_s) / statistics.median(by_docker_s), 3),
        "ratio_from_the_first_start_on": round(statistics.median(steady_s) / statistics.median(by_docker_s), 3),
    }


class Bare:
    """The container of a run, as `docker run` starts it."""

    def __init__(self, store: RunStore, folder: Path) -> None:
        self._folder = folder / "bare"
        (self._folder / "control").mkdir(parents=True)
        self._run = store.find("last")
        self._spec = store.load_spec(self._run)
        self._source = stored(store.root, self._spec.source).folder
        started = store.started(self._run)
        assert started.conducted is not None
        self._conduct = Conduct(
            nonce=NONCE,
            log_every_steps=started.conducted.tracking.log_every_steps,
            hang_timeout_s=started.conducted.scheduler.hang_timeout_s,
            limits=started.conducted.limits,
        )
        self._client = connect(30)
        self._image = require_image(self._client, ImageStore(home(os.environ)), self._spec.image)
        self._count = 0

    def run(self, count: int) -> float:
        """Run the container so often, one after the other, and return the seconds. Its folders are made before."""
        argvs = [self._argv() for _ in range(count)]
        begun_s = time.monotonic()
        for argv in argvs:
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        return time.monotonic() - begun_s

    def _argv(self) -> list[str]:
        """Return the command line that starts the container that engine=docker would, for one more run."""
        self._count += 1
        out = self._folder / str(self._count)
        out.mkdir()
        if os.geteuid() == 0:
            give([out], UNPRIVILEGED, UNPRIVILEGED)
        control = self._folder / "control"
        places = Places(
            store=self._folder, source=self._source, spec=self._run.spec, out=out, control=control, data=None
        )
        request = container_request(f"bare-{self._count}", self._spec, places, self._conduct)
        limits = fit(request.limits, int(self._client.info()["MemTotal"]))
        user = (UNPRIVILEGED, UNPRIVILEGED) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        return docker_argv(container_payload(request, limits, self._image, user=user))


def docker_argv(payload: dict[str, Any]) -> list[str]:
    """Return the words of `docker run` for the body of `POST /containers/create`."""
    host = payload["HostConfig"]
    words = ["docker", "run", "--rm", "--init", "--read-only", "--no-healthcheck", "--entrypoint", ""]
    for name, value in (
        ("--user", payload["User"]),
        ("--workdir", payload["WorkingDir"]),
        ("--hostname", payload["Hostname"]),
        ("--ipc", host["IpcMode"]),
        ("--memory", host["Memory"]),
        ("--memory-swap", host["MemorySwap"]),
        ("--network", host["NetworkMode"]),
        ("--pids-limit", host["PidsLimit"]),
        ("--shm-size", host["ShmSize"]),
        ("--ulimit", "core=0:0"),
        *(("--cap-drop", name) for name in host["CapDrop"]),
        *(("--security-opt", option) for option in host["SecurityOpt"]),
        *(("--tmpfs", f"{target}:{options}") for target, options in host["Tmpfs"].items()),
        *(("--env", variable) for variable in payload["Env"] if "=" in variable),
        *(("--mount", _mount(mount)) for mount in host["Mounts"]),
    ):
        words += [name, str(value)]
    return [*words, payload["Image"], *payload["Cmd"]]


def _mount(mount: dict[str, Any]) -> str:
    read_only = ",readonly" if mount["ReadOnly"] else ""
    source = f",source={mount['Source']}" if "Source" in mount else ""
    return f"type={mount['Type']},target={mount['Target']}{source}{read_only}"
