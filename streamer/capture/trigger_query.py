"""The SQL by which deltas become changes. Pure, and nothing that 8.4 does not know.

A batch is all that one snapshot sees and an earlier one did not: deltas are chosen by transaction and snapshot, never by their id
or time, which say nothing about who commits first. Of each key the deltas tell whether its row was there before; a join with the
table tells what it is now.

The trap: a key's text is cast to the column's type before it is compared: 2.5 and 2.50 are one key.

https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from streamer.capture.definition_types import literal
from streamer.model import Relation, TableName

FEW_KEYS: Final = 1000
"""So many rows are looked up one by one, whatever the planner thinks of it."""
MANY_ROWS: Final = 10
"""And so are more, if the table has this many times as many rows."""

BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_catalog.txid_current_snapshot()"
"""Begins a batch; its snapshot is the second result."""
GOING_TO_SLEEP: Final = "SELECT CASE WHEN last_value <> 1 THEN pg_catalog.setval('streamer.wakeup', 1) END FROM streamer.wakeup; "
"""Has triggers notify; it writes WAL, so only where it changes something."""


@dataclass(frozen=True, slots=True)
class DeltaTable:
    """A captured table, as its changes are read."""

    #: with the key's columns as its identity
    relation: Relation
    #: key columns and their types in the order of delta.key
    key: tuple[tuple[str, str], ...]
    #: the expression of each of the relation's columns
    values: tuple[str, ...]
    #: estimated number of rows; 0 if nobody has counted them yet
    rows: int
    #: the oids that its deltas have: its own, and those of its partitions
    oids: tuple[int, ...]
    partitioned: bool = False
    #: no two rows ever have the same key, not even within a statement
    enforced: bool = True
    #: equal keys may be different texts, as 1.0 and 1.00
    loose: bool = False

    @property
    def key_values(self) -> tuple[str, ...]:
        """The expressions of the key's columns, in the relation's order."""
        return tuple(value for value, column in zip(self.values, self.relation.columns, strict=True) if column.identity)

    @property
    def table(self) -> TableName:
        """Its name."""
        return self.relation.table


def oids(values: Iterable[int]) -> str:
    """Return an array of oids as an SQL literal."""
    return f"'{{{','.join(map(str, values))}}}'::oid[]"


def window(snapshot: str, txid: str = "txid") -> str:
    """Return the condition for deltas that a txid_snapshot, xmin:xmax:xip, does not see.

    It is written so that the index gives nothing else: while a transaction lasts for an hour, all that was committed since then is
    not read again and again.
    """
    _, xmax, running = snapshot.split(":")
    later = f"{txid} >= {int(xmax)}"
    return f"({later} OR {txid} = ANY ('{{{running}}}'::bigint[]))" if running else later


def pending(stream: str, snapshot: str, others: Iterable[int]) -> str:
    """Return the query for the number of the stream's last batch, and whether relations besides `others` have deltas since
    `snapshot`."""
    return (
        f"SELECT (SELECT number FROM streamer.delta_reader WHERE stream = {literal(stream)}), "
        f"EXISTS (SELECT 1 FROM streamer.delta WHERE {window(snapshot)} AND relation <> ALL ({oids(others)}))"
    )


def tagged(snapshot: str) -> str:
    """Return the query for whether streamer has applied anything here since `snapshot`."""
    return f"SELECT EXISTS (SELECT 1 FROM streamer.delta_tag WHERE {window(snapshot)})"


def relations(snapshot: str) -> str:
    """Return the query for the relations that have deltas since `snapshot`, with the number of deltas and of deletes, the id of the
    last truncate, the first id, the time of the last delta and the file that holds the rows."""
    return (
        "SELECT d.relation::bigint, d.deltas, d.deletes, d.truncated, d.first, d.last_time::text, c.relfilenode::bigint "
        "FROM (SELECT relation, count(*) AS deltas, sum(CASE kind WHEN 'd' THEN 1 ELSE 0 END) AS deletes, "
        "max(CASE kind WHEN 't' THEN id END) AS truncated, min(id) AS first, "
        f"max(time) AS last_time FROM streamer.delta WHERE {window(snapshot)} GROUP BY relation) AS d "
        "LEFT JOIN pg_catalog.pg_class AS c ON c.oid = d.relation"
    )


def lock(tables: Sequence[DeltaTable]) -> str:
    """Return the statement that keeps tables from being emptied, rewritten or altered until the transaction ends."""
    return f"LOCK TABLE {', '.join(map(place, tables))} IN ACCESS SHARE MODE"


def deletes(table: DeltaTable, snapshot: str, after: int | None, deltas: int) -> str:
    """Return the statements that copy out the keys of a table's rows that were there at `snapshot` and have been deleted since,
    whether or not they are there again; deltas with ids up to `after` are passed over. `deltas` is how many there are.

    A key whose first delta is an insert was not there, unless one row may take it before another gives it up (a deferrable key, or
    one that only the config names): then as many rows had it as have it now, without those inserted, with those deleted.
    """
    columns = ", ".join(table.key_values)
    first = "min(id) IS NOT DISTINCT FROM min(CASE kind WHEN 'i' THEN id END)"
    if table.enforced:
        keys = _keys(table, snapshot, after)
        return f"COPY (SELECT {columns} FROM ({keys} HAVING bool_or(kind = 'd') AND NOT ({first})) AS d) TO STDOUT"
    count = f"CASE WHEN ({first}) THEN sum(CASE kind WHEN 'd' THEN 1 WHEN 'i' THEN -1 ELSE 0 END) ELSE 1 END AS {_LOST}"
    names = ", ".join(f"d.{column_name(name)}" for name, _ in table.key)
    return (
        f"{joins(table, deltas)}; COPY (WITH d AS ({_keys(table, snapshot, after, f', {count}')} HAVING bool_or(kind = 'd')) "
        f"SELECT {columns} FROM (SELECT {names} FROM d WHERE {_LOST} > 0 UNION ALL "
        f"SELECT {names} FROM d JOIN {place(table)} AS t ON {found(table)} WHERE {_LOST} = 0) AS d) TO STDOUT"
    )


def rows(table: DeltaTable, snapshot: str, after: int | None, deltas: int) -> str:
    """Return the statements that copy out a table's changed rows as they are now: i if the row was not there at `snapshot`, or is
    among `deletes`, u otherwise, and a value for each column. `deltas` is how many there are.
    """
    columns = ", ".join(f"t.{column_name(name)}" for name in table.relation.names)
    return (
        f"{joins(table, deltas)}; COPY (SELECT {', '.join([_KIND, *table.values])} FROM (SELECT d.{_KIND}, {columns} "
        f"FROM ({_keys(table, snapshot, after, _FRESH)}) AS d JOIN {place(table)} AS t ON {found(table)}) AS r) TO STDOUT"
    )


_KIND: Final = '"streamer kind"'
_LOST: Final = '"streamer lost"'
_FRESH: Final = f", CASE WHEN bool_or(kind <> 'u') THEN 'i' ELSE 'u' END AS {_KIND}"


def joins(table: DeltaTable, deltas: int) -> str:
    """Return the settings for a join of so many deltas with the table, of which a scan would often cost more than all else."""
    join = "off" if is_few(table, deltas) else "on"
    return f"SET LOCAL enable_hashjoin = {join}; SET LOCAL enable_mergejoin = {join}"


def found(table: DeltaTable) -> str:
    """Return the condition for a row t and a key d."""
    return " AND ".join(f"t.{column_name(name)} = d.{column_name(name)}" for name, _ in table.key)


def _keys(table: DeltaTable, snapshot: str, after: int | None, more: str = "") -> str:
    """The query for the keys that have deltas, in the columns' own types."""
    later = "" if after is None else f" AND id > {after}"
    keys, groups = grouped(table)
    return (
        f"SELECT {keys}{more} FROM streamer.delta "
        f"WHERE {window(snapshot)} AND relation = ANY ({oids(table.oids)}) AND kind <> 't'{later} GROUP BY {groups}"
    )


def grouped(table: DeltaTable) -> tuple[str, str]:
    """Return the key's columns as a query of deltas gives them, and what it groups by. Of equal keys that are different texts it
    gives the first: that is how the row was written that targets have, and to SQLite or MySQL any other text is another row."""
    typed = [(f"key[{i}]", type_name, column_name(name)) for i, (name, type_name) in enumerate(table.key, 1)]
    chosen = "(array_agg({0} ORDER BY id))[1]" if table.loose else "{0}"
    keys = ", ".join(f"{chosen.format(key)}::{type_name} AS {name}" for key, type_name, name in typed)
    return keys, ", ".join(f"{key}::{type_name}" for key, type_name, _ in typed)


def is_few(table: DeltaTable, deltas: int) -> bool:
    """Return whether so many rows are better looked up one by one: a table that nobody has counted may be huge."""
    return deltas < FEW_KEYS or not table.rows or deltas * MANY_ROWS < table.rows


def place(table: DeltaTable) -> str:
    """The table without others that inherit from it; its partitions are its own."""
    return f"{'' if table.partitioned else 'ONLY '}{sql.Identifier(table.table.schema, table.table.name).as_string()}"


def column_name(column: str) -> str:
    """Return a column's name as SQL writes it."""
    return sql.Identifier(column).as_string()
