"""A run that goes on where another one ended: its newest checkpoint that verifies, and all that led there.

What is taken over is proved first: the trace's chain is computed again up to the checkpoint, which states its head.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.inside import checkpoint, trace
from runner.inside.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

# What belongs to an attempt, not to the training.
_OF_AN_ATTEMPT = frozenset({"self-test-run", "self-test", "start", "resume", "stopped", "end"})


class Continuation(NamedTuple):
    """A checkpoint of an earlier run, and where it lies."""

    out: Path
    """The earlier run's `out`."""
    path: Path
    step: int
    chains: tuple[bytes, ...]
    model: Mapping[str, torch.Tensor]
    training: Mapping[str, Any]

    def take_over(self, number: int, header: trace.Header, out: Path) -> bytes:
        """Copy a virtual rank's trace up to the checkpoint, and return the chain there. Raises Refused if it breaks."""
        header = header._replace(virtual_rank=number)
        name, size = trace.file_name(number), trace.layout(header).record_bytes
        with (self.out / name).open("rb") as old, (out / name).open("wb") as new:
            if _without_place(old.readline()) != _without_place(header.line()):
                raise Refused(f"{name} of the run to be resumed is of another model or begins with other weights")
            new.write(header.line())
            chain = trace.first_link(header.weights)
            for step in range(1, self.step + 1):
                record = old.read(size)
                chain = trace.link(chain, record[: -trace.CHAIN_BYTES])
                if len(record) != size or record[-trace.CHAIN_BYTES :] != chain:
                    raise Refused(f"{name} of the run to be resumed does not hold at step {step}")
                new.write(record)
        if chain != self.chains[number]:
            raise Refused(f"{self.path.name} belongs to another history than {name}")
        return chain

    def events(self) -> Iterator[str]:
        """Yield the lines of the earlier run's events that are of the training up to the checkpoint."""
        with (self.out / "events.jsonl").open(encoding="ascii") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:  # the last line of a run that was killed
                    return
                if event["kind"] not in _OF_AN_ATTEMPT and event["step"] <= self.step:
                    yield line


def _without_place(line: bytes) -> object:
    """Return a header without what no bit depends on."""
    content = json.loads(line)
    return {key: value for key, value in content.items() if key not in {"world_size", "knobs", "numerics"}}


def newest(out: Path, step: int | None, virtual_ranks: int) -> tuple[Continuation | None, str]:
    """Return the newest checkpoint of a run's `out` that verifies, or that of `step`; and what was wrong with others.

    Raises Refused if the one that is asked for does not verify.
    """
    problems = []
    for at, path in reversed(checkpoint.found(out / "checkpoints")):
        if step not in (None, at):
            continue
        try:
            manifest = checkpoint.verified(path)
            chains = tuple(map(bytes.fromhex, manifest["chains"]))
            _require_ranks(path, len(chains), virtual_ranks)
            model, training = checkpoint.load(path, manifest)
        except checkpoint.Damaged as damaged:
            problems.append(str(damaged))
            continue
        return Continuation(out, path, at, chains, model, training), "; ".join(problems)
    if step is not None:
        raise Refused("; ".join(problems) or f"there is no checkpoint of step {step}")
    return None, "; ".join(problems) or "there is no checkpoint"


def _require_ranks(path: Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise checkpoint.Damaged(f"{path.name} is of {found} virtual ranks, not {wanted}")
