"""What a search is worth: the best of 100 trials of TPE beside that of 100 random ones, by seeds, on two objectives.

python -m bench.search [seeds [trials [slots [multivariate: true|false]]]]
python -m bench.search xrun [seeds [trials [slots]]]       (whole commands, `xrun -m … sweep=optuna`, on engine=host)
"""

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.sweep_project import SHORT_WORDS, SweepProject, load
from bench.training import on_this_machine
from runner.record import Record
from runner.search import Asked, Study
from runner.space import Dimension, Sampler, SearchSettings

SPACE = (
    Dimension(key="optim.lr", kind="float", low=1e-5, high=1.0, log=True),
    Dimension(key="optim.decay", kind="float", low=1e-6, high=1e-1, log=True),
    Dimension(key="optim.momentum", kind="float", low=0.0, high=1.0),
    Dimension(key="model.layers", kind="int", low=1, high=12, step=1),
    Dimension(key="optim.kind", kind="choice", choices=("SGD", "AdamW", "Lion")),
)


def values(asked: Asked) -> dict[str, str]:
    return dict(word.split("=") for word in asked.words)


def apart(given: Mapping[str, str]) -> float:
    """Each key has a best value of its own, whatever the others are."""
    lr, decay = math.log10(float(given["optim.lr"])), math.log10(float(given["optim.decay"]))
    numbers = (lr + 2) ** 2 + (decay + 4) ** 2 / 4 + 4 * (float(given["optim.momentum"]) - 0.9) ** 2
    return numbers + (int(given["model.layers"]) - 6) ** 2 / 16 + ("AdamW", "SGD", "Lion").index(given["optim.kind"])


def together(given: Mapping[str, str]) -> float:
    """The best learning rate falls with depth and rises with decay, and differs from optimizer to optimizer."""
    kind = ("SGD", "AdamW", "Lion").index(given["optim.kind"])
    depth, momentum = int(given["model.layers"]), float(given["optim.momentum"])
    decay = math.log10(float(given["optim.decay"]))
    best = -0.5 - kind - 0.15 * depth + 0.4 * (decay + 4)
    lr = math.log10(float(given["optim.lr"]))
    return 4 * (lr - best) ** 2 + (decay + 3.5) ** 2 / 4 + 4 * (momentum - 0.9) ** 2 + abs(depth - 8) / 8 + 0.2 * kind


def best_of(sampler: SearchSettings, objective: Callable[[Mapping[str, str]], float], trials: int, slots: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), SPACE, sampler, "bench")
        running: list[Asked] = []
        found = []
        for _ in range(trials):
            running.append(study.ask())
            if len(running) == slots:
                done = running.pop(0)
                found.append(objective(values(done)))
                study.tell(done.number, found[-1:], "done")
        return min([*found, *(objective(values(done)) for done in running)])


def best_of_xrun(sampler: str, seed: int, trials: int, slots: int) -> float:
    """Search two keys that act together, the smallest loss being 0, by whole commands."""
    with tempfile.TemporaryDirectory() as folder:
        project = SweepProject(Path(folder) / "project", "host", slots)
        project.lay_out()
        words = ["sweep=optuna", f"sweep.sampler={sampler}", f"sweep.trials={trials}", f"sweep.seed={seed}"]
        project.run("-m", *SHORT_WORDS, "model.seconds=0", "optim.x=interval(-5,1)", "optim.y=interval(-1,2)", *words)
        losses = [float(run.facts.metrics["loss"]) for run in project.store.runs() if isinstance(run.facts, Record)]
    assert len(losses) == trials, f"{len(losses)} of {trials} trials are done"
    return min(losses)


def through_xrun(words: list[str]) -> None:
    """Compare TPE and random search as a user runs them."""
    seeds, trials, slots = map(int, [*words, *("10", "100", "2")[len(words) :]])
    pairs = []
    for seed in range(seeds):
        pairs.append((best_of_xrun("tpe", seed, trials, slots), best_of_xrun("random", seed, trials, slots)))
        print(json.dumps(pairs[-1]), file=sys.stderr, flush=True)
    row = {"objective": "two keys, through xrun -m", "trials": trials, "slots": slots, **margin(pairs)}
    print(json.dumps({**row, **load(), "on": on_this_machine()}))


def margin(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Return by how much TPE is better than random search, over several seeds."""
    return {
        "tpe": round(statistics.median(tpe for tpe, _ in pairs), 4),
        "random": round(statistics.median(random for _, random in pairs), 4),
        "tpe_wins": sum(tpe < random for tpe, random in pairs),
        "of": len(pairs),
        "median_ratio": round(statistics.median(random / tpe for tpe, random in pairs), 1),
    }


def settings(sampler: Sampler, options: Mapping[str, bool], seed: int) -> SearchSettings:
    return SearchSettings(
        sampler=sampler,
        sampler_options=options,
        pruner="none",
        pruner_options={},
        directions=("minimize",),
        seed=seed,
    )


def main() -> None:
    if sys.argv[1:2] == ["xrun"]:
        through_xrun(sys.argv[2:])
        return
    words = [*sys.argv[1:], *("10", "100", "1")[len(sys.argv) - 1 :]]
    seeds, trials, slots = map(int, words[:3])
    options = {"multivariate": words[3] == "true"} if len(words) > 3 else {}
    for objective in (apart, together):
        pairs = [
            (
                best_of(settings("tpe", options, seed), objective, trials, slots),
                best_of(settings("random", {}, seed), objective, trials, slots),
            )
            for seed in range(seeds)
        ]
        row = {
            "objective": objective.__name__,
            "trials": trials,
            "slots": slots,
            **options,
            **margin(pairs),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
