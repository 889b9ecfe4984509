r"""COPY's text format: blocks of bytes to rows of values and back. Pure.

A line is a row, a tab parts its fields, \N is NULL and a backslash escapes. Most blocks hold no backslash at all, and are
split without looking at single fields. The trap: `str.splitlines` would split at characters that are data here (a vertical
tab, U+2028), and the server never writes octal or hexadecimal escapes, so these are not read.

https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from streamer.model import Value

_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SPECIAL: Final = str.maketrans({"\\": "\\\\"} | {char: f"\\{letter}" for letter, char in _ESCAPES.items()})


class Block(bytes):
    """Whole rows, and how many there are: to count them takes nearly as long as to take them from a server."""

    rows: int

    @classmethod
    def of(cls, rows: Sequence[bytes]) -> Block:
        """Return the rows as one."""
        block = cls(b"".join(rows))
        block.rows = len(rows)
        return block


def rows_in(block: bytes) -> int:
    """Return how many rows a block has."""
    return block.rows if isinstance(block, Block) else block.count(b"\n")


def parse(block: bytes | memoryview) -> Iterator[tuple[str | None, ...]]:
    """Return the rows of a block of whole lines in UTF-8.

    Raises UnicodeDecodeError, and ValueError if the last line is not whole.
    """
    text = str(block, "utf-8")
    if not text:
        return iter(())
    if not text.endswith("\n"):
        raise ValueError("a block of COPY text ends within a row")
    lines = text[:-1].split("\n")
    if "\\" not in text:
        return (tuple(line.split("\t")) for line in lines)
    return (tuple(map(_field, line.split("\t"))) if "\\" in line else tuple(line.split("\t")) for line in lines)


def format_rows(rows: Sequence[Sequence[Value]]) -> bytes:
    """Return the rows, at least one and all of one width, as a block of COPY text in UTF-8. They hold no UNCHANGED.

    Escaping values one by one would cost more than all the rest of writing a row. So the whole block is joined first, with NUL for
    NULL (no PostgreSQL text holds it), and escaped at once; only a tab or newline inside a value takes the slow way.
    """
    lines = _joined(rows)
    text = "\n".join(lines)
    if text.count("\t") != len(rows) * max(len(rows[0]) - 1, 0) or text.count("\n") != len(rows) - 1:
        text = "\n".join(["\t".join(["\0" if v is None else str(v).translate(_SPECIAL) for v in row]) for row in rows])
    else:
        text = text.replace("\\", "\\\\").replace("\r", "\\r")
    return (text.replace("\0", "\\N") + "\n").encode()


def _joined(rows: Sequence[Sequence[Value]]) -> list[str]:
    try:
        return list(map("\t".join, rows))  # type: ignore[arg-type]  # a NULL raises
    except TypeError:
        return ["\t".join(["\0" if v is None else v for v in row]) for row in rows]  # type: ignore[misc]


def _field(field: str) -> str | None:
    if field == "\\N":
        return None
    return _unescaped(field) if "\\" in field else field


def _unescaped(field: str) -> str:
    """The text without escapes. Not by a regular expression: it would make objects for each of them, and a text may have millions.
    NUL stands for the backslash, which no PostgreSQL text holds."""
    text = field.replace("\\\\", "\0")
    if "\\" in text:
        for letter, char in _ESCAPES.items():
            text = text.replace(f"\\{letter}", char)
        text = text.replace("\\", "")  # any other character stands for itself
    return text.replace("\0", "\\")
