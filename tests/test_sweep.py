import threading

from sample_runs import make_record, make_started

from runner.record import Record
from runner.sweep import Loop

LIMIT_S = 60.0


class Numbers:
    """Trials 0, 1, ... in order."""

    def __init__(self, count: int) -> None:
        self._left = list(range(count))
        self.ended: list[int] = []

    def orphans(self) -> list[int]:
        return []

    def peek(self) -> int | None:
        return self._left[0] if self._left else None

    def has_more(self) -> bool:
        return False

    def take(self) -> int | None:
        return self._left.pop(0)

    def end(self, trial: int, record: Record | None) -> None:
        assert record is not None
        self.ended.append(trial)


class Lease:
    is_held = True

    def release(self) -> None:
        self.is_held = False


def record() -> Record:
    return make_record("resnet50-00000000-1", make_started())


def test_a_trial_that_has_let_go_of_its_lease_makes_way_before_its_record_is_written() -> None:
    picker, next_one = Numbers(2), threading.Event()
    loop = Loop(lambda: None, print, jobs=1)

    def execute(trial: int, lease: Lease) -> Record:
        if trial == 1:
            next_one.set()
            return record()
        lease.release()
        loop.look_again()
        assert next_one.wait(LIMIT_S), "the next trial waits for this one's record"
        return record()

    loop.run(picker, lambda _: Lease(), execute, lambda _: None)
    assert sorted(picker.ended) == [0, 1]


def test_a_lease_that_a_trial_still_has_is_let_go_of_when_the_picker_knows_how_the_trial_ended() -> None:
    picker, leases = Numbers(3), [Lease(), Lease(), Lease()]
    known: list[list[int]] = []
    loop = Loop(lambda: None, print, jobs=1)

    def hold(trial: int) -> Lease:
        known.append(list(picker.ended))
        return leases[trial]

    loop.run(picker, hold, lambda _trial, _lease: record(), lambda _: None)
    assert known == [[], [0], [0, 1]]
    assert not any(lease.is_held for lease in leases)
