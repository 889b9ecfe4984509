"""The sequences of a sync on its source: which there are, and how far each is.

A sequence belongs to the sync if its own name matches, or if a column of a selected table owns it or draws from it. All are asked
in one statement, which every version understands: a sequence is a relation with one row. The trap: with its cache, sessions have
drawn numbers that they have not used; `last_value` is past these, so what follows it is never too low.

https://www.postgresql.org/docs/current/sql-createsequence.html
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import sql

from streamer.errors import SourceError
from streamer.model import TableName
from streamer.sequence_ports import SequenceState
from streamer.sequence_session import SequenceSession
from streamer.session import Connection, version

PG_SEQUENCE: Final = 100000  # the catalog pg_sequence, and identity columns: version 10
AT_ONCE: Final = 200
"""Sequences asked in one statement."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What decides which sequences belong to a sync: its tables, and what it leaves out."""

    selects: Callable[[TableName], bool]
    excludes: Callable[[TableName], bool]

    def takes(self, sequence: TableName, users: Iterable[TableName]) -> bool:
        """Whether a sequence belongs to the sync, which columns of the tables `users` own or draw from."""
        return not self.excludes(sequence) and (self.selects(sequence) or any(map(self.selects, users)))


@dataclass(frozen=True, slots=True)
class Found:
    """A sequence of a sync."""

    name: TableName
    #: whether our role may read it
    readable: bool


def find_sequences(connection: Connection, selection: Selection) -> list[Found]:
    """Return the sequences of a sync, by name. Raises psycopg.Error."""
    users: dict[Found, list[TableName]] = defaultdict(list)
    for schema, name, readable, table_schema, table in connection.execute(_SEQUENCES):
        found = users[Found(TableName(schema, name), readable)]
        if table is not None:
            found.append(TableName(table_schema, table))
    return [found for found, tables in users.items() if selection.takes(found.name, tables)]


def read_states(connection: Connection, names: Sequence[TableName]) -> list[SequenceState]:
    """Return how far sequences are. Raises psycopg.Error."""
    states = []
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        query = sql.SQL(" UNION ALL ").join(_state(connection, i, name) for i, name in enumerate(some))
        rows: list[Any] = connection.execute(query).fetchall()
        states += [SequenceState(some[i], last, called, increment) for i, last, called, increment in sorted(rows)]
    return states


def _state(connection: Connection, number: int, name: TableName) -> sql.Composable:
    place = sql.Identifier(name.schema, name.name)
    increment: sql.Composable = sql.SQL("increment_by")
    if version(connection) >= PG_SEQUENCE:
        of = sql.Literal(place.as_string(connection))
        increment = sql.SQL("(SELECT seqincrement FROM pg_catalog.pg_sequence WHERE seqrelid = {}::regclass)").format(of)
    return sql.SQL("SELECT {}, last_value, is_called, {} FROM {}").format(sql.Literal(number), increment, place)


_SEQUENCES: Final = """
SELECT n.nspname, s.relname, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(s.oid, 'SELECT'), tn.nspname, t.relname
FROM pg_catalog.pg_class s
JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
LEFT JOIN (
    SELECT objid AS sequence, refobjid AS relation FROM pg_catalog.pg_depend
    WHERE classid = 'pg_catalog.pg_class'::regclass AND refclassid = 'pg_catalog.pg_class'::regclass AND deptype IN ('a', 'i')
    UNION
    SELECT d.refobjid, f.adrelid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef f ON f.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
) AS used ON used.sequence = s.oid
LEFT JOIN pg_catalog.pg_class t ON t.oid = used.relation
LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
WHERE s.relkind = 'S' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'streamer')
ORDER BY 1, 2, 4, 5
"""


class SequenceReader(SequenceSession):
    """Implements ports.SequenceSource for one sync on one node."""

    def __init__(self, node: str, url: str, selection: Selection) -> None:
        super().__init__(node, url)
        self._selection = selection

    def read(self) -> list[SequenceState]:
        """Return how far the sequences are."""
        with self._connected() as connection:
            found = find_sequences(connection, self._selection)
            for sequence in found:
                if not sequence.readable:
                    raise denied(self._node, sequence.name, connection.info.user)
            return read_states(connection, [sequence.name for sequence in found])


def denied(node: str, sequence: TableName, role: str) -> SourceError:
    """Return the error for a sequence that our role may not read."""
    place, grantee = (sql.Identifier(*names).as_string() for names in ((sequence.schema, sequence.name), (role,)))
    return SourceError(
        f'sequence "{sequence}" on "{node}": role {role} may not read it', f"GRANT SELECT ON SEQUENCE {place} TO {grantee}"
    )


def definition(connection: Connection, name: TableName, target: int) -> str:
    """Return the statement that makes the sequence on a server of version `target`. Raises psycopg.Error."""
    place = sql.Identifier(name.schema, name.name)
    if version(connection) >= PG_SEQUENCE:
        named = "format_type(seqtypid, NULL)" if target >= PG_SEQUENCE else "NULL"
        columns = "seqstart, seqincrement, seqmin, seqmax, seqcache, seqcycle"
        query = sql.SQL("SELECT {}, {} FROM pg_catalog.pg_sequence WHERE seqrelid = {}::regclass").format(
            sql.SQL(named), sql.SQL(columns), sql.Literal(place.as_string(connection))
        )
    else:
        columns = "start_value, increment_by, min_value, max_value, cache_value, is_cycled"
        query = sql.SQL("SELECT NULL, {} FROM {}").format(sql.SQL(columns), place)
    row: Any = connection.execute(query).fetchone()
    kind, start, increment, low, high, cache, cycle = row
    typed = f" AS {kind}" if kind else ""
    bounds = f"INCREMENT BY {increment} MINVALUE {low} MAXVALUE {high}"
    return (
        f"CREATE SEQUENCE {place.as_string(connection)}{typed} {bounds} START WITH {start} CACHE {cache}{' CYCLE' if cycle else ''}"
    )
