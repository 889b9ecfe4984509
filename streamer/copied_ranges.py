"""A range of a copied table as its record on a target names it: a JSON array, the same on all engines."""

from __future__ import annotations

import json
from collections.abc import Iterable

from streamer.model import LSN, CopiedRange, KeyRange, TableName


def text_of(within: KeyRange) -> str:
    """Return the text for a range."""
    return json.dumps([within.column, within.numeric, within.low, within.high])


def copied_range(text: str, position: str, rows: int | None) -> CopiedRange:
    """Return what a record says. Raises ValueError."""
    return CopiedRange(KeyRange(*json.loads(text)), LSN.parse(position), rows or 0)


def by_table(records: Iterable[tuple[TableName, CopiedRange]]) -> dict[TableName, tuple[CopiedRange, ...]]:
    """Return the ranges of each table."""
    found: dict[TableName, tuple[CopiedRange, ...]] = {}
    for table, copied in records:
        found[table] = (*found.get(table, ()), copied)
    return found
