"""What looking costs: CPU time of `xrun --help` and `xrun ls`, beside a bare Python, measured in turns.

usage: python bench/startup.py [rounds]
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "bare python": ["-c", "pass"],
    "xrun --help": ["-m", "runner", "--help"],
    "xrun ls": ["-m", "runner", "ls"],
}


def cpu_s(arguments: list[str], folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conf").mkdir()
        (folder / "conf" / "config.yaml").touch()
        times: dict[str, list[float]] = {command: [] for command in COMMANDS}
        for _ in range(rounds):
            for command, arguments in COMMANDS.items():
                times[command].append(cpu_s(arguments, folder))
    medians = {command: statistics.median(measured) for command, measured in times.items()}
    bare = medians["bare python"]
    for command, median_s in medians.items():
        print(json.dumps({"command": command, "cpu_ms": round(1000 * median_s), "ratio": round(median_s / bare, 1)}))


if __name__ == "__main__":
    main()
