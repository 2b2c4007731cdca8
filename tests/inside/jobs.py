"""Jobs as the host hands them over: a source folder, a spec, an environment, and a real process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import runner
from runner.canonical import canonical_bytes
from runner.levels import environment

REPOSITORY = Path(runner.__file__).parents[1]

# Batch norm and dropout: all kinds of state that a run can have. `fault` plants what the name says.
TINY = """
import os, time
import torch
from torch import nn
from torch.nn import functional

def load(config, folder):
    ids = torch.arange(64)
    return (ids[:, None] * torch.arange(1, 9) * 37 % 101).float() / 50 - 1, ids % 3

def count(data):
    return len(data[0])

def model(config, data):
    if config["model"].get("sync"):
        return nn.Sequential(nn.Linear(8, 32), nn.SyncBatchNorm(32), nn.Linear(32, 3))
    if config["model"].get("compiled"):
        return torch.compile(nn.Linear(8, 3))
    if config["model"].get("plain"):
        return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))

def optimizer(config, model):
    kind, fused = getattr(torch.optim, config["optim"]["kind"]), config["optim"]["fused"]
    made = kind(model.parameters(), lr=config["optim"]["lr"], fused=fused)
    if config["data"].get("fault") == "drift" and os.environ["RANK"] == "1":
        made.register_step_post_hook(lambda *_: next(model.parameters()).data.view(-1)[0].add_(1e-6))
    return made

def batch(config, data, draws):
    inputs = data[0][draws.ids] + draws.integers("noise", 8)[:, None] / 64
    fault = config["data"].get("fault")
    if os.environ.get("RANK") == config["data"].get("rank", "1") and int(draws.epochs[0]) == 1:
        if fault == "raise":
            raise ValueError("sample 41 cannot be read")
        if fault == "die":
            os.kill(os.getpid(), 9)
    if fault == "hang" and os.environ.get("RANK", "0") == config["data"]["rank"] and int(draws.epochs[0]) == 1:
        time.sleep(1000)
    if fault == "threads":
        torch.set_num_threads(2)
    return inputs, data[1][draws.ids]

def loss(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])

def test_batches(config, data):
    return [(data[0][at : at + 16], data[1][at : at + 16]) for at in range(0, 64, 16)]

def score(model, batch):
    logits = model(batch[0]).float()
    return {"samples": 16, "accuracy": int((logits.argmax(1) == batch[1]).sum())}
"""

OWN_LOOP = """
from experiments import tiny
from runner.inside.seeding import Sampler

def train(session):
    data = tiny.load(session.config, session.job.data)
    model = tiny.model(session.config, data)
    model, _ = session.prepare(model, tiny.optimizer(session.config, model))
    sampler = Sampler(session.config["seed"], tiny.count(data))
    for _ in session.steps():
        for draws in session.micro_batches(sampler):
            batch = session.to_device(tiny.batch(session.config, data, draws))
            with session.autocast():
                loss = tiny.loss(model, batch)
            session.backward(loss)
        session.step()
    session.finish({"mine": 1.0})
"""


def make_spec(**changes: Any) -> dict[str, Any]:
    """A spec of the tiny experiment; a change names its place: `config__training__steps=9`."""
    experiment = {"name": "tiny", "module": "tiny", "command": [], "outputs": [], "data": []}
    training = {"steps": 6, "batch_size": 16, "micro_batches": 1, "eval_every_steps": 0, "checkpoint_every_steps": 0}
    training["checkpoints_kept"] = 0
    spec: dict[str, Any] = {
        "config": {
            "experiment": experiment,
            "seed": 7,
            "model": {},
            "optim": {"kind": "AdamW", "fused": True, "lr": 0.01},
            "data": {},
            "training": training,
            "schedule": {"kind": "cosine", "warmup_steps": 2, "final_scale": 0.1},
            "precision": "fp32",
        },
        "ranks": 1,
        "hardware": {"device": "cpu", "threads": 1},
        "determinism": {"level": "repeat"},
        "data": {},
    }
    for name, value in changes.items():
        place, at = spec, name.split("__")
        for key in at[:-1]:
            place = place[key]
        place[at[-1]] = value
    spec.setdefault("virtual_ranks", spec["ranks"])
    determinism = spec["determinism"]
    determinism.setdefault(
        "environment", environment(determinism["level"], spec["hardware"]["threads"], spec["config"]["precision"])
    )
    return spec


class Ran:
    """What a process left."""

    def __init__(self, exit_code: int, output: str, out: Path) -> None:
        self.exit_code = exit_code
        self.output = output
        self.out = out

    @property
    def done(self) -> dict[str, Any]:
        """done.json."""
        assert self.exit_code == 0, self.output
        done: dict[str, Any] = json.loads((self.out / "done.json").read_bytes())
        return done

    @property
    def events(self) -> list[dict[str, Any]]:
        """events.jsonl."""
        return [json.loads(line) for line in (self.out / "events.jsonl").read_text().splitlines()]

    def error(self, rank: int = 0) -> str:
        """What a rank says it failed of."""
        return (self.out / "errors" / f"rank{rank}.txt").read_text()


def source_folder(folder: Path) -> Path:
    """Lay out a source folder as the host does: the harness, and the tiny experiment beside the shipped ones."""
    source = folder / "source"
    if not source.exists():
        (source / "experiments").mkdir(parents=True)
        (source / "runner").symlink_to(REPOSITORY / "runner")
        (source / "experiments" / "tiny.py").write_text(TINY)
        (source / "experiments" / "own_loop.py").write_text(OWN_LOOP)
        for beside in (REPOSITORY / "experiments", Path(__file__).with_name("experiments")):
            for module in beside.glob("*.py"):
                (source / "experiments" / module.name).symlink_to(module)
    return source


def start(folder: Path, spec: Mapping[str, Any], **options: Any) -> "subprocess.Popen[str]":
    """Start a spec in a real process.

    Options: name, data, hang_timeout_s, environment (laid over), launcher (argv), program (what Python runs).
    """
    out = folder / options.get("name", "out")
    out.mkdir(exist_ok="XRUN_NODE" in options.get("environment", {}))  # nodes share it
    spec_file = folder / f"{out.name}.json"
    spec_file.write_bytes(canonical_bytes(spec))
    variables = {
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        "XRUN_CONTROL": str(folder),
        "XRUN_DATA": str(options.get("data", folder / "data")),
        "XRUN_HANG_TIMEOUT_S": str(options.get("hang_timeout_s", 300)),
        "XRUN_LOG_EVERY_STEPS": "2",
        "XRUN_NONCE": "a-nonce",
        "XRUN_OUT": str(out),
        "XRUN_SPEC": str(spec_file),
        **spec["determinism"]["environment"],
        **options.get("environment", {}),
    }
    program = options.get("program", ["-m", "runner.inside"])
    argv = [*options.get("launcher", []), sys.executable, *program]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=source_folder(folder), env=variables, stdout=pipe, stderr=pipe, text=True)


def run(folder: Path, spec: Mapping[str, Any], **options: Any) -> Ran:
    """Run a spec in a real process, with the options of `start`."""
    process = start(folder, spec, **options)
    output = "".join(process.communicate(timeout=900))
    return Ran(process.returncode, output, folder / options.get("name", "out"))
