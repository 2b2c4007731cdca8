"""The text of a SWORD module."""

import struct
import zlib
from pathlib import Path

import pytest

from runner.errors import ImageError
from runner.images.sword import plain_text


def module(folder: Path, part: str, books: list[list[str]]) -> None:
    blocks, verses, text = b"", b"", b""
    for number, book in enumerate(books):
        plain = b""
        for verse in book:
            verses += struct.pack("<IIH", number, len(plain), len(verse.encode()))
            plain += verse.encode()
        packed = zlib.compress(plain)
        blocks += struct.pack("<III", len(text), len(packed), len(plain))
        text += packed
    for kind, content in {"bzs": blocks, "bzv": verses, "bzz": text}.items():
        (folder / f"{part}.{kind}").write_bytes(content)


def test_markup_notes_and_titles_go_and_verses_stay(tmp_path: Path) -> None:
    module(
        tmp_path,
        "ot",
        [
            ["<title>One</title>"],
            ['In the <w lemma="x">beginning</w>. ', "\u00b6 C\u00e6sar\u2019s <note>not this</note>A&amp;B"],
        ],
    )
    module(tmp_path, "nt", [["End\u2014of all."]])
    assert plain_text(tmp_path) == b"In the beginning.\nCaesar's A&B\n\nEnd--of all.\n"


def test_another_alphabet_is_refused_not_lost(tmp_path: Path) -> None:
    module(tmp_path, "ot", [["\u05d0"]])
    module(tmp_path, "nt", [])
    with pytest.raises(ImageError, match=r"is not a compressed SWORD text: 'ascii' codec"):
        plain_text(tmp_path)


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"is not a compressed SWORD text: .*ot\.bzs"):
        plain_text(tmp_path)
