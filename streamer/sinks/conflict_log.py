"""The history of conflicts on the node that resolved them, streamer.conflict, and how long it and what they are judged by is kept.

When a transaction was made here is told by a row for each, where triggers capture and the server keeps no commit times. So these go
sooner: after a day, once all that is still to come from the other sources was made with knowledge of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import orjson

from streamer.model import POSTGRES_EPOCH, UNCHANGED, EdgeName, Origin, Relation, Row
from streamer.session import Connection
from streamer.sinks.conflict import Conflict, Version
from streamer.versions import SOURCE_SEEN, read_seen

PURGE_SECONDS: Final = 3600.0
"""How often what is too old is removed."""

_COLUMNS: Final = (
    "sync, source, target, schema_name, table_name, key, kind, change, current_row, current_origin, current_commit, "
    "incoming_row, incoming_origin, incoming_commit, incoming_position, winner, rule, error"
)
_RECORD: Final = f"INSERT INTO streamer.conflict ({_COLUMNS}) VALUES ({', '.join(['%s'] * 18)})"
_SAME: Final = (
    "SELECT 1 FROM streamer.conflict WHERE sync = %s AND source = %s AND target = %s AND schema_name = %s AND table_name = %s "
    "AND key = %s AND incoming_origin = %s AND incoming_position = %s AND winner IS NULL"
)
_OLD: Final = (
    ("conflict", "resolved", "conflict_days"),
    ("tombstone", "deleted", "tombstone_days"),
    ("version", "written", "tombstone_days"),
    ("copied", "copied", "tombstone_days"),
    ("removal", "removed", "tombstone_days"),
    ("transaction", "applied", "tombstone_days"),
)
_KNOWN: Final = (
    f"SELECT {SOURCE_SEEN} FROM streamer.progress WHERE target = %s AND sync IN (SELECT m.sync FROM streamer.member AS m "
    "WHERE m.target = progress.target)"
)
_KNOWN_TO_ALL: Final = (
    "DELETE FROM streamer.transaction WHERE origin = '' AND commit_time <= %s AND applied < now() - interval '1 day'"
)


class ConflictLog:
    """Writes the conflicts of one edge; `days` says how long what is kept, `key_names` which columns are a relation's key."""

    def __init__(self, edge: EdgeName, days: dict[str, int], key_names: Callable[[Relation], Sequence[str]]) -> None:
        self._key_names = key_names
        self._where = [edge.sync, edge.source, edge.target]
        self._days = days
        self._purge_at = 0.0

    def record(self, connection: Connection, conflicts: Iterable[Conflict], origin: Origin) -> None:
        """Insert the conflicts of a transaction, in the open one."""
        for conflict in conflicts:
            connection.execute(_RECORD, self._values(conflict, origin), prepare=True)

    def record_once(self, connection: Connection, conflict: Conflict, origin: Origin) -> None:
        """Insert a conflict that stops the edge; it comes again with every attempt."""
        values = self._values(conflict, origin)
        with connection.transaction():
            if not connection.execute(_SAME, [*values[:6], origin.node, str(origin.position)]).fetchone():
                connection.execute(_RECORD, values)

    def purge(self, connection: Connection) -> None:
        """Now and then remove what is older than the config says."""
        if time.monotonic() < self._purge_at:
            return
        self._purge_at = time.monotonic() + PURGE_SECONDS
        for table, column, days in _OLD:
            statement = f"DELETE FROM streamer.{table} WHERE {column} < now() - %s * interval '1 day'"
            connection.execute(statement.encode(), [self._days[days]])
        target = self._where[2]
        seen = [read_seen(text).get(target, POSTGRES_EPOCH) for (text,) in connection.execute(_KNOWN, [target])]
        connection.execute(_KNOWN_TO_ALL, [min(seen, default=POSTGRES_EPOCH)])

    def _values(self, conflict: Conflict, origin: Origin) -> list[Any]:
        relation = conflict.relation
        return [
            *self._where,
            relation.table.schema,
            relation.table.name,
            orjson.dumps(dict(zip(self._key_names(relation), conflict.key, strict=True))).decode(),
            conflict.kind.value,
            conflict.change.value,
            _row_text(relation, conflict.current),
            *_told(conflict.current_version),
            _row_text(relation, conflict.incoming),
            *_told(conflict.incoming_version),
            str(origin.position),
            conflict.winner,
            conflict.rule,
            conflict.error or None,
        ]


def _told(version: Version | None) -> Sequence[Any]:
    return (None, None) if version is None else (version.node, version.time)


def _row_text(relation: Relation, row: Row | None) -> str | None:
    """The columns that are known."""
    if row is None:
        return None
    return orjson.dumps({n: v for n, v in zip(relation.names, row, strict=True) if v is not UNCHANGED}).decode()
