"""A run is started and finished while each file call in turn is the last one, or fails."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import finished

from runner.errors import StoreError
from runner.store import RunStore

# Every call by which a run reaches the disk. `close` is left out of the failing disk: what it frees is a lock.
CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "fchmod")
GOT_THROUGH, COMMITTED_ANYWAY, BUG, KILLED = 0, 1, 70, 9


@pytest.mark.parametrize("fault", ["killed", "No space left on device", "Input/output error"])
def test_a_fault_at_any_call_leaves_no_record_or_a_whole_one(tmp_path: Path, fault: str) -> None:
    statuses = set()
    for nth in range(1, 100):
        root = tmp_path / str(nth)
        ending = _run_under_fault(root, fault, nth)
        found = {run.status for run in RunStore(root).runs()}
        statuses |= found
        assert found <= {"done", "interrupted"}
        if ending in {GOT_THROUGH, COMMITTED_ANYWAY}:
            assert found == {"done"}
        else:
            assert ending == (KILLED if fault == "killed" else StoreError.exit_code)
        if fault != "killed":
            assert [path.name for path in root.glob("**/.*")] == []
        if ending == GOT_THROUGH:
            break
    assert ending == GOT_THROUGH
    assert statuses == {"done", "interrupted"}
    assert nth > 20


def _run_under_fault(root: Path, fault: str, nth: int) -> int:
    """Start and finish a run in a child whose nth file call does half its work and then dies or fails."""
    child = os.fork()
    if child == 0:
        os._exit(_child(root, fault, nth))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _child(root: Path, fault: str, nth: int) -> int:
    calls = [0]
    for name in CALLS:
        setattr(os, name, _faulty(getattr(os, name), fault, nth, calls))
    try:
        finished(RunStore(root))
    except StoreError as error:
        return StoreError.exit_code if error.message.endswith(fault) else BUG
    except BaseException:  # noqa: BLE001, a child must not run the rest of pytest
        return BUG
    return GOT_THROUGH if calls[0] < nth else COMMITTED_ANYWAY


def _faulty(call: Callable[..., object], fault: str, nth: int, calls: list[int]) -> Callable[..., object]:
    # No file system at hand fails on demand, so the calls are wrapped; all but the nth go through.
    def faulty(*arguments: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] != nth:
            return call(*arguments, **options)
        if call.__name__ == "write":
            descriptor, data = arguments
            assert isinstance(descriptor, int)
            assert isinstance(data, memoryview)
            call(descriptor, data[: len(data) // 2])
        if fault == "killed":
            os._exit(KILLED)
        number = next(number for number in range(1, 200) if os.strerror(number) == fault)
        raise OSError(number, fault)

    return faulty
