"""What is to be done when a node of several ends, or is not heard of: judged in one place, by one node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from runner.inside.refusal import EXIT_STOPPED

if TYPE_CHECKING:
    from collections.abc import Mapping

# How a node may end without being a reason for the others to.
_ORDERLY = (0, EXIT_STOPPED)
_EXIT_GONE = 1
# Exit codes above it are of processes that a signal ended.
_SIGNALS = 128


class State(NamedTuple):
    """What the launcher of a node says of itself."""

    beat: int = 0
    """Another number each time, so that it can be seen to live."""
    is_ready: bool = False
    """Whether it may start its ranks, as far as it knows."""
    exit_code: int | None = None
    """None until it has ended."""
    has_left: bool = False
    """Whether it needs the others no more."""

    def text(self) -> str:
        """Return the state as JSON."""
        return json.dumps(self)

    @staticmethod
    def of(text: bytes) -> State:
        """Read what `text` returned."""
        return State(*json.loads(text))


class Cause(NamedTuple):
    """A node that ended without having got to an end: all others end, too."""

    node: int
    exit_code: int


class Word(NamedTuple):
    """What is said to all nodes."""

    are_ready: bool = False
    """Whether every node is there and ready."""
    are_over: bool = False
    """Whether every node has ended or is gone."""
    have_left: bool = False
    """Whether every node but the first needs it no more."""
    cause: Cause | None = None

    def text(self) -> str:
        """Return the word as JSON."""
        return json.dumps(self)

    @staticmethod
    def of(text: bytes) -> Word:
        """Read what `text` returned."""
        word = Word(*json.loads(text))
        return word._replace(cause=Cause(*word.cause) if word.cause else None)


WITHOUT_FIRST = Word(are_over=True, have_left=True, cause=Cause(0, _EXIT_GONE))
"""What is left to do when nobody is there to say it."""


class Judge:
    """What node 0 knows of all nodes, itself among them."""

    def __init__(self, count: int, *, silence_s: float, arrival_s: float, now_s: float) -> None:
        self._silence_s, self._arrival_s = silence_s, arrival_s
        self._states: dict[int, State] = {}
        self._heard_at_s = dict.fromkeys(range(count), now_s)
        self._gone: set[int] = set()

    def look(self, states: Mapping[int, State], now_s: float) -> tuple[Word, dict[int, str]]:
        """Return what is to be said to all, and of which nodes it is found now that they are gone, in words."""
        gone = {}
        for number in self._heard_at_s:
            if number in states and states[number] != self._states.get(number):
                self._states[number], self._heard_at_s[number] = states[number], now_s
            elif self._is_missed(number, now_s):
                gone[number] = self._words_for(number)
        self._gone |= gone.keys()
        return self._word(), gone

    def _is_missed(self, number: int, now_s: float) -> bool:
        patience_s = self._silence_s if number in self._states else self._arrival_s
        has_ended = number in self._states and self._states[number].exit_code is not None
        return number not in self._gone and not has_ended and now_s - self._heard_at_s[number] > patience_s

    def _words_for(self, number: int) -> str:
        if number in self._states:
            return f"node {number} is gone: nothing was heard of it for {self._silence_s:.0f} s"
        return f"node {number} did not come within {self._arrival_s:.0f} s"

    def _cause(self) -> Cause | None:
        if self._gone:
            return Cause(min(self._gone), _EXIT_GONE)
        codes = {number: state.exit_code for number, state in self._states.items()}
        failed = [Cause(number, code) for number, code in codes.items() if code is not None and code not in _ORDERLY]
        # Ranks of other nodes fail of one that died of a signal, and may be noticed sooner.
        return min(failed, key=lambda cause: (cause.exit_code < _SIGNALS, cause.node), default=None)

    def _word(self) -> Word:
        here = [self._states.get(number, State()) for number in self._heard_at_s if number not in self._gone]
        others = [self._states.get(number, State()) for number in self._heard_at_s if number not in {0, *self._gone}]
        return Word(
            are_ready=not self._gone and all(state.is_ready for state in here),
            are_over=all(state.exit_code is not None for state in here),
            have_left=all(state.has_left for state in others),
            cause=self._cause(),
        )
