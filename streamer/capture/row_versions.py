"""The versions of a table's rows and deleted keys on a source, read inside a copy's snapshot.

A row whose merged columns alone were written since has the version in streamer.version, one that was copied to this node itself
the one in streamer.copied. The text of a key is what the type's output function gives, so it is taken from the result as it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import orjson
from psycopg import sql

from streamer.model import TableName, Version
from streamer.ports import RowVersion
from streamer.session import Connection, cells, version
from streamer.versions import OLDEST, Versions, key_hash, key_text, readable_versions

AT_ONCE: Final = 5000
"""Versions fetched in one go."""

_MERGED: Final = """
SELECT 1 FROM pg_catalog.pg_trigger AS g
JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE g.tgname = 'zz_streamer_version' AND n.nspname = %s AND c.relname = %s
"""
_MERGED_SINCE: Final = "LEFT JOIN streamer.version AS m ON m.id = {id}"
_COPIED: Final = "LEFT JOIN streamer.copied AS c ON c.id = {id} AND c.buried = {buried} AND c.xid = {xid}"
_NOT_COPIED: Final = "CROSS JOIN (SELECT NULL::timestamptz AS commit_time, NULL::text AS origin) AS c"
_VERSIONS: Final = """
SELECT {key}, ({time})::text, ({origin})::text, c.commit_time::text, c.origin FROM {source} AS t {merged} {copied}
WHERE coalesce(c.commit_time, {time}) > {since}
"""
_TOMBSTONES: Final = "(SELECT id, key, xmin FROM streamer.tombstone WHERE schema_name = {schema} AND table_name = {name})"


def row_versions(connection: Connection, node: str, table: TableName, key: Sequence[str], since: datetime) -> Iterator[RowVersion]:
    """Give the versions that are newer than `since`; `key` are the columns by which rows are told apart. In an open transaction."""
    versions = readable_versions(connection, node)
    since = max(since, OLDEST)
    for deleted, query in ((True, _of_tombstones), (False, _of_rows)):
        for *values, at, mark, copied, origin in _cells(connection, query(connection, versions, table, key, since)):
            read = versions.read(at, mark) if copied is None else Version(datetime.fromisoformat(copied), origin or node)
            yield RowVersion(_key(values) if deleted else tuple(str(value) for value in values), read, deleted)


def _of_rows(connection: Connection, versions: Versions, table: TableName, key: Sequence[str], since: datetime) -> str:
    columns = [_quoted(connection, column) for column in key]
    name = _quoted(connection, table.schema, table.name)
    id_ = key_hash(connection, table, key_text(version(connection), "t", columns))
    merged = connection.execute(_MERGED, [table.schema, table.name]).fetchone() is not None
    xid = "coalesce(m.xid, t.xmin)" if merged else "t.xmin"
    return _VERSIONS.format(
        key=", ".join(f"t.{column}" for column in columns),
        time=versions.time(xid),
        origin=versions.origin(xid),
        source=name,
        merged=_MERGED_SINCE.format(id=id_) if merged else "",
        copied=_copied(connection, id_, "false", xid),
        since=_literal(connection, since.isoformat()),
    )


def _of_tombstones(connection: Connection, versions: Versions, table: TableName, key: Sequence[str], since: datetime) -> str:
    schema, name = _literal(connection, table.schema), _literal(connection, table.name)
    return _VERSIONS.format(
        key="t.key",
        time=versions.time("t.xmin"),
        origin=versions.origin("t.xmin"),
        source=_TOMBSTONES.format(schema=schema, name=name),
        merged="",
        copied=_copied(connection, "t.id", "true", "t.xmin"),
        since=_literal(connection, since.isoformat()),
    )


def _copied(connection: Connection, id_: str, buried: str, xid: str) -> str:
    """The join with streamer.copied, if it has rows: the hash of every key costs."""
    used = connection.execute("SELECT EXISTS (SELECT 1 FROM streamer.copied)").fetchone() == (True,)
    return _COPIED.format(id=id_, buried=buried, xid=xid) if used else _NOT_COPIED


def _cells(connection: Connection, query: str) -> Iterator[list[str | None]]:
    """The result as the server has written it, bit by bit."""
    connection.execute(f"DECLARE streamer_versions NO SCROLL CURSOR FOR {query}".encode())
    fetch = f"FETCH {AT_ONCE} FROM streamer_versions".encode()
    while (result := connection.execute(fetch).pgresult) is not None and result.ntuples:
        yield from cells(result)
    connection.execute("CLOSE streamer_versions")


def _key(values: Sequence[str | None]) -> tuple[str, ...]:
    """The key that a tombstone tells; none if it is that of a truncate."""
    return tuple(orjson.loads(values[0])) if values[0] else ()


def _quoted(connection: Connection, *names: str) -> str:
    return sql.Identifier(*names).as_string(connection)


def _literal(connection: Connection, text: str) -> str:
    return sql.Literal(text).as_string(connection).strip()
