"""The plain text of a SWORD module: what a character model reads of a Debian text package."""

import html
import re
import struct
import zlib
from pathlib import Path

from runner.errors import ImageError

_ASIDE = re.compile(r"<(note|title|foreign)\b[^>]*>.*?</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_ASCII = str.maketrans({"\u00b6": "", "\u00c6": "Ae", "\u00e6": "ae", "\u2014": "--", "\u2019": "'"})


def plain_text(module: Path) -> bytes:
    """Return a module's verses, one a line, books parted by an empty line: ASCII, no notes, no titles, no markup."""
    try:
        books = [_book(verses) for part in ("ot", "nt") for verses in _books(module, part)]
        return "\n".join(book for book in books if book).encode("ascii")
    except (OSError, ValueError, IndexError, struct.error, zlib.error) as error:
        raise ImageError(f"{module} is not a compressed SWORD text: {error}") from error


def _books(module: Path, part: str) -> list[list[str]]:
    """Return the raw verses of each book. Two index files give blocks and verses in them, one block a book."""
    blocks, verses, text = ((module / f"{part}.{kind}").read_bytes() for kind in ("bzs", "bzv", "bzz"))
    plain = [zlib.decompress(text[start : start + size]) for start, size, _ in struct.iter_unpack("<III", blocks)]
    books: list[list[str]] = [[] for _ in plain]
    for block, start, size in struct.iter_unpack("<IIH", verses):
        books[block].append(plain[block][start : start + size].decode("utf-8"))
    return books


def _book(verses: list[str]) -> str:
    lines = (" ".join(html.unescape(_TAG.sub("", _ASIDE.sub("", verse))).translate(_ASCII).split()) for verse in verses)
    return "".join(f"{line}\n" for line in lines if line)
