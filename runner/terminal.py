"""What others wrote, as a terminal may show it."""


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
