"""Tables for people: drawn on a terminal, aligned plain lines elsewhere, so that other programs can read them line by line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def on_terminal() -> bool:
    """Return whether a person looks at standard output."""
    return sys.stdout.isatty()


def counted(number: int, noun: str) -> str:
    """Return `1 row`, `2 rows`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the rows under their headers on standard output."""
    if on_terminal():
        table = Table()
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))  # Text: names may hold what rich takes for markup
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
