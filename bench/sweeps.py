"""What sweeps make of a machine: how busy its slots are, what a trial costs, and both beside what others have.

python -m bench.sweeps utilisation [--engine embedded] [--trials 64] [--slots 2] [--seconds 1]
python -m bench.sweeps cost [--engine embedded] [--experiment chargpt] [--trials 16] [--rounds 3]
python -m bench.sweeps joblib [--trials 24] [--slots 2] [--rounds 3]

utilisation: a grid of short runs. A slot counts as used while its trial has it, and `overlaps` must be 0.
cost: the wall clock of a whole sweep, one trial at a time, by its trials, beside that of as many bare `docker run`s of
the same container, in turns.
joblib: the same trials of unequal length by hydra-joblib-launcher (installed into a scratch environment by pip), in
turns. There a trial is a function call in a process that waits for it; here it is a process and a record of its own.

Each takes --json FILE, and keeps what the other parts have left there. From the repository's folder; XRUN_HOME as ever.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from bench.sweep_project import SHORT_WORDS, SweepProject, Use, gaps_s, load, utilisation
from bench.training import on_this_machine
from bench.trial_cost import cost

APP = """\
import json, os, time
import hydra

@hydra.main(version_base=None, config_path=None, config_name=None)
def main(config):
    begun_s = time.monotonic()
    time.sleep(config.seconds)
    log = os.open("LOG", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, (json.dumps([begun_s, time.monotonic()]) + chr(10)).encode())

main()
"""


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("part", choices=("utilisation", "cost", "joblib"))
    words.add_argument("--engine", default="embedded", choices=("embedded", "docker", "host"))
    words.add_argument("--experiment", default="chargpt", help="of cost; `hello` is a command")
    words.add_argument("--trials", type=int)
    words.add_argument("--slots", type=int, default=2)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--seconds", type=float, default=1.0)
    words.add_argument("--json", type=Path)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="xrun-sweeps-") as name:
        name_of_part = f"{asked.part} {asked.engine}" if asked.part != "joblib" else "joblib"
        if asked.part == "cost":
            name_of_part = f"cost {asked.engine} {asked.experiment}"
        result = {**PARTS[asked.part](Path(name), asked), **load(), "on": on_this_machine()}
    print(json.dumps({name_of_part: result}, indent=1))
    if asked.json is not None:
        known = json.loads(asked.json.read_text()) if asked.json.exists() else {}
        asked.json.write_text(json.dumps({**known, name_of_part: result}, indent=1) + "\n")
    return 1 if result.get("overlaps") else 0


def utilisation_of_slots(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run a grid of short runs, and read from its log of leases and from its runs how busy the slots were."""
    trials = asked.trials or 64
    project = SweepProject(folder / "project", asked.engine, asked.slots)
    project.lay_out()
    project.run(*SHORT_WORDS, "model.seconds=0")  # the lock, the image
    begun_s = time.monotonic()
    project.run("-m", *SHORT_WORDS, f"model.seconds={asked.seconds}", f"seed=range({trials})")
    wall_s = time.monotonic() - begun_s
    uses = project.uses()
    assert len(uses) == trials, f"{len(uses)} uses of a slot by {trials} trials"
    spans = project.spans()
    free_s = gaps_s(uses)
    return {
        "trials": trials,
        "slots": asked.slots,
        "seconds_of_a_trial": asked.seconds,
        "utilisation": round(utilisation([(use.from_s, use.to_s) for use in uses], asked.slots), 4),
        "overlaps": sum(gap_s < 0 for gap_s in free_s),
        "free_between_two_trials_ms": _milliseconds(free_s),
        "held_beyond_the_program_ms": _milliseconds(_beyond(uses, spans)),
        "utilisation_by_the_programs_alone": round(utilisation(spans.values(), asked.slots), 4),
        "wall_s": round(wall_s, 1),
    }


def _beyond(uses: list[Use], spans: dict[int, tuple[float, float]]) -> list[float]:
    """Return for how long each trial had its slot without its program running."""
    return [use.to_s - use.from_s - (spans[use.trial][1] - spans[use.trial][0]) for use in uses]


def _milliseconds(seconds: list[float]) -> dict[str, int]:
    return {"median": round(1000 * statistics.median(seconds)), "most": round(1000 * max(seconds))}


def cost_of_trials(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure what a trial costs, beside a bare `docker run`."""
    return cost(folder, asked.engine, asked.experiment, asked.trials or 16, asked.rounds)


def beside_joblib(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run the same trials of unequal length by xrun on this host and by hydra-joblib-launcher, in turns."""
    python = _with_joblib(folder / "environment")
    draw = random.Random(0)
    lengths = [round(draw.uniform(0.5, 5.0), 1) for _ in range(asked.trials or 24)]
    rounds = []
    for number in range(asked.rounds):
        project = SweepProject(folder / f"project-{number}", "host", asked.slots)
        project.lay_out()
        project.run(*SHORT_WORDS, "model.seconds=0")
        begun_s = time.monotonic()
        project.run("-m", *SHORT_WORDS, f"model.seconds={','.join(map(str, lengths))}")
        own = (time.monotonic() - begun_s, utilisation(project.spans().values(), asked.slots))
        rounds.append({"xrun": own, "joblib": _joblib(folder / f"app-{number}", python, lengths, asked.slots)})
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    median = {
        who: [round(statistics.median(one[who][place] for one in rounds), 4) for place in (0, 1)]
        for who in ("xrun", "joblib")
    }
    ratios = [one["xrun"][1] / one["joblib"][1] for one in rounds]
    return {
        "trials": len(lengths),
        "slots": asked.slots,
        "seconds_of_all_trials": round(sum(lengths), 1),
        "rounds": asked.rounds,
        "wall_s": {who: round(both[0], 1) for who, both in median.items()},
        "utilisation": {who: both[1] for who, both in median.items()},
        "utilisation_ratio_median": round(statistics.median(ratios), 4),
        "wall_ratio_median": round(statistics.median(one["xrun"][0] / one["joblib"][0] for one in rounds), 4),
    }


def _with_joblib(folder: Path) -> Path:
    """Return the Python of an environment that has Hydra and its joblib launcher."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = ["hydra-core==1.3.*", "hydra-joblib-launcher==1.2.0"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python


def _joblib(folder: Path, python: Path, lengths: list[float], slots: int) -> tuple[float, float]:
    """Return wall clock and utilisation of the joblib launcher."""
    folder.mkdir()
    log = folder / "spans.jsonl"
    (folder / "app.py").write_text(APP.replace("LOG", str(log)))
    words = ["-m", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={slots}", f"+seconds={','.join(map(str, lengths))}"]
    begun_s = time.monotonic()
    subprocess.run([python, "app.py", *words], cwd=folder, capture_output=True, check=True)
    wall_s = time.monotonic() - begun_s
    return wall_s, utilisation([tuple(json.loads(line)) for line in log.read_text().splitlines()], slots)


PARTS = {"utilisation": utilisation_of_slots, "cost": cost_of_trials, "joblib": beside_joblib}


if __name__ == "__main__":
    sys.exit(main())
