"""Whether a source's tables can be given the shapes that the config wants for them: asked by `check`, and whenever an edge starts.

What the columns and the key are is in the catalog. What a condition is, the server says: it plans one that is asked about no rows.
The trap: a condition that reads other rows (a subquery, a function of the user's) would have to be judged again when those change.

https://www.postgresql.org/docs/current/xfunc-volatility.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import psycopg
from psycopg import sql

from streamer.capture.catalog import SourceTable, read_tables
from streamer.capture.keys import delta_key
from streamer.capture.row_filter import refused, trial
from streamer.errors import SchemaError, SourceError, StreamerError
from streamer.model import Identity, TableName
from streamer.node_config import Node, choose_capture
from streamer.session import Connection, connect, reported, version
from streamer.shape_config import Shape, clash
from streamer.shaping import full_identity, shape_definition, travelling, used_columns
from streamer.sql_text import names

_INNER: Final = ("SubPlan", "InitPlan")
"""How plans call what a subquery becomes."""
_RESTLESS: Final = """
SELECT p.proname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE p.proname = ANY(%s)
GROUP BY p.proname
HAVING bool_and(p.provolatile = 'v' OR p.provolatile = 's' AND n.nspname <> 'pg_catalog')
ORDER BY p.proname
"""


def require_shapes(
    name: str, node: Node, selects: Callable[[TableName], bool], shapes: Mapping[TableName, Shape]
) -> dict[TableName, tuple[str, ...]]:
    """Return the key of each table that has a shape. Raises SchemaError, SourceError, ConnectError."""
    keys, problems = examine_shapes(name, node, selects, shapes)
    for problem in problems:
        raise problem
    return keys


def examine_shapes(
    name: str, node: Node, selects: Callable[[TableName], bool], shapes: Mapping[TableName, Shape]
) -> tuple[dict[TableName, tuple[str, ...]], list[StreamerError]]:
    """Return the key of each table that has a shape, and what keeps tables from being given theirs. Raises ConnectError."""
    with reported(name), connect(name, node.url, application="streamer where") as connection:
        by_trigger = choose_capture(node.capture, version(connection))[0] == "trigger"
        tables = {t.table: t for t in read_tables(connection, selects)}
        problems: list[StreamerError] = []
        for shape in shapes.values():
            if shape.table not in tables:
                told = f'table "{shape.table}" is not on "{name}", but the config says what it becomes'
                problems.append(SourceError(told, "correct its name in the config, or create it there"))
            else:
                problems += _problems(connection, name, tables[shape.table], shape, by_trigger=by_trigger)
        problems += _clashes(tables, shapes)
        return {of: key_of(table) for of, table in tables.items() if of in shapes}, problems


def key_of(table: SourceTable) -> tuple[str, ...]:
    """Return the columns that a target cannot do without: those of the primary key and, unless it is FULL, the replica identity."""
    identity = () if table.identity is Identity.FULL else table.identity_columns
    return tuple(dict.fromkeys((*table.definition.primary_key, *identity)))


def shaped_table(table: SourceTable, shape: Shape | None) -> SourceTable:
    """Return the table as a target has it. Raises SchemaError."""
    if shape is None:
        return table
    definition = shape_definition(table.definition, shape)
    there = {c.name for c in definition.columns}
    identity = tuple(name for name in map(shape.column, table.identity_columns) if name in there)
    return SourceTable(definition, table.identity, identity, (), table.rows, partitioned=False)


def without_old_rows(connection: Connection, table: SourceTable, shape: Shape) -> list[tuple[TableName, str, str]]:
    """Return the tables whose changes lack what the shape needs of old rows: the table itself or partitions of it, each with the
    reason and the statement that cures it. Raises psycopg.Error, SchemaError.

    A table without any identity has inserts only, and they need none.
    """
    used = used_columns(shape, [c.name for c in table.travelling])
    found = []
    for part in (
        (table, *read_tables(connection, table.leaves.__contains__)) if (shape.where or shape.transform) and not shape.whole else ()
    ):
        missing = [name for name in used if name not in part.identity_columns]
        if part.identity in (Identity.FULL, Identity.NOTHING) or not (missing or shape.transform):
            continue
        needs = f'where needs "{missing[0]}" of it' if missing else "transform needs all of it"
        found.append((part.table, f"changes do not carry the old row, and its {needs}", full_identity(part.table)))
    return found


def _problems(connection: Connection, node: str, table: SourceTable, shape: Shape, *, by_trigger: bool) -> Iterator[StreamerError]:
    try:
        names = [c.name for c in table.travelling]
        travelling(shape, names, key_of(table))
        used_columns(shape, names)
    except SchemaError as problem:
        yield problem
        return
    if shape.where:
        yield from _problems_of_condition(connection, node, table, shape)
    if by_trigger:
        yield from _beyond_deltas(node, table, shape)
        return
    for part, why, statement in without_old_rows(connection, table, shape):
        yield SchemaError(f'table "{part}" on "{node}": {why}', f"{statement}, or run: streamer setup --fix")


def _beyond_deltas(node: str, table: SourceTable, shape: Shape) -> Iterator[SchemaError]:
    """What the shape needs of old rows besides the key, which is all that triggers keep of them."""
    key, names = delta_key(table, ()), [c.name for c in table.travelling]
    needed = [name for name in (names if shape.transform else used_columns(shape, names)) if name not in key]
    if needed and (shape.where or shape.transform) and not shape.whole:
        yield SchemaError(
            f'table "{table.table}" on "{node}": {"transform" if shape.transform else "where"} needs "{needed[0]}" of old rows, '
            "and the capture by triggers keeps only their key",
            f"use the key's columns alone, or set nodes.{node}.capture to pgoutput or wal2json where the server has them",
        )


def _problems_of_condition(connection: Connection, node: str, table: SourceTable, shape: Shape) -> Iterator[StreamerError]:
    what = f'table "{table.table}" on "{node}": where = "{shape.where}"'
    used = used_columns(shape, [c.name for c in table.travelling])
    columns = [c for c in table.relation().columns if c.name in used]
    query = sql.SQL("EXPLAIN (FORMAT JSON) ") + trial(connection, table.table, shape.where, columns)
    try:
        (plan,) = connection.execute(query).fetchone() or (None,)
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise
        yield refused(node, table.table, shape.where, error)
        return
    if _reads_more(plan):
        yield SourceError(
            f"{what} has a subquery: what it reads may change while the row does not, and nobody would hear of it",
            "write it over the columns of the row alone",
        )
    called = [name.text for name in names(shape.where) if name.after == "("]
    for (function,) in connection.execute(_RESTLESS, [called]).fetchall():
        yield SourceError(
            f"{what} calls {function}, whose answer may change while the row does not",
            "use functions that are IMMUTABLE, or STABLE ones of PostgreSQL itself",
        )


def _reads_more(plan: object) -> bool:
    """Whether anything in a plan reads more than the rows that it is given."""
    if isinstance(plan, list):
        return any(map(_reads_more, plan))
    if not isinstance(plan, dict):
        return False
    return plan.get("Parent Relationship") in _INNER or "Relation Name" in plan or any(map(_reads_more, plan.values()))


def shaped_tables(tables: Sequence[SourceTable], shapes: Mapping[TableName, Shape]) -> list[SourceTable]:
    """Return the tables as a target has them. Raises SchemaError, also if two of them would have one name."""
    for problem in _clashes([table.table for table in tables], shapes):
        raise problem
    return [shaped_table(table, shapes.get(table.table)) for table in tables]


def _clashes(tables: Iterable[TableName], shapes: Mapping[TableName, Shape]) -> Iterator[SchemaError]:
    if clashing := clash(shapes.values(), [table for table in tables if table not in shapes]):
        one, other = clashing
        yield SchemaError(
            f'tables "{other}" and "{one.table}" would share the name "{one.target}" on the target', "correct rename in the config"
        )
