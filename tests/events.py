"""What a consumer of the jsonl sink's files sees: events, whole transactions, and the tables that they describe.

Files are read as docs/events.md tells consumers to: in the order of their numbers, and no transaction before its last event.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Row = dict[str, str | None]


def files(path: Path) -> list[Path]:
    """The files of a node that exist, in order."""
    later = sorted(path.parent.glob(f"{path.name}.[0-9]*"))
    return [file for file in (path, *later) if file.exists()]


def lines(path: Path) -> Iterator[str]:
    """The lines of all files."""
    for file in files(path):
        yield from file.read_text(encoding="utf-8").removesuffix("\n").split("\n") if file.stat().st_size else ()


def events(path: Path) -> Iterator[Event]:
    """The events of all files, also those of a transaction that has not ended."""
    return map(json.loads, lines(path))


def transactions(found: Iterable[Event]) -> Iterator[list[Event]]:
    """The transactions that are whole."""
    gathered: list[Event] = []
    for event in found:
        if event["transaction"]["sequence"] == 1:
            gathered = []  # what came before was never ended
        gathered.append(event)
        assert event["transaction"] == {
            **gathered[0]["transaction"],
            "sequence": len(gathered),
            "last": event["transaction"]["last"],
        }
        if event["transaction"]["last"]:
            yield gathered
            gathered = []


class Tables:
    """The rows that result from events."""

    def __init__(self, found: Iterable[Event] = ()) -> None:
        #: rows by their key; those of a table without one by a running number
        self._rows: dict[tuple[str, str], dict[object, Row]] = defaultdict(dict)
        self._number = 0
        for transaction in transactions(found):
            for event in transaction:
                self.apply(event)

    def rows(self, schema: str, table: str) -> list[Row]:
        """The rows of a table."""
        return list(self._rows[schema, table].values())

    def apply(self, event: Event) -> None:
        """Do what the event says; fails if its row is not there, or is there already."""
        rows = self._rows[event["relation"]["schema"], event["relation"]["table"]]
        match event["kind"]:
            case "insert" | "read" as kind:
                key = self._key(event, event["new"])
                assert kind == "read" or key not in rows, event
                rows[key] = dict(event["new"])
            case "update":
                row = rows.pop(self._found(rows, event)) | event["new"]
                rows[self._key(event, row)] = row
            case "delete":
                del rows[self._found(rows, event)]
            case "truncate":
                rows.clear()
            case kind:
                raise AssertionError(f"unknown kind {kind}")

    def _key(self, event: Event, row: Row) -> object:
        """What the row is kept under."""
        self._number += 1
        return self._number if event["key"] is None else tuple(row[column] for column in event["key"])

    def _found(self, rows: dict[object, Row], event: Event) -> object:
        """Where the row is that the event changes: at its key, or else one that is equal in all that is known."""
        if event["key"] is not None:
            return tuple(event["key"].values())
        return next(number for number, row in rows.items() if event["old"].items() <= row.items())
