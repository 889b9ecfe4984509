"""Tables for people: drawn on a terminal, aligned plain lines elsewhere, so that other programs can read them line by line.

On a terminal that is too narrow, columns that can be spared are left out; then cells are broken, but between words only, because a
name or a position in pieces can neither be read nor copied; and where that is not enough each row becomes a block of lines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_FRAME = 3
"""What the frame takes beside each column."""


def on_terminal() -> bool:
    """Return whether a person looks at standard output."""
    return sys.stdout.isatty()


def counted(number: int, noun: str) -> str:
    """Return `1 row`, `2 rows`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, spare: Sequence[str] = (), side_by_side: bool = False
) -> None:
    """Print the rows under their headers on standard output.

    `spare` are headers that can be left out, the first first; with `side_by_side` cells stay in one line, even if it breaks words.
    """
    rows = [list(map(printable, row)) for row in rows]
    if on_terminal():
        _draw(Console(), [[header, *(row[i] for row in rows)] for i, header in enumerate(headers)], spare, side_by_side)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _draw(console: Console, columns: Sequence[Sequence[str]], spare: Sequence[str], side_by_side: bool) -> None:
    """Draw columns, each of its header and its cells."""
    shown = list(columns)
    left_out = []
    for header in spare:
        if _framed(map(_longest, shown)) <= console.width:
            break
        shown = [column for column in shown if column[0] != header]
        left_out.append(header)
    widths = _squeezed(shown, console.width)
    if widths is None and not side_by_side:
        _print_blocks(columns)
        return
    table = Table()
    for i, column in enumerate(shown):
        table.add_column(column[0], width=widths[i] if widths else None, overflow="fold")
    _, *rows = zip(*shown, strict=True)
    for row in rows:
        table.add_row(*map(Text, row))  # Text: names may hold what rich takes for markup
    console.print(table)
    if left_out:
        print(f"no room for: {', '.join(reversed(left_out))}")


def _squeezed(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The widths of the columns in so much room, the widest made narrower first; None if words would have to be broken."""
    widths = [_longest(column) for column in columns]
    least = [_longest([word for text in column for word in text.split()]) for column in columns]
    while _framed(widths) > room:
        yielding = [i for i, width in enumerate(widths) if width > least[i]]
        if not yielding:
            return None
        widths[max(yielding, key=lambda i: widths[i])] -= 1
    return widths


def _framed(widths: Iterable[int]) -> int:
    """The width of a table with columns of these widths."""
    return 1 + sum(width + _FRAME for width in widths)


def _longest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _print_blocks(columns: Sequence[Sequence[str]]) -> None:
    headers, *rows = zip(*columns, strict=True)
    width = _longest(headers)
    for row in rows:
        for header, cell in zip(headers, row, strict=True):
            print(f"{header.ljust(width)}  {cell}".rstrip())
        print()


def printable(text: str) -> str:
    """Return the text without anything that a terminal would act on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, longest: int) -> str:
    """Return the text, cut where it is longer than so many characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
