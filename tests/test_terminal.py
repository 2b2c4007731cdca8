import pytest

from runner.terminal import clipped, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("loss größer als 1 — 学習", "loss größer als 1 — 学習"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202edef", r"abc\u202edef"),
        ("\u2066\u200f\u2028", r"\u2066\u200f\u2028"),
        ("a\0b\r\n\t\x7f", r"a\x00b\r\n\t\x7f"),
        ("\udcff", r"\udcff"),
    ],
)
def test_nothing_that_drives_a_terminal_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_what_is_to_be_kept_is_kept() -> None:
    assert printable("a\tb\x1bc\n", keep="\n\t") == "a\tb\\x1bc\n"


def test_long_text_is_clipped_to_the_width() -> None:
    assert clipped("abcdef", 4) == "abc…"
    assert clipped("abcd", 4) == "abcd"
