"""The sequences of the node that the writers move to: set past those of the node they leave, with a margin.

The margin leaves room for numbers that somebody has drawn after all. A sequence that only the new node has, because a column is
an identity there, or is called otherwise, is set past the greatest number in that column. The trap: a margin that does not
fit into the range of a sequence would leave it without numbers; so there it is left out.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from psycopg import sql

from streamer.admin.nodes import session
from streamer.admin.sequences import selection
from streamer.capture.sequences import PG_SEQUENCE, SequenceReader, read_states
from streamer.config import Config
from streamer.model import EdgeName, TableName
from streamer.sequence_ports import SequenceState
from streamer.session import Connection, version
from streamer.sinks.postgres_sequences import SequenceWriter

_OWNED: Final = """
SELECT n.nspname, s.relname, tn.nspname, t.relname, a.attname
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
JOIN pg_catalog.pg_class t ON t.oid = d.refobjid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
ORDER BY 1, 2
"""


def ahead(state: SequenceState, margin: int, low: int, high: int) -> SequenceState:
    """Return the state moved on by so many numbers, if one is left between `low` and `high` then. Pure."""
    moved = replace(state, last=state.last + margin * state.increment)
    return moved if low <= moved.next <= high else state


def move_past(config: Config, edge: EdgeName, margin: int) -> tuple[int, int]:
    """Set the sequences of the target; return how many there are, and how many had to be moved. Raises StreamerError."""
    settings = config.syncs[edge.sync]
    with closing(SequenceReader(edge.source, config.nodes[edge.source].url, selection(settings))) as source:
        states = source.read()
    with session(config, edge.target) as connection:
        states += _of_columns(connection, config, edge, {state.name for state in states})
        bounds = {state.name: _bounds(connection, state.name) for state in states}
    with closing(SequenceWriter(edge.target, config.nodes[edge.target].url)) as target:
        moved = target.advance([ahead(state, margin, *bounds[state.name]) for state in states])
    return len(states), moved


def _of_columns(connection: Connection, config: Config, edge: EdgeName, known: set[TableName]) -> list[SequenceState]:
    """Where the sequences of the target must be that the source does not know."""
    sync = config.syncs[edge.sync]
    shapes = sync.shapes_for(edge.target)
    renamed = {shape.target for shape in shapes.values()}
    states = []
    for schema, name, *place, column in connection.execute(_OWNED).fetchall():
        sequence, table = TableName(schema, name), TableName(*place)
        if sequence in known or sync.excludes(sequence) or not (table in renamed or (sync.selects(table) and table not in shapes)):
            continue
        last = _greatest(connection, table, column, read_states(connection, [sequence])[0])
        states += [] if last is None else [last]
    return states


def _greatest(connection: Connection, table: TableName, column: str, state: SequenceState) -> SequenceState | None:
    function = sql.SQL("min" if state.increment < 0 else "max")
    query = sql.SQL("SELECT {}({}) FROM {}").format(function, sql.Identifier(column), sql.Identifier(table.schema, table.name))
    (number,) = connection.execute(query).fetchone() or (None,)
    return None if number is None else replace(state, last=int(number), called=True)


def _bounds(connection: Connection, name: TableName) -> tuple[int, int]:
    """The least and the greatest number of a sequence; an empty range for one that is not there."""
    place = sql.Identifier(name.schema, name.name)
    query = sql.SQL("SELECT min_value, max_value FROM {}").format(place)
    if version(connection) >= PG_SEQUENCE:
        query = sql.SQL(
            "SELECT q.seqmin, q.seqmax FROM pg_catalog.pg_sequence q JOIN pg_catalog.pg_class c ON c.oid = q.seqrelid "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE (n.nspname, c.relname) = ({}, {})"
        ).format(name.schema, name.name)
    row: Any = connection.execute(query).fetchone()
    return (row[0], row[1]) if row else (1, 0)
