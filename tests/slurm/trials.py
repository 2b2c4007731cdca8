"""Trials as a sweep submits them: `python trials.py <number> <word> …` prints run id -> job id of those SLURM took.

Runs that an earlier call has prepared are taken up again.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

from runner.images.store import ImageStore
from runner.plan import Planner, launch_of
from runner.prepare import Workshop
from runner.project import find_project, home
from runner.run_folder import RunFolder
from runner.slurm.arrays import submit_array
from runner.slurm.client import Slurm, runtime
from runner.slurm.placement import prepare
from runner.slurm_command import engine_on_nodes, placement_of
from runner.source import snapshot
from runner.store import RunStore


def prepared(count: int, words: list[str], workshop: Workshop, store: RunStore) -> list[RunFolder]:
    kept = Path("trials.json")
    if kept.exists():
        return [RunFolder(path=store.root / name) for name in json.loads(kept.read_text())]
    project = workshop.project
    planner = Planner(workshop, project, "plain", partial(snapshot, project.experiments, project.runs))
    folders = []
    for seed in range(count):
        plan = planner.plan([*words, f"seed={seed}"])
        placement = placement_of(launch_of(plan, ()), engine_on_nodes(plan.config), workshop)
        folders.append(prepare(placement, store, runtime(workshop.home)))
    kept.write_text(json.dumps([folder.id for folder in folders]))
    return folders


def main() -> None:
    project, home_folder = find_project(Path.cwd()), home(os.environ)
    images = ImageStore(home_folder)
    workshop = Workshop(project=project, home=home_folder, images=images, say=lambda _: None)
    store = RunStore(project.runs)
    folders = prepared(int(sys.argv[1]), sys.argv[2:], workshop, store)
    sys.stdout.write(json.dumps(submit_array(folders, store, Slurm(), runtime(home_folder))))


main()
