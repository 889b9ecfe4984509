"""What a wal2json session needs besides payloads: options for the plugin, and the two look-ups of its decoder.

The plugin names tables only, so the catalog is asked what they are; and before 2.6 it writes NaN and infinity as null, so such a
value is read again from the table. What is read then is the row as it is now; if it has changed since, the change is on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from psycopg import sql

from streamer.capture.assemble import OWN_TABLES
from streamer.capture.catalog import SourceTable, current_position, lineage, read_tables
from streamer.capture.layout import CatalogTable
from streamer.capture.wal2json import Wal2jsonDecoder, options
from streamer.model import Relation, Row, TableName, Value
from streamer.session import Connection


class Wal2jsonSession:
    """The tables of one session; `connection` is an ordinary one to the same database, used by the reader's thread only."""

    def __init__(self, connection: Connection, tables: Sequence[SourceTable], *, numbers_are_strings: bool) -> None:
        self._connection = connection
        self._tops = {t.table for t in tables} | OWN_TABLES
        #: new partitions are known by their schema only
        schemas = {leaf.schema for t in tables if t.partitioned for leaf in (*t.leaves, t.table)}
        names = [name for name in (*OWN_TABLES, *_by_name(tables)) if name.schema not in schemas]
        self.options = options(names, schemas=sorted(schemas), numbers_are_strings=numbers_are_strings)
        self.decoder = Wal2jsonDecoder(
            self._look_up,
            self._reread,
            partial(current_position, connection),
            numbers_are_strings=numbers_are_strings,
            encoding=_encoding(connection),
        )

    def _look_up(self, name: TableName) -> CatalogTable | None:
        """The table as the catalog has it now; only the tables that the session began with, and partitions of them."""
        if self._tops.isdisjoint(lineage(self._connection, name)):
            return None  # at once: a schema may have many tables beside ours
        table = _by_name(read_tables(self._connection, self._tops.__contains__)).get(name)
        return None if table is None else _known(table)

    def _reread(self, relation: Relation, key: Row, columns: Sequence[int]) -> Sequence[Value]:
        named = [(relation.names[i], value) for i, value in enumerate(key) if isinstance(value, str)]
        query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(relation.names[i])) for i in columns),
            sql.Identifier(relation.table.schema, relation.table.name),
            sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name, _ in named),
        )
        row = self._connection.execute(query, [value for _, value in named]).fetchone()
        return row if row is not None else [None] * len(columns)


def _by_name(tables: Sequence[SourceTable]) -> dict[TableName, SourceTable]:
    """Every name that rows of these tables may come under."""
    return {name: t for t in tables for name in (t.table, *t.leaves)}


def _known(table: SourceTable) -> CatalogTable:
    key = table.definition.primary_key or (
        table.identity_columns if len(table.identity_columns) < len(table.definition.columns) else ()
    )
    generated = frozenset(c.name for c in table.definition.columns if c.generated)
    return CatalogTable(table.relation(), key, generated)


def _encoding(connection: Connection) -> str:
    """Python's name of the database's encoding; a database that has none is taken for UTF-8."""
    connection.execute("SELECT set_config('client_encoding', current_setting('server_encoding'), false)")
    encoding = connection.info.encoding
    connection.execute("SET client_encoding = 'UTF8'")
    return "utf-8" if encoding == "ascii" else encoding
