"""Which trials a grid starts: all that its words say, in order. What is done is left out, what was stopped goes on."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from runner.outputs import Event
from runner.plan import Plan
from runner.record import Record
from runner.store import Run, RunStore
from runner.sweep_table import SweepTable
from runner.sweeps import SweepFacts
from runner.terms import Halt
from runner.trials import same_spec, values_of

# What a trial that is started again goes on from; the rest is tried again only where that is asked for.
UNFINISHED = frozenset({"interrupted", "lost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Where it stands what became of trials, and who is told."""

    facts: SweepFacts
    store: RunStore
    table: SweepTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial that is to be started."""

    number: int
    words: tuple[str, ...]
    """Those that other trials have otherwise."""
    plan: Plan
    past: Run | None = None
    """Its newest run, where it was stopped."""

    @property
    def spec(self) -> tuple[str, str]:
        """Digest of what it runs, and the first two parts of its runs' ids."""
        return self.plan.spec.digest, self.plan.spec.run_stem


def is_orphan(run: Run | None) -> bool:
    """Say whether a run has no record, and no xrun here to write one: it was killed, or a cluster has the run."""
    return run is not None and run.status in {"interrupted", "submitted"} and not isinstance(run.facts, Record)


def has_ended(run: Run) -> bool:
    """Say whether a run came to its own end; one that was stopped did not, nor one that never ran.

    A failed run without an exit code never ran: for that its engine is to blame, or its cluster.
    """
    if not isinstance(run.facts, Record) or run.status in UNFINISHED:
        return False
    return (run.status, run.facts.exit_code) != ("failed", None)


def _has_failed(run: Run) -> bool:
    return has_ended(run) and run.status != "done"


class Grid:
    """The trials of a grid, in order."""

    needs_results: ClassVar[bool] = False
    """Whether what comes next is picked knowing how the trials before it ended."""

    def __init__(
        self,
        trials: Sequence[Trial],
        runs: Mapping[int, Sequence[Run]],
        account: Account,
        *,
        force: bool,
    ) -> None:
        self._left = deque(trials)
        self._runs = {number: list(found) for number, found in runs.items()}
        self._account = account
        self._force = force
        self.undone: list[int] = []
        """Trials that have no result yet, and are not started again now."""
        self.ran = False

    def orphans(self) -> list[Trial]:
        """Return the trials of which something may still run that a killed xrun has started."""
        newest = {trial.number: self._runs[trial.number][-1] for trial in self._left if self._runs.get(trial.number)}
        found = [replace(t, past=newest[t.number]) for t in self._left if is_orphan(newest.get(t.number))]
        self._left = deque(trial for trial in self._left if not is_orphan(newest.get(trial.number)))
        return found

    def peek(self) -> Trial | None:
        """Return the next trial that is neither done nor running somewhere; None where there is none now."""
        for _ in range(len(self._left)):
            trial = self._left[0]
            own = self._runs.get(trial.number, [])
            found = None if self._force else self._found(trial, own)
            if found is not None and found.status != "done":
                self._left.rotate(-1)  # another xrun runs it; its result will do
                continue
            if found is not None:
                self._account.table.skip(trial.number, found.folder.id, values_of(found, self._account.facts.metrics))
            elif self._may_run(own):
                self._left[0] = replace(trial, past=own[-1] if own and own[-1].status in UNFINISHED else None)
                return self._left[0]
            else:
                self.undone.append(trial.number)
                self._account.table.say(f"trial {trial.number}  not run again: {own[-1].folder.id} is {own[-1].status}")
            self._left.popleft()
        return None

    def has_more(self) -> bool:
        """Say whether trials are left, be it that another xrun has them now."""
        return bool(self._left)

    def take(self) -> Trial:
        """Return the trial that was peeked at."""
        return self._left.popleft()

    def taken_up(self, trial: Trial) -> None:
        """Take in that an orphan lives; to a grid it is all the same."""

    def see(self, trial: Trial, event: Event) -> Halt | None:
        """Take in what a trial says while it runs; a grid ends none early."""

    def end(self, trial: Trial, record: Record | None) -> None:
        """Take in how a trial ended; one that failed, or an orphan of which nothing was left, comes again."""
        if record is None:
            self._left.appendleft(trial)
            return
        self.ran = True
        run = self._account.store.look(self._account.store.find(record.id))
        own = self._runs.setdefault(trial.number, [])
        own[:] = [earlier for earlier in own if earlier.folder.id != run.folder.id] + [run]
        self._account.table.end(trial.number, record, values_of(run, self._account.facts.metrics))
        if _has_failed(run) and self._may_run(own):
            self._left.appendleft(trial)
        elif run.status != "done":
            self.undone.append(trial.number)  # what has not failed by itself is for the next start to go on with

    def _may_run(self, own: Sequence[Run]) -> bool:
        return sum(map(_has_failed, own)) <= self._account.facts.retries

    def _found(self, trial: Trial, own: Sequence[Run]) -> Run | None:
        """Return a run that makes this one needless."""
        done = next((run for run in own if run.status == "done"), None)
        return done or same_spec(self._account.store, *trial.spec)
