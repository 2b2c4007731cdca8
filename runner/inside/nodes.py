"""The nodes of a run: how their launchers meet, and how each of them hears of another's end.

Node 0 keeps a store of torch's, in which the ranks of all nodes meet, too. Every launcher writes there how it is, twice
a second. Node 0 alone judges of it, and writes for all what is to be done.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import timedelta
from typing import TYPE_CHECKING, Callable

from torch.distributed import TCPStore  # type: ignore[attr-defined, unused-ignore]

from runner.inside.causes import speak_for_node
from runner.inside.judge import WITHOUT_FIRST, Judge, State, Word
from runner.inside.network import LOOPBACK, reached
from runner.inside.refusal import Called, Refused

if TYPE_CHECKING:
    from typing import Self

    from runner.inside.job import Job, Node

EXIT_CALLED = 128 + signal.SIGTERM
_BEAT_S = 0.5
_PAUSE_S = 0.05
# A node that is not heard of for so long is gone; where ranks are given up sooner, after half of that time.
_SILENCE_S = 60.0
# Containers on other nodes may have to wait for their image.
_ARRIVAL_S = 900.0
_WORD = "xrun/word"


class Line:
    """What the launcher of a node says of itself, and hears of the others, from `with` to `end`."""

    def __init__(self, job: Job, node: Node) -> None:
        self._job, self._node = job, node
        self._silence_s = min(_SILENCE_S, job.hang_timeout_s / 2)
        self._mark = job.out / f".nodes-{job.nonce[:8]}"
        self._word = Word()
        # What the main thread says of this node; whether the others know that it leaves.
        self._is_ready = self._is_leaving = self._has_left = False
        self._exit_code: int | None = None
        self._is_called = self._is_sealed = False
        self._began_ns, self._heard_at_s = time.time_ns(), time.monotonic()
        self._judge = Judge(node.nodes, silence_s=self._silence_s, arrival_s=_ARRIVAL_S, now_s=self._heard_at_s)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, self._call)
        self._store = self._opened()
        if self._node.is_first:
            self._mark.touch()
            self._store.set(_WORD, self._word.text())
        for work in (self._speak, self._listen):
            threading.Thread(target=work, name="line between nodes", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._unmark()

    def _opened(self) -> TCPStore:
        """Open the store. Raises Refused where the nodes cannot meet."""
        node, why = self._node, "what listens there is not node 0"
        try:
            if not node.is_first:
                reached(node.master_address, node.master_port, _ARRIVAL_S)
            # Aside, for it waits without an end where something else listens.
            return ThreadPoolExecutor(1).submit(_store, node, self._silence_s).result(self._silence_s)
        except FutureTimeoutError:
            pass
        except (RuntimeError, OSError) as error:
            why = str(error).splitlines()[0]
        raise Refused(f"the nodes cannot meet at {node.master_address}:{node.master_port}: {why}")

    def _unmark(self) -> None:
        if self._node.is_first:
            self._mark.unlink(missing_ok=True)

    def meet(self) -> None:
        """Return when all nodes may start their ranks. Raises Refused unless they share `out`."""
        # A file server may show a new file late.
        if not _comes_true(self._mark.exists, self._silence_s):
            raise Refused("the folder out is not the one that node 0 writes to: all nodes must share it")
        self._is_ready = True
        _comes_true(lambda: self._word.are_ready)
        self._unmark()

    def seal(self) -> None:
        """Let nothing interrupt this launcher from here on: it is about to end."""
        self._is_sealed = True
        signal.signal(signal.SIGTERM, self._call)

    def end(self, exit_code: int) -> int:
        """Say how this node ended, wait until all have, and return the exit code of them all."""
        if exit_code == EXIT_CALLED and self._is_called and self._word.cause is not None:
            exit_code = self._word.cause.exit_code
        elif exit_code == EXIT_CALLED:
            self._speak_for(self._node.number, f"node {self._node.number} was ended by SIGTERM")
        self._exit_code = exit_code
        _comes_true(lambda: self._word.are_over)
        # The store ends with node 0, so that one goes last.
        self._is_leaving = True
        _comes_true(lambda: self._word.have_left if self._node.is_first else self._has_left, self._silence_s)
        return exit_code if self._word.cause is None else self._word.cause.exit_code

    def _speak(self) -> None:
        """Write how this node is, and read what is said to all: a thread's work."""
        beat = 0
        try:
            while True:
                beat += 1
                state = State(beat, self._is_ready, self._exit_code, has_left=self._is_leaving)
                self._store.set(_key(self._node.number), state.text())
                self._has_left = state.has_left
                if self._node.is_first:
                    self._store.set(_WORD, self._judged().text())
                self._hear(Word.of(self._store.get(_WORD)))
                time.sleep(_BEAT_S)
        except RuntimeError as error:
            self._lose(str(error).splitlines()[0])

    def _judged(self) -> Word:
        keys = {number: _key(number) for number in range(self._node.nodes)}
        states = {number: State.of(self._store.get(key)) for number, key in keys.items() if self._store.check([key])}
        word, gone = self._judge.look(states, time.monotonic())
        for number, message in gone.items():
            self._speak_for(number, message)
        return word

    def _listen(self) -> None:
        """Notice that the store is silent, a thread's work: who asks it may wait for an answer for ever."""
        while time.monotonic() - self._heard_at_s < self._silence_s:
            time.sleep(_BEAT_S)
        self._lose(f"nothing was heard of it for {self._silence_s:.0f} s")

    def _lose(self, why: str) -> None:
        """Take node 0 for gone, unless all is over."""
        if not self._word.are_over:
            self._speak_for(0, f"node 0 is gone: {why}")
            self._hear(WITHOUT_FIRST)

    def _hear(self, word: Word) -> None:
        self._word, self._heard_at_s = word, time.monotonic()
        if word.cause is not None and self._exit_code is None and not self._is_called:
            self._is_called = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _speak_for(self, number: int, message: str) -> None:
        speak_for_node(self._job.ranks_of(number), message, self._job, self._began_ns)

    def _call(self, _signal: int, _frame: object) -> None:
        if not self._is_sealed:
            raise Called


def _store(node: Node, timeout_s: float) -> TCPStore:
    return TCPStore(
        # It listens on all interfaces; node 0's own name may not be known yet.
        LOOPBACK if node.is_first else node.master_address,
        node.master_port,
        is_master=node.is_first,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        # torch's launcher opens the same one once more.
        multi_tenant=True,
    )


def _key(number: int) -> str:
    return f"xrun/node{number}"


def _comes_true(claim: Callable[[], bool], patience_s: float = float("inf")) -> bool:
    deadline = time.monotonic() + patience_s
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True
