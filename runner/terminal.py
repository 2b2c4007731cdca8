"""What others wrote, as a terminal may show it."""

import math


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text in which no character moves the cursor, colours, hides or reorders what is read.

    Controls, escape sequences and bidirectional marks are spelled out, as in `\x1b`; `keep` names those that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else _spelled(character) for character in text
    )


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def clipped(text: str, width: int) -> str:
    """Return text that takes at most width columns; what was cut shows as an ellipsis."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def number_of(value: object) -> float | None:
    """Return a finite number, or None for all else that a container may write."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: object) -> str:
    """Return what a line may say of any value: a number in few digits."""
    number = number_of(value)
    if number is None:
        return "nan" if value is None else clipped(str(value), 40)
    return f"{number:.0f}" if number.is_integer() else f"{number:.4g}"


def duration(seconds: float) -> str:
    """Return seconds as people read them: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(min(max(seconds, 0.0), 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
