"""What a replay in segments saves: whole replays and replays in segments of one run, in turns, by the clock.

python -m bench.segments RUN-ID [--segments 2] [--rounds 3] [--json bench/results/segments.json]

From the folder of a project in which RUN-ID kept its checkpoints (training.checkpoints_kept=0).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.training import on_this_machine


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("run")
    words.add_argument("--segments", type=int, default=2)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--json", type=Path)
    asked = words.parse_args()
    whole_s, segments_s = [], []
    for _ in range(asked.rounds):
        whole_s.append(_replay_s(asked.run))
        segments_s.append(_replay_s(asked.run, "--segments", str(asked.segments)))
    ratios = [part / whole for part, whole in zip(segments_s, whole_s, strict=True)]
    result = {
        "run": asked.run,
        "segments": asked.segments,
        "whole_s": [round(seconds, 1) for seconds in whole_s],
        "segments_s": [round(seconds, 1) for seconds in segments_s],
        "ratio_median": round(statistics.median(ratios), 3),
        "on": on_this_machine(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.json is not None:
        asked.json.write_text(text + "\n")


def _replay_s(run: str, *options: str) -> float:
    begun_s = time.monotonic()
    argv = [sys.executable, "-m", "runner", "replay", run, *options]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "\nidentical: every step" in said, said
    return time.monotonic() - begun_s


if __name__ == "__main__":
    main()
