"""Many xruns at once on few slots, some of them killed: is a slot ever given out twice, is anything ever stuck?

python -m bench.leases [--xruns 200] [--rounds 20] [--slots 4] [--kills 50] [--json bench/results/leases.json]

Each xrun is a whole command on engine=host; what it runs takes 50 ms and notes, in a log of all, from when to when its
container used which slots. Half of those that are killed hold a slot, and their containers go on for a while.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from bench.sweep_project import NO_IMAGE
from bench.training import on_this_machine
from runner.leases import listed
from runner.processes import with_variable
from runner.store import RunStore

ROOT = Path(__file__).parent.parent
LIMIT_S = 1_800
# The container begins with the parent of this process, whose start is given in hundredths of a second.
PROGRAM = """
import glob, json, os, time
run = os.path.dirname(os.environ['XRUN_OUT'])
slots = []
for path in glob.glob(LEASES + '/*.lock'):
    text = open(path).read()
    if text.strip() and json.loads(text)['run'] == run:
        slots.append(os.path.basename(path))
begun = int(open('/proc/%d/stat' % os.getppid()).read().rpartition(')')[2].split()[19]) / os.sysconf('SC_CLK_TCK')
time.sleep(0.05)
log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
ended = time.clock_gettime(time.CLOCK_BOOTTIME)
for slot in slots:
    os.write(log, (json.dumps([slot, begun, ended, run]) + chr(10)).encode())
open('a.txt', 'w').write('a')
"""


@dataclass(frozen=True)
class Bench:
    folder: Path
    slots: int

    @property
    def leases(self) -> Path:
        return self.folder / "leases"

    @property
    def log(self) -> Path:
        return self.folder / "overlaps.jsonl"

    def lay_out(self) -> None:
        shutil.copytree(ROOT / "conf", self.folder / "conf")
        (self.folder / "experiments").mkdir()
        (self.folder / "conf" / "image" / "none.yaml").write_text(NO_IMAGE)
        program = PROGRAM.replace("LEASES", repr(str(self.leases))).replace("LOG", repr(str(self.log)))
        argv = json.dumps(["python3", "-c", program])
        (self.folder / "conf" / "experiment" / "short.yaml").write_text(
            f"# @package _global_\nexperiment: {{name: short, command: {argv}, outputs: [a.txt]}}\n"
            "training: {steps: 1, batch_size: 1}\n"
        )

    def start(self, number: int) -> "subprocess.Popen[bytes]":
        words = [f"seed={number % 5}", f"hardware.ranks={1 + number % 2}", f"scheduler.slots={self.slots}"]
        argv = [sys.executable, "-m", "runner", "engine=host", "image=none", "tracking=off", "experiment=short"]
        with (self.folder / f"xrun-{number}.txt").open("ab") as said:
            return subprocess.Popen(
                [*argv, "hardware.threads=1", *words],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "XRUN_LEASES": str(self.leases)},
                stdout=said,
                stderr=said,
            )

    def holders(self) -> set[int]:
        return {slot.note.pid for slot in listed(self.leases) if slot.is_held and slot.note}


def one_round(bench: Bench, xruns: int, kills: int, chance: random.Random) -> dict[str, object]:
    """Start all at once, kill some, and wait for the rest."""
    begun_s = time.monotonic()
    living = {process.pid: process for process in map(bench.start, range(xruns))}
    ended: list[int] = []
    killed = holding = 0
    # The first are killed while all still wait or have not come so far.
    at_ended = sorted(chance.sample(range(xruns - kills), kills))
    while living and time.monotonic() - begun_s < LIMIT_S:
        over = [pid for pid, process in living.items() if process.poll() is not None]
        ended += [living.pop(pid).returncode for pid in over]
        while killed < kills and living and len(ended) - killed >= at_ended[killed]:
            held = bench.holders() & living.keys() if killed % 2 else set()
            victim = chance.choice(sorted(held or living.keys()))
            holding += bool(held)
            killed += 1
            living[victim].send_signal(signal.SIGKILL)
        time.sleep(0.02)
    for process in living.values():
        process.kill()
    return {
        "xruns": xruns,
        "killed": killed,
        "killed_while_holding": holding,
        "stuck": len(living),
        "failed": sum(code not in (0, -signal.SIGKILL) for code in ended),
        "seconds": round(time.monotonic() - begun_s, 1),
    }


def overlaps(log: Path) -> tuple[int, int]:
    """Return how often a slot was used, and how often by two at a time."""
    uses = defaultdict(list)
    for line in log.read_text().splitlines():
        slot, begun, ended, _ = json.loads(line)
        uses[slot].append((begun, ended))
    found = 0
    for spans in uses.values():
        spans.sort()
        found += sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))
    return sum(map(len, uses.values())), found


def main() -> None:
    words = argparse.ArgumentParser()
    for name, default in (("xruns", 200), ("rounds", 20), ("slots", 4), ("kills", 50), ("seed", 0)):
        words.add_argument(f"--{name}", type=int, default=default)
    words.add_argument("--json", type=Path)
    asked = words.parse_args()
    bench = Bench(folder=Path(tempfile.mkdtemp(prefix="xrun-leases-")), slots=asked.slots)
    bench.lay_out()
    assert bench.start(0).wait() == 0, (bench.folder / "xrun-0.txt").read_text()
    rounds = []
    for number in range(asked.rounds):
        rounds.append(one_round(bench, asked.xruns, asked.kills, random.Random(asked.seed + number)))
        print(json.dumps(rounds[-1]), flush=True)
    last = bench.start(0).wait(timeout=LIMIT_S)
    store = RunStore(bench.folder / "runs")
    statuses = [run.status for run in store.runs()]
    uses, double = overlaps(bench.log)
    result = {
        "rounds": rounds,
        "slots": asked.slots,
        "uses_of_a_slot": uses,
        "overlaps": double,
        "stuck": sum(int(str(one["stuck"])) for one in rounds),
        "failed": sum(int(str(one["failed"])) for one in rounds),
        "runs": {status: statuses.count(status) for status in sorted(set(statuses))},
        "one_more_after_all_exits_with": last,
        "tickets_left": len(list(bench.leases.glob("*.ticket"))),
        "slots_held_at_the_end": sum(slot.is_held for slot in listed(bench.leases)),
        "containers_left": sum(bool(with_variable("XRUN_OUT", str(path))) for path in bench.folder.glob("runs/*/out")),
        "on": on_this_machine(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.json is not None:
        asked.json.write_text(text + "\n")
    shutil.rmtree(bench.folder)


if __name__ == "__main__":
    main()
