"""A project whose experiments run on this host, without an image: whole commands, in seconds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from inside.jobs import TINY

ROOT = Path(__file__).parent.parent

IMAGE = """\
name: none
source: registry
ref: registry.example/none@sha256:0000000000000000000000000000000000000000000000000000000000000000
platform: linux/amd64
python: python3
"""
EXPERIMENT = """\
# @package _global_
experiment: {name: tiny, module: tiny}
optim: {kind: AdamW, fused: true, lr: 0.01}
training: {steps: 30, batch_size: 16}
"""
COMMAND = """\
# @package _global_
experiment:
  name: said
  command:
    - python3
    - -c
    - "import os; open('a.txt', 'w').write('a'); open('b.txt', 'w').write(str(os.path.exists(FLAG)))"
  outputs: [a.txt, b.txt]
training: {steps: 1, batch_size: 1}
"""
# A training in small: its loss falls to what x decides; what it does is for the test to say.
CURVE = """\
# @package _global_
experiment:
  name: curve
  command:
    - python3
    - -c
    - |
      import json, os, pathlib, sys, time
      x, steps, folder = float(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
      if (folder / f"fail-{x:g}").exists():
          sys.exit(7)
      for step in range(1, steps + 1):
          with open("metrics.jsonl", "a") as metrics:
              print(json.dumps({"step": step, "loss": (x - 3) ** 2 + 1 / step}), file=metrics)
          while (folder / f"hold-{x:g}").exists():
              time.sleep(0.02)
    - ${model.x}
    - ${model.steps}
    - FOLDER
  outputs: [metrics.jsonl]
  metrics: metrics.jsonl
model: {x: 1.0, steps: 2}
training: {steps: 1, batch_size: 1}
"""
# Nothing in a replay may decide by what is around it; this experiment does, at step 17, and is found out.
FAULT = """
    if os.path.exists(FLAG) and draws.ids is not None and count_calls() == 17:
        inputs[0, 0] += 2.0**-20
    return inputs, data[1][draws.ids]

calls = []

def count_calls():
    calls.append(1)
    return len(calls)
"""


class Bench:
    """A project whose experiment runs on this host, without an image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flag = folder / "flag"

    def xrun(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XRUN_HOME": str(self.folder / "home"), **variables}
        argv = [sys.executable, "-m", "runner", *words]
        return subprocess.run(argv, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def run(self, *words: str) -> str:
        ran = self.xrun("engine=host", "image=none", "tracking=off", "hardware.threads=1", *words)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.split()[1]

    def replay(self, run_id: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.xrun("replay", run_id, "--engine", "host", *words)

    def replay_with(self, variable: str, run_id: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Replay where a library is told to use other instructions: to a run, that is another machine."""
        python = self.folder / "python"
        python.write_text(f'#!/bin/sh\n{variable} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return self.xrun("replay", run_id, "--engine", "host", *words, XRUN_HOST_PYTHON=str(python))

    def record(self, run_id: str = "last") -> "dict[str, object]":
        return dict(json.loads(self.xrun("show", run_id, "--json").stdout))


def make_bench(folder: Path) -> Bench:
    """Lay out a project with an experiment and a command, both of which can be told to differ."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / "experiments").mkdir()
    flag = repr(str(folder / "flag"))
    source = TINY.replace("    return inputs, data[1][draws.ids]\n", FAULT).replace("FLAG", flag)
    (folder / "experiments" / "tiny.py").write_text(source)
    (folder / "conf" / "image" / "none.yaml").write_text(IMAGE)
    (folder / "conf" / "experiment" / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "conf" / "experiment" / "curve.yaml").write_text(CURVE.replace("FOLDER", str(folder)))
    (folder / "conf" / "experiment" / "said.yaml").write_text(COMMAND.replace("FLAG", flag))
    return Bench(folder)
