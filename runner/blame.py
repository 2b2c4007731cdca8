"""Where two traces part, and what a researcher needs to know of it: step, rank, channel, tensor. Plain values."""

import struct
from collections.abc import Sequence
from typing import Protocol

from runner.inside.leaves import listed
from runner.inside.trace import CHANNELS, REALS, SLICED, Header, Record
from runner.record import Verdict
from runner.terminal import printable

# A header may come from anywhere and hold any number of them.
_SETTINGS_NAMED = 6


class Trace(Protocol):
    """One rank's trace. Indexes count from 0: index 0 is step 1."""

    @property
    def header(self) -> Header:
        """What it says once."""

    def count(self) -> int:
        """Return the number of records."""

    def chain(self, index: int) -> bytes:
        """Return the chain after a record; before the first one with index -1."""

    def record(self, index: int) -> Record:
        """Return a record."""


def first_difference(past: Trace, again: Trace) -> int | None:
    """Return the first step whose chains differ, 0 for what is before the first step, None where all are equal.

    Chains that are equal once were equal before, so log2(steps) reads find it. Only steps that both have count.
    """
    low, high = -1, min(past.count(), again.count())
    while low < high:
        middle = (low + high) // 2
        if past.chain(middle) == again.chain(middle):
            low = middle + 1
        else:
            high = middle
    return None if low == min(past.count(), again.count()) else low + 1


def first_verdict(past: Sequence[Trace], again: Sequence[Trace], end: int) -> Verdict | None:
    """Return the verdict on the first step in which any rank differs, None if none of the first `end` does."""
    pairs = list(zip(past, again, strict=True))
    for old, new in pairs:
        if _tables(old) != _tables(new):
            return diverged_before((old.header, new.header))
    steps = [step for step in (first_difference(*pair) for pair in pairs) if step is not None and step <= end]
    if not steps:
        return None
    step = min(steps)
    if step == 0:
        return next(diverged_before((old.header, new.header)) for old, new in pairs if first_difference(old, new) == 0)
    records = [[trace.record(step - 1) for trace in traces] for traces in (past, again)]
    return diverged((past[0].header, again[0].header), records[0], records[1])


def _tables(trace: Trace) -> tuple[object, ...]:
    return trace.header.slices, trace.header.parameters, trace.header.buffers


def diverged_before(headers: tuple[Header, Header]) -> Verdict:
    """Return the verdict on two runs that start from different weights."""
    past, again = headers
    what = "the initial weights differ"
    if (past.parameters, past.buffers) != (again.parameters, again.buffers):
        what = "the model's parameters or buffers are others"
    message = f"diverged before step 1: {what}{_other_settings(past, again)}"
    return Verdict(result="diverged", message=printable(message), step=0, channel="weights")


def computes_otherwise(operators: list[str], level: str, then: object, now: object) -> Verdict | None:
    """Return that a replay proves nothing where operators of its run compute other bits; None where none does.

    `then` and `now` name what the run and its replay compute on.
    """
    if not operators:
        return None
    message = (
        f"not comparable: operators {listed(operators)} compute other bits on this machine"
        f" ({then} then, {now} now); level {level} needs the same"
    )
    return Verdict(result="not comparable", message=printable(message))


def diverged(headers: tuple[Header, Header], past: Sequence[Record], again: Sequence[Record]) -> Verdict:
    """Return the verdict on one step's records of all virtual ranks: the first ones that differ."""
    header, others = headers[0], _other_settings(*headers)
    differing = [
        [name for name in CHANNELS if old.channels[name] != new.channels[name]] for old, new in _pairs(past, again)
    ]
    step = past[0].step
    firsts = [CHANNELS.index(names[0]) for names in differing if names]
    if not firsts:
        return Verdict(
            result="diverged", message=f"diverged at step {step}: the chains differ, no record does", step=step
        )
    channel = CHANNELS[min(firsts)]
    ranks = tuple(rank for rank, names in enumerate(differing) if channel in names)
    tensors = _tensors(header, channel, past[ranks[0]], again[ranks[0]])
    who = _who(header, ranks)
    what, equal, cause = _words(channel, past[ranks[0]], again[ranks[0]], header, tensors)
    because = f"; {equal}: {cause}" if equal else f": {cause}"
    message = f"diverged at step {step}{who}: {what}{because}{_seen_before(header, channel, step)}{others}"
    return Verdict(
        result="diverged",
        message=printable(message),
        step=step,
        ranks=ranks,
        channel=channel,
        tensor=tensors[0] if tensors else None,
    )


def _other_settings(past: Header, again: Header) -> str:
    """Say what was not the same around the two runs: where bits differ, the likely cause."""
    then, now = ({"torch": header.torch, **header.knobs} for header in (past, again))
    names = [name for name in sorted({**then, **now}) if then.get(name) != now.get(name)]
    named = [f"; {name:.40} was {then.get(name)!s:.40} then, {now.get(name)!s:.40} now" for name in names]
    more = f"; {len(named) - _SETTINGS_NAMED} more settings differ" if len(named) > _SETTINGS_NAMED else ""
    return "".join(named[:_SETTINGS_NAMED]) + more


def _pairs(past: Sequence[Record], again: Sequence[Record]) -> list[tuple[Record, Record]]:
    return list(zip(past, again, strict=True))


def _who(header: Header, ranks: tuple[int, ...]) -> str:
    if header.virtual_ranks == 1:
        return ""
    if len(ranks) == header.virtual_ranks:
        return ", on all ranks"
    kind = "rank" if header.virtual_ranks == header.world_size else "virtual rank"
    return f", {kind}{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _tensors(header: Header, channel: str, past: Record, again: Record) -> list[str]:
    """Name the tensors that differ, the one nearest to the cause first."""
    if channel not in SLICED:
        return []
    entries = zip(header.looked_at(channel, past.step), past.tensors[channel], again.tensors[channel], strict=True)
    names = [entry.name for entry, old, new in entries if old != new]
    # The backward pass goes from the last tensor to the first, and so does what it gets wrong.
    return names[::-1] if channel.endswith("_grad") else names


def _words(channel: str, past: Record, again: Record, header: Header, tensors: list[str]) -> tuple[str, str, str]:
    """Return what differs, what was equal, and what that means."""
    first = tensors[0] if tensors else "a tensor"
    more = f" (and {len(tensors) - 1} more)" if len(tensors) > 1 else ""
    whose = "this rank's" if header.virtual_ranks > 1 else "the"
    if channel == "weights_before":
        since = "the step before" if header.slices == 1 else "it was last looked at"
        return f"{first} differs before the step{more}", "", f"something wrote to it since {since}"
    then_now = f"{_number(past, channel)} then, {_number(again, channel)} now"
    words = {
        "sample_ids": ("the samples differ", "", "they were drawn in another order"),
        "batch": ("the batch differs", "its samples were equal", "the data or what was made of it is other"),
        "rng_before": (
            "the random generators differ",
            "samples and batch were equal",
            "something drew another number before",
        ),
        "output": ("the model's output differs", f"{_BEFORE} were equal", f"{whose} forward pass computed other bits"),
        "loss": (
            f"the loss differs ({then_now})",
            f"{_BEFORE} and the output were equal",
            "its function computed other bits",
        ),
        "local_grad": (
            f"gradient of {first} differs{more}",
            f"{_BEFORE} were equal",
            f"{whose} backward pass computed other bits",
        ),
        "reduced_grad": (
            f"averaged gradient of {first} differs{more}",
            "each rank's own was equal",
            "the collective that averages them computed other bits",
        ),
        "grad_norm": (
            f"the gradient's norm differs ({then_now})",
            "the gradient was equal",
            "clipping computed other bits",
        ),
        "scale": (f"the scaler's scale differs ({then_now})", "the gradient was equal", "the scaler decided otherwise"),
        "growth": (
            f"the scaler's count of good steps differs ({then_now})",
            "the gradient was equal",
            "the scaler decided otherwise",
        ),
        "lr": (f"the learning rate differs ({then_now})", "the gradient was equal", "the schedule says otherwise"),
        "settings": ("the optimizer's settings differ", "the gradient was equal", "something set them otherwise"),
        "optimizer": (f"the optimizer's state of {first} differs{more}", f"{_UPDATE} were equal", _UPDATE_CAUSE),
        "buffers": (
            f"buffer {first} differs{more}",
            f"{_UPDATE} and the output were equal",
            "something else wrote to it",
        ),
        "weights": (
            f"{first} differs after the step{more}",
            f"{_UPDATE} and the optimizer's state were equal",
            _UPDATE_CAUSE,
        ),
    }
    return words[channel]


_BEFORE = "batch, RNG and weights before it"
_UPDATE = "gradient, scaler and learning rate"
_UPDATE_CAUSE = "the optimizer's update computed other bits"


def _number(record: Record, channel: str) -> str:
    word = record.channels[channel]
    return repr(struct.unpack("<d" if channel in REALS else "<Q", word)[0])


def _seen_before(header: Header, channel: str, step: int) -> str:
    """Say what a step that looks at one slice of the tensors cannot know."""
    slices = header.slices
    if slices == 1:
        return ""
    if channel in SLICED:
        last = f"last seen equal at step {step - slices}" if step > slices else "not looked at before"
        return f" ({last}: each step looks at 1 of {slices} slices of the tensors)"
    return f" (of the weights, this step looked at 1 of {slices} slices)"
