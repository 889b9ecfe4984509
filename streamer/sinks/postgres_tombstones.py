"""Tombstones of keys that have no row, on a PostgreSQL node (that of a row is left by its trigger), and how others hear of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import orjson

from streamer.model import TableName
from streamer.session import Connection
from streamer.sinks.policy import Key
from streamer.sinks.postgres_table import TargetTable, quote, quoted
from streamer.versions import key_id, key_json

_BURY_AGAIN: Final = "UPDATE streamer.tombstone SET deleted = now() WHERE id = %s::uuid"
_BURY: Final = "INSERT INTO streamer.tombstone (id, schema_name, table_name, key) VALUES (%s::uuid, %s, %s, %s)"
_UNBURY: Final = "DELETE FROM streamer.tombstone WHERE id = ANY(%s::uuid[])"
_REMOVE: Final = "INSERT INTO streamer.removal (schema_name, table_name, key) VALUES (%s, %s, %s)"


def bury(connection: Connection, table: TableName, key: Key) -> None:
    """Leave a tombstone for a key, or with () for the whole table."""
    id_ = key_id(table, key)
    if connection.execute(_BURY_AGAIN, [id_], prepare=True).rowcount == 0:
        connection.execute(_BURY, [id_, table.schema, table.name, key_json(key)], prepare=True)


def unbury(connection: Connection, table: TableName, keys: Sequence[Key]) -> None:
    """Take away the tombstones that these keys have just got."""
    connection.execute(_UNBURY, [[key_id(table, key) for key in keys]])


def remove(connection: Connection, table: TableName, columns: Sequence[str], key: Key) -> None:
    """Bury a key of these columns, and have the other nodes hear of it as of a delete that was made here."""
    told = orjson.dumps(dict(zip(columns, key, strict=True))).decode()
    connection.execute(_REMOVE, [table.schema, table.name, told])
    bury(connection, table, key)


def remove_keys(connection: Connection, target: TargetTable, keys: Iterable[Key]) -> None:
    """Delete rows by their keys, or `remove` these, as a transaction of this node; others of its own must not hold the table."""
    columns = target.keys[0]
    types = [target.columns[c].type for c in columns]
    same = " AND ".join(f"t.{quote(c)} {t.equals} {{}}::{t.base_type}" for c, t in zip(columns, types, strict=True))
    delete = f"DELETE FROM {target.rows} AS t WHERE {same}".replace("%", "%%").replace("{}", "%s")
    with connection.transaction():
        connection.execute(f"LOCK TABLE {quoted(target.table)} IN SHARE ROW EXCLUSIVE MODE".encode())
        for key in keys:
            if connection.execute(delete.encode(), key).rowcount == 0:
                remove(connection, target.table, columns, key)
