"""What `streamer quarantine list` and `show` print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC
from typing import Any, Final

from streamer.admin.printing import print_table, printable, shortened
from streamer.admin.quarantine import Found
from streamer.sinks.quarantine_table import Record, Stored

HEADERS: Final = ("time (UTC)", "id", "table", "key", "change", "error")
FOLLOWS: Final = "(follows an earlier one)"
LONGEST: Final = 300
"""How many characters of a value are shown to people."""


def print_list(found: Found, *, as_json: bool) -> None:
    """Print a line a change."""
    if as_json:
        print(json.dumps({"changes": list(map(plain, found.changes)), "more": found.more}, indent=2, ensure_ascii=False))
        return
    if not found.changes:
        print("nothing is in quarantine" + (" on the other nodes" if found.problems else ""))
        return
    print_table(HEADERS, list(map(_cells, found.changes)))
    if found.more:
        print("there are older ones: see --limit")


def _cells(change: Stored) -> list[str]:
    error = FOLLOWS if change.error is None else shortened(printable(change.error), 60)
    key = shortened(_key(change), 30)
    return [f"{change.quarantined.astimezone(UTC):%Y-%m-%d %H:%M:%S}", name_of(change), str(change.table), key, change.kind, error]


def name_of(change: Stored) -> str:
    """Return the change's id."""
    return f"{change.edge.target}:{change.id}"


def print_one(change: Stored, *, as_json: bool) -> None:
    """Print a change with its rows."""
    if as_json:
        print(json.dumps(plain(change), indent=2, ensure_ascii=False))
        return
    print(f"{name_of(change)}: {change.kind} of table {change.table}, key {_key(change)}")
    for what, told in {
        "held": f"{change.quarantined.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, edge {change.edge}",
        "made on": f"{change.origin}, written with the commit at {change.position} of {change.commit_time.astimezone(UTC)}",
        "error": "none: it follows an earlier change of the same row" if change.error is None else printable(change.error),
    }.items():
        print(f"{what + ':':8} {told}")
    print_table(("column", "old", "new"), list(_side_by_side(change)))


def _side_by_side(change: Stored) -> Iterator[list[str]]:
    for column in dict.fromkeys([*(change.old or {}), *(change.new or {})]):
        yield [column, _cell(change.old, column), _cell(change.new, column)]


def _cell(row: Record | None, column: str) -> str:
    if row is None:
        return "-"
    if column not in row:
        return "not sent"
    value = row[column]
    return "NULL" if value is None else shortened(printable(value), LONGEST)


def _key(change: Stored) -> str:
    return printable(", ".join(f"{column}={value}" for column, value in change.key.items()))


def plain(change: Stored) -> dict[str, Any]:
    """Return the change for JSON."""
    return {
        "id": name_of(change),
        "sync": change.edge.sync,
        "source": change.edge.source,
        "target": change.edge.target,
        "table": str(change.table),
        "kind": change.kind.value,
        "key": change.key,
        "old_row": change.old,
        "new_row": change.new,
        "error": change.error,
        "follows": change.error is None,
        "origin": change.origin,
        "position": change.position,
        "committed": change.commit_time.isoformat(),
        "quarantined": change.quarantined.isoformat(),
    }
