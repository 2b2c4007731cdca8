"""Which trials a search starts: those that were begun first, then what Optuna picks, until there are enough."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

from runner.outputs import Event
from runner.pickers import Account, Trial, has_ended, is_orphan
from runner.plan import Plan
from runner.record import Record
from runner.search import Asked, Study
from runner.store import Run
from runner.terminal import number_of
from runner.terms import Halt
from runner.trials import same_spec, values_of


class Search:
    """The trials of a search: those that were begun first, then new ones until there are as many as asked for."""

    needs_results: ClassVar[bool] = True
    """Whether what comes next is picked knowing how the trials before it ended."""

    def __init__(
        self,
        study: Study,
        plan: Callable[[tuple[str, ...]], Plan],
        runs: Mapping[int, Sequence[Run]],
        account: Account,
        *,
        force: bool,
    ) -> None:
        self._study = study
        self._plan = plan
        self._runs = {number: list(found) for number, found in runs.items()}
        self._account = account
        self._force = force
        self._begun = deque(study.open_trials())
        self._like = plan(())
        # The study is told by this thread, and asked by those of the trials whether to go on.
        self._lock = threading.Lock()
        # Orphans of which it is not known yet whether they live. Those that do not are begun before others are picked.
        self._unknown: set[int] = set()
        self.undone: list[int] = []
        """Trials that have no result yet, and are not started again now."""
        self.ran = False

    def orphans(self) -> list[Trial]:
        """Return the trials of which something may still run that a killed xrun has started."""
        newest = {number: runs[-1] for number, runs in self._runs.items()}
        found = [self._trial(asked) for asked in self._begun if is_orphan(newest.get(asked.number))]
        self._begun = deque(asked for asked in self._begun if not is_orphan(newest.get(asked.number)))
        self._unknown = {trial.number for trial in found}
        return found

    def taken_up(self, trial: Trial) -> None:
        """Take in that an orphan lives."""
        self._unknown.discard(trial.number)

    def peek(self) -> Trial | None:
        """Return a trial like the next one; None where none is to be started, or not now."""
        if self._unknown:
            return None
        while self._begun and self._settled(self._begun[0]):
            self._begun.popleft()
        with self._lock:
            is_over = self._study.counted() >= self._account.facts.trials or self._study.is_exhausted()
        return None if is_over and not self._begun else Trial(number=0, words=(), plan=self._like)

    def has_more(self) -> bool:
        """Say whether a trial may still come though none runs and none is to be started now: none ever does."""
        return False

    def take(self) -> Trial | None:
        """Return the next trial, None where it turned out to be done."""
        with self._lock:
            asked = self._begun.popleft() if self._begun else self._study.ask()
        trial = self._trial(asked)
        found = None if self._force or trial.past else same_spec(self._account.store, *trial.spec)
        if found is None or found.status != "done":
            return trial
        self._tell(asked.number, found)
        self._account.table.skip(asked.number, found.folder.id, values_of(found, self._account.facts.metrics))
        return None

    def _trial(self, asked: Asked) -> Trial:
        own = self._runs.get(asked.number, [])
        past = own[-1] if own else None
        return Trial(number=asked.number, words=asked.words, plan=self._plan(asked.words), past=past)

    def see(self, trial: Trial, event: Event) -> Halt | None:
        """Take in what a trial says while it runs; one that does worse than others did is ended."""
        metric = self._account.facts.metrics[0]
        values = event.get("metrics") if event["kind"] == "eval" else {"train_loss": event.get("loss")}
        step, value = number_of(event.get("step")), number_of(values.get(metric)) if isinstance(values, dict) else None
        if step is None or value is None:
            return None
        with self._lock:
            is_worse = self._study.report(trial.number, int(step), value)
        if not is_worse:
            return None
        return Halt(status="pruned", message=f"{metric} {value:.6g} at step {step:.0f} is worse than others were then")

    def end(self, trial: Trial, record: Record | None) -> None:
        """Tell the study how a trial ended; one that failed, or an orphan of which nothing was left, comes again."""
        self._unknown.discard(trial.number)
        if record is None:
            self._begun.appendleft(Asked(number=trial.number, words=trial.words))
            return
        self.ran = True
        store, facts = self._account.store, self._account.facts
        run = store.look(store.find(record.id))
        self._runs.setdefault(trial.number, []).append(run)
        self._account.table.end(trial.number, record, values_of(run, facts.metrics))
        if has_ended(run):
            self._tell(trial.number, run)
        else:
            self.undone.append(trial.number)  # the next start goes on with it

    def _settled(self, asked: Asked) -> bool:
        """Tell the study of a trial that had ended when the sweep was killed."""
        own = self._runs.get(asked.number, [])
        if not own or not has_ended(own[-1]):
            return False
        self._tell(asked.number, own[-1])
        return True

    def _tell(self, number: int, run: Run) -> None:
        values = values_of(run, self._account.facts.metrics)
        state: Literal["done", "pruned", "failed"] = "failed"
        if run.status == "pruned":
            state = "pruned"
        elif values is not None:
            state = "done"
        with self._lock:
            self._study.tell(number, values, state)
            if state != "failed":
                return
            if self._study.tries(number) <= self._account.facts.retries:
                self._study.retry(number)
            else:
                self.undone.append(number)
