"""`xrun ps`: the slots of this machine, and who holds them."""

import os
import sys
from pathlib import Path

from runner.leases import container_lives, listed
from runner.machine import probe
from runner.note import Slot, shown

_HEAD = ("SLOT", "RUN", "USER", "PID", "SINCE (UTC)")


def print_slots(folder: Path) -> int:
    """Print a line for each slot: this machine's, and those that were ever given out. Raises StoreError."""
    known = {slot.name: slot for slot in listed(folder)}
    here = [f"cpu-{slot}" for slot in range(len(os.sched_getaffinity(0)))] + [f"gpu-{gpu.uuid}" for gpu in probe().gpus]
    slots = [known.get(name) or Slot(name=name, is_held=False, note=None) for name in dict.fromkeys([*here, *known])]
    sys.stdout.write(_table([_HEAD, *map(_row, sorted(slots, key=_order))]))
    return 0


def _order(slot: Slot) -> tuple[str, int, str]:
    kind, _, rest = slot.name.partition("-")
    return kind, int(rest) if rest.isdecimal() else 0, rest


def _row(slot: Slot) -> tuple[str, ...]:
    said = slot.note
    name = shown(slot.name.removeprefix("gpu-")) if slot.name.startswith("gpu-") else shown(slot.name)
    if said is None or not (slot.is_held or container_lives(said)):
        return (name, "held" if slot.is_held else "free", "", "", "")
    since = shown(said.since)[:19].replace("T", " ")
    if slot.is_held:
        return (name, shown(said.run_id) or "not begun", shown(said.user), str(said.pid), since)
    pid = str(said.container.pid) if said.container else "unknown"
    return (name, f"{shown(said.run_id)}, whose xrun was killed", shown(said.user), pid, since)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"
