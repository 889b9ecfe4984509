"""Changes as events: one line of JSON for each, as docs/events.md says and docs/events.schema.json proves. Pure.

What all events of one transaction share is encoded once, and spliced with what is a row's own. A consumer must be able to see the
end of a transaction, so its last event says that it is the last.

The trap: a huge transaction comes in parts, and the part that ends it may hold no change for us. So the last event known is held
back until another comes, or the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import orjson

from streamer.model import LSN, UNCHANGED, Column, EdgeName, Identity, Origin, Relation, Row
from streamer.ports import CopyTable

VERSION: Final = 1
"""Of the schema: raised when a reader of the last one would read an event wrongly; new fields and kinds don't raise it."""
READ: Final = "read"
"""The kind of a row of an initial copy, beside those of model.Kind."""

Event: TypeAlias = tuple[str, Relation, Row | None, Row | None]
"""A model.Change, or the same with READ for its kind."""


def relation_of(table: CopyTable) -> Relation:
    """Return the relation of the rows of a copy."""
    columns = (Column(name, oid, name in table.key) for name, oid in zip(table.columns, table.type_oids, strict=True))
    return Relation(table.table, tuple(columns), Identity.DEFAULT if table.key else Identity.NOTHING)


class Lines:
    """The lines of one transaction, which `name` tells from all others of the edge.

    `position` is that of its commit record on the source, or of the snapshot that rows were read from.
    """

    def __init__(self, edge: EdgeName, name: str, position: LSN, origin: Origin) -> None:
        time = origin.commit_time.isoformat(timespec="microseconds")
        self._common = {
            "version": VERSION,
            "sync": edge.sync,
            "source": edge.source,
            "position": str(position),
            "commit_time": time,
            "origin": {"node": origin.node, "position": str(origin.position), "commit_time": time},
        }
        self._name = name
        self._relations: dict[Relation, tuple[bytes, tuple[int, ...]]] = {}
        self._written = 0
        self._held: Event | None = None

    def add(self, events: Iterable[Event], *, end: bool) -> bytes:
        """Return the lines of the events, in order; the last one is held back unless this is the `end` of the transaction."""
        held = self._held
        lines = []
        for event in events:
            if held is not None:
                lines.append(self._line(held, last=False))
            held = event
        if end and held is not None:
            lines.append(self._line(held, last=True))
            held = None
        self._held = held
        return b"".join(lines)

    def _line(self, event: Event, *, last: bool) -> bytes:
        kind, relation, old, new = event
        shared, key = self._relations.get(relation) or self._enter(relation)
        self._written += 1
        row = new if old is None else old
        own = {
            "kind": kind,
            "transaction": {"id": self._name, "sequence": self._written, "last": last},
            "key": {relation.names[i]: row[i] for i in key if row[i] is not UNCHANGED} if row is not None and key else None,
            "old": None if old is None else _values(relation.names, old),
            "new": None if new is None else _values(relation.names, new),
            "unchanged": [] if new is None or UNCHANGED not in new else _unchanged(relation.names, new),
        }
        return shared + orjson.dumps(own, option=orjson.OPT_APPEND_NEWLINE)[1:]

    def _enter(self, relation: Relation) -> tuple[bytes, tuple[int, ...]]:
        """What all events of the relation begin with, and where its key is, if something says what that is."""
        table = {"schema": relation.table.schema, "table": relation.table.name}
        shared = orjson.dumps({**self._common, "relation": table})[:-1] + b","
        self._relations[relation] = shared, relation.key
        return self._relations[relation]


def _values(names: Sequence[str], row: Row) -> dict[str, Any]:
    if UNCHANGED not in row:
        return dict(zip(names, row, strict=True))
    return {name: value for name, value in zip(names, row, strict=True) if value is not UNCHANGED}


def _unchanged(names: Sequence[str], row: Row) -> list[str]:
    return [name for name, value in zip(names, row, strict=True) if value is UNCHANGED]
