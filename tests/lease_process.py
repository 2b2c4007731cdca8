"""A process that takes a lease, says so, and holds it until it is told to let go."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

PROGRAM = """
import json, sys
from pathlib import Path
from runner.leases import Need, lease
folder, need, slots = json.loads(sys.argv[1])
need = Need(**{key: tuple(value) if isinstance(value, list) else value for key, value in need.items()})
said = []
def waiting(why):
    if said != [why]:
        said[:] = [why]
        print(why, flush=True)
    return True
with lease(Path(folder), need, slots, waiting=waiting) as held:
    print("got", held.label, flush=True)
    for line in sys.stdin:
        word, *rest = json.loads(line)
        if word == "let go":
            break
        held.note(Path(rest[0]), rest[1], rest[2])
        print("noted", flush=True)
print("let go", flush=True)
"""


class LeaseProcess:
    """A process of its own that wants slots."""

    def __init__(self, folder: Path, slots: int = 4, *, python: str = sys.executable, **need: Any) -> None:
        options: dict[str, Any] = need.pop("options", {})
        environment = {"PYTHONPATH": str(options.pop("code", ROOT)), "PATH": "/usr/bin:/bin"}
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [python, "-c", PROGRAM, json.dumps([str(folder), need, slots])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Return the next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def got(self) -> str:
        """Wait until it has its lease; returns the label."""
        while not (line := self.line()).startswith("got "):
            assert line, "the process ended without a lease"
        return line.removeprefix("got ")

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def note(self, run: Path, engine: str, pid: "int | None") -> None:
        self.tell("note", str(run), engine, pid)
        assert self.line() == "noted"

    def let_go(self) -> None:
        self.tell("let go")
        while self.line() != "let go":
            pass
        self.end()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
