"""The proofs with their full counts: every planted fault is found, no clean replay is called diverged, no kill shows.

python -m bench.proofs                                    (from the repository's folder)
python -m bench.proofs --clean 20 --replays 4 --kills 2   (only these, with other counts)
"""

import argparse
import datetime as dt
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from inside import surroundings  # noqa: E402, the runs are those of the tests
from inside.jobs import make_spec, run  # noqa: E402
from inside.kills import killed_spec, killed_until_done, whole  # noqa: E402
from inside.plantings import ALONE, COLLECTIVE, PLANTINGS, Planting, found, train  # noqa: E402

from bench.sweep_kills import killed_sweeps  # noqa: E402
from bench.training import on_this_machine  # noqa: E402
from runner.blame import first_verdict  # noqa: E402
from runner.traces import opened_traces  # noqa: E402

Section = dict[str, Any]
# Of one run: more, and nearly all would go on from its last checkpoint.
KILLS_A_RUN = 2


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("--faults", action="store_true", help="every planted fault, once")
    words.add_argument("--clean", type=int, nargs="?", const=200, help="replays in one process")
    words.add_argument("--replays", type=int, nargs="?", const=100, help="replays of a run of two processes")
    words.add_argument("--kills", type=int, nargs="?", const=25, help="of each number of ranks in each precision")
    words.add_argument("--sweeps", type=int, nargs="?", const=10, help="kills of a grid and of a search (XRUN_HOME)")
    words.add_argument("--jobs", type=int, default=1, help="runs at a time")
    words.add_argument("--json", type=Path, help="take the counts over into this file")
    asked = words.parse_args()
    if not (asked.faults or asked.clean or asked.replays or asked.kills or asked.sweeps):
        asked.faults, asked.clean, asked.replays, asked.kills, asked.sweeps = True, 200, 100, 25, 10
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(asked.jobs) as jobs:
        return _report(dict(_sections(asked, Path(name), jobs)), asked.json)


def _sections(asked: argparse.Namespace, folder: Path, jobs: ThreadPoolExecutor) -> Iterator[tuple[str, Section]]:
    if asked.faults:
        yield "faults", _faults(folder / "faults")
    if asked.clean:
        yield "clean", _clean(folder / "clean", asked.clean)
    if asked.replays:
        yield "replays", _replays(folder / "replays", asked.replays, jobs)
    if asked.kills:
        yield "kills", _kills(folder / "kills", asked.kills, jobs)
    if asked.sweeps:
        yield "sweeps", killed_sweeps(folder / "sweeps", asked.sweeps, _say)


def _report(sections: dict[str, Section], path: Path | None) -> int:
    """Print the counts, write them down, and return the exit code: 1 where one is not as it must be."""
    failures = [failure for section in sections.values() for failure in section.pop("failures")]
    for section in sections.values():
        section["on"] = on_this_machine()
    print(json.dumps(sections, indent=2))
    if path is not None:
        known = json.loads(path.read_text()) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**known, **sections}, indent=2) + "\n")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _say(what: str) -> None:
    print(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def _faults(folder: Path) -> Section:
    """Plant every fault, and look whether a replay names it."""
    groups, failures = {}, []
    for name, planting in PLANTINGS.items():
        _say(f"faults: {name}")
        runs = folder / name
        train(runs, ["clean#0", "clean#1", *planting.faults], planting.spec)
        missed = [fault for fault, expected in planting.faults.items() if found(runs, fault) != expected]
        groups[name] = {"planted": len(planting.faults), "missed": len(missed)}
        failures += [f"{name}: {fault} is not found as it should be: {found(runs, fault)}" for fault in missed]
        if (difference := found(runs, "clean#1")) is not None:
            failures.append(f"{name}: a clean run is called diverged: {difference}")
    groups["surroundings"], wrong = _surroundings(folder / "surroundings")
    failures += wrong + _promise_on_buckets(folder / "buckets")
    shutil.rmtree(folder)
    planted, missed_count = (sum(group[key] for group in groups.values()) for key in ("planted", "missed"))
    return {"planted": planted, "missed": missed_count, "of": groups, "failures": failures}


def _surroundings(folder: Path) -> tuple[Section, list[str]]:
    _say("faults: surroundings")
    folder.mkdir()
    wrong = [
        f"{name} that is not as pinned is not refused"
        for name in surroundings.STRAY
        if surroundings.refusal(folder, name) != surroundings.expected_refusal(name)
    ]
    past = surroundings.train(folder, "past", {})
    for name, other in surroundings.OTHER.items():
        said = surroundings.verdict(past, surroundings.train(folder, name, other.changes))
        if not surroundings.is_as_expected(name, said):
            wrong.append(f"{name} pinned otherwise: {said}")
    return {"planted": len(surroundings.STRAY) + len(surroundings.OTHER), "missed": len(wrong)}, wrong


def _promise_on_buckets(folder: Path) -> list[str]:
    """Return what is wrong where another size of buckets, a fault at `repeat`, must change no bit."""
    _say("faults: smaller buckets at resume")
    spec = Planting({**COLLECTIVE.changes, "determinism__level": "resume"}, {}, ranks=COLLECTIVE.ranks).spec
    train(folder, ["clean#0", "smaller buckets"], spec)
    difference = found(folder, "smaller buckets")
    return [] if difference is None else [f"smaller buckets at resume: {difference}"]


def _clean(folder: Path, count: int) -> Section:
    """Replay a run of one rank over and over, in one process."""
    _say(f"clean: {count} replays")
    names = [f"clean#{number}" for number in range(count + 1)]
    train(folder, names, ALONE.spec)
    differences = {name: found(folder, name) for name in names[1:]}
    failures = [f"{name} is called diverged: {said}" for name, said in differences.items() if said is not None]
    shutil.rmtree(folder)
    return {"runs": len(differences), "false_alarms": len(failures), "failures": failures}


def _replays(folder: Path, count: int, jobs: ThreadPoolExecutor) -> Section:
    """Replay a run of two processes in bf16, each time in new processes."""
    folder.mkdir()
    spec = make_spec(ranks=2, config__precision="bf16", determinism__level="resume", config__training__clip_norm=1.0)
    past = run(folder, spec, name="past")

    def replay(number: int) -> str:
        ran = run(folder, spec, name=f"again-{number}")
        steps = ran.done["steps"]
        with opened_traces(past.out, 2) as old, opened_traces(ran.out, 2) as new:
            for trace in new:
                trace.verify()
            verdict = first_verdict(old, new, steps)
        same = ran.done["fingerprint"] == past.done["fingerprint"]
        shutil.rmtree(ran.out)
        return verdict.message if verdict else "" if same else "the fingerprint differs"

    said = _all(jobs, replay, count, "replays")
    failures = [f"replay {number}: {message}" for number, message in enumerate(said) if message]
    return {"runs": count, "false_alarms": len(failures), "failures": failures}


def _kills(folder: Path, count: int, jobs: ThreadPoolExecutor) -> Section:
    """Kill runs of each number of ranks in each precision, `count` times each, and let them go on."""
    cases = [(ranks, precision) for ranks in (1, 2, 4) for precision in ("fp32", "bf16", "fp16")]
    done = list(jobs.map(lambda case: _kills_of(folder / f"{case[0]}-{case[1]}", *case, count), cases))
    failures = [failure for case in done for failure in case.pop("failures")]
    kills, different = (sum(case[key] for case in done) for key in ("kills", "different"))
    return {"kills": kills, "different": different, "of": done, "failures": failures}


def _kills_of(folder: Path, ranks: int, precision: str, count: int) -> Section:
    folder.mkdir(parents=True)
    draw = random.Random(f"{ranks} {precision}")
    spec = killed_spec(ranks, precision)
    unbroken = whole(folder, spec)
    went_on_from: list[int] = []
    failures, runs = [], 0
    while len(went_on_from) < count:
        (place := folder / str(runs)).mkdir()
        runs += 1
        try:
            most = min(KILLS_A_RUN, count - len(went_on_from))
            survived = killed_until_done(place, spec, unbroken.step_s, draw, most)
        except AssertionError as error:
            failures.append(f"{ranks} ranks in {precision}, run {runs}: {error}")
            break
        went_on_from += survived.went_on_from
        if survived.fingerprint != unbroken.fingerprint:
            failures.append(f"{ranks} ranks in {precision}, killed, on from {survived.went_on_from}: other bits")
        shutil.rmtree(place)
        _say(f"kills: {ranks} ranks in {precision}: {len(went_on_from)} of {count}")
    steps = {str(step): went_on_from.count(step) for step in sorted(set(went_on_from))}
    case = {"ranks": ranks, "precision": precision, "kills": len(went_on_from), "runs": runs}
    return {**case, "different": len(failures), "went_on_from": steps, "failures": failures}


def _all(jobs: ThreadPoolExecutor, work: Callable[[int], str], count: int, what: str) -> list[str]:
    said = []
    for number, message in enumerate(jobs.map(work, range(count)), 1):
        said.append(message)
        if number % 10 == 0 or message:
            _say(f"{what}: {number} of {count} {message}")
    return said


if __name__ == "__main__":
    sys.exit(main())
