"""`streamer check` and `streamer setup`, the shapes of tables on targets: can the source give them, and does it carry old rows.

What is judged is what an edge judges too when it starts (`capture.shaped_tables`); here all of it is told at once, with the
functions that make rows, and what an edge would only meet later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from streamer.admin.check_identity import read_parts
from streamer.admin.check_tables import NUMBERS, Capture
from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.nodes import Say, session
from streamer.capture.catalog import SourceTable, read_tables
from streamer.capture.shaped_tables import examine_shapes, key_of, shaped_table, without_old_rows
from streamer.config import Config
from streamer.errors import ConfigError, SchemaError
from streamer.model import Identity, TableName
from streamer.node_config import choose_capture
from streamer.session import Connection, version
from streamer.shape_config import Shape
from streamer.shaping import full_identity, used_columns
from streamer.sinks.postgres_triggers import patiently
from streamer.sinks.shaped import load_functions


def judge_shapes(
    config: Config, sync: str, target: str, connection: Connection, capture: Capture, tables: Sequence[SourceTable]
) -> Iterator[Finding]:
    """Yield what keeps tables from having the shapes that the config wants on a target. `connection` leads to the source.

    Raises ConnectError, psycopg.Error.
    """
    settings, what = config.syncs[sync], f'sync "{sync}" to "{target}"'
    shapes = settings.shapes_for(target)
    if not shapes:
        return
    _, problems = examine_shapes(capture.node, config.nodes[capture.node], settings.selects, shapes)
    yield from (error(what, problem.message, problem.hint) for problem in problems)
    for shape in shapes.values():
        try:
            load_functions([shape])
        except ConfigError as problem:
            yield error(what, problem.message, problem.hint)
    if not problems:
        yield from _judge_old_values(connection, capture, tables, shapes)
        yield ok(what, f"{len(shapes)} table{'' if len(shapes) == 1 else 's'} in another shape")


def _judge_old_values(
    connection: Connection, capture: Capture, tables: Sequence[SourceTable], shapes: Mapping[TableName, Shape]
) -> Iterator[Finding]:
    """Yield what changes will not tell although the replica identity is as it must be. Raises psycopg.Error."""
    for table in tables:
        shape = shapes.get(table.table)
        if shape is None or not (shape.where or shape.transform):
            continue
        names = [c.name for c in table.travelling]
        used = names if shape.transform else used_columns(shape, names)
        numbers = [c.name for c in table.travelling if c.type_oid in NUMBERS and c.name in used and c.name not in key_of(table)]
        if capture.loses_nan and numbers:
            yield error(
                f'table "{table.table}" on "{capture.node}"',
                f'wal2json before 2.6 does not tell NULL, NaN and infinity in "{numbers[0]}" of an old row, which its '
                f"{'transform' if shape.transform else 'where'} needs",
                f"install wal2json 2.6 or later there, or set nodes.{capture.node}.capture to pgoutput",
            )
        elif shape.where and table.identity is not Identity.FULL:
            yield from _judge_moved_keys(connection, capture.node, table)


def _judge_moved_keys(connection: Connection, source: str, table: SourceTable) -> Iterator[Finding]:
    for part in read_parts(connection, table):
        if part.toasted and part.identity in (Identity.DEFAULT, Identity.INDEX):
            yield warning(
                f'table "{part.table}" on "{source}"',
                "an update of the key that lets a row into its where does not carry long values that it left unchanged, "
                "and stops the stream",
                full_identity(part.table),
            )


def shaped(tables: Sequence[SourceTable], shapes: Mapping[TableName, Shape]) -> Iterator[SourceTable]:
    """Give the tables as a target has them, but for those whose shape makes no sense: these are findings already."""
    for table in tables:
        try:
            yield shaped_table(table, shapes.get(table.table))
        except SchemaError:
            continue


def carry_filtered_rows(config: Config, sync: str, source: str, *, fix: bool, say: Say) -> None:
    """Have the tables carry the old row where a shape needs it, or say how. Raises StreamerError."""
    settings = config.syncs[sync]
    with session(config, source) as connection:
        if choose_capture(config.nodes[source].capture, version(connection))[0] == "trigger":
            return  # replica identities mean nothing to it
        tables = read_tables(connection, settings.selects)
        wanted = {
            name: (why, statement)
            for target in config.targets(sync, source)
            for table in tables
            if (shape := settings.shapes_for(target).get(table.table)) is not None
            for name, why, statement in without_old_rows(connection, table, shape)
        }
        for table, (why, statement) in wanted.items():
            if not fix:
                say(f'warning: {source}: table "{table}": {why}; {statement}, or run: streamer setup --fix')
                continue
            with patiently(connection, table):
                connection.execute(statement.encode())
            say(f'{source}: altered table "{table}": REPLICA IDENTITY FULL')
