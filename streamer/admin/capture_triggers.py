"""Sources that capture by triggers: what `setup` makes there, `teardown` removes, and `streamer triggers` does of both.

A stream has a row in streamer.delta_reader, which stands for what a slot is elsewhere; the triggers belong to all streams of the
node together. The traps: a table that loses its triggers while a stream goes on would lose changes in silence, so the two go
together; and a database may serve streams of another config, whose tables and columns nobody here knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from streamer.admin.keyless import TRIGGER
from streamer.admin.nodes import Say
from streamer.admin.removals import STOP, Removal
from streamer.capture import batches, delta_objects, triggers
from streamer.capture.catalog import SourceTable, read_tables
from streamer.capture.keys import delta_key
from streamer.capture.triggers import Condition, Wanted
from streamer.config import Config, slot_name
from streamer.errors import SchemaError, UsageError
from streamer.model import TableName
from streamer.node_config import choose_capture
from streamer.session import Connection, sessions, version
from streamer.shaping import used_columns
from streamer.sinks.postgres_triggers import patiently


def captures_here(config: Config, node: str, connection: Connection) -> bool:
    """Return whether changes are captured by triggers on this source."""
    return choose_capture(config.nodes[node].capture, version(connection))[0] == TRIGGER


# -- what is wanted ----------------------------------------------------------------------------------------------------------------


def wanted_tables(config: Config, node: str, connection: Connection, syncs: Collection[str]) -> list[Wanted]:
    """Return the tables of these syncs on the source that triggers can capture. Raises SchemaError, psycopg.Error."""
    found: dict[TableName, Wanted] = {}
    whole, unique = bool(strangers(config, node, connection)), triggers.read_unique(connection)
    for sync in syncs:
        settings = config.syncs[sync]
        for table in read_tables(connection, settings.selects):
            key = delta_key(table, settings.key_for(table.table))
            if key and settings.captures(table.table):
                columns = None if whole else _columns(config, sync, node, table)
                wanted = Wanted(table, key, columns, unique.get(table.table, frozenset()), settings.multi_master)
                found[table.table] = _joined(node, found.get(table.table), wanted)
    triggers.require_disjoint(node, found.values())
    return list(found.values())


def _joined(node: str, one: Wanted | None, other: Wanted) -> Wanted:
    """What two syncs want of a table."""
    if one is None:
        return other
    if one.key != other.key:
        raise SchemaError(
            f'table "{one.table.table}" on "{node}": syncs tell its rows apart by different keys '
            f"({', '.join(one.key)}; {', '.join(other.key)}), and triggers note only one of them",
            "give it the same key in each of these syncs",
        )
    columns = None if one.columns is None or other.columns is None else one.columns | other.columns
    return Wanted(one.table, one.key, columns, one.unique, one.masters or other.masters)


def _columns(config: Config, sync: str, node: str, table: SourceTable) -> frozenset[str] | None:
    """The columns that count for the sync's targets; None if all do."""
    columns: set[str] = set()
    for target in config.targets(sync, node):
        shape = config.syncs[sync].shapes_for(target).get(table.table)
        if shape is None or shape.columns is None or shape.transform:
            return None
        columns |= shape.columns
        columns.update(used_columns(shape, [c.name for c in table.travelling]))
    return frozenset(columns)


# -- streams -----------------------------------------------------------------------------------------------------------------------


def is_installed(connection: Connection) -> bool:
    """Return whether anything is captured by triggers in this database. Raises psycopg.Error."""
    return delta_objects.is_there(connection)


def streams_there(connection: Connection) -> set[str]:
    """Return the names of the streams that read here by triggers. Raises psycopg.Error."""
    if not is_installed(connection):
        return set()
    return {name for (name,) in connection.execute("SELECT stream FROM streamer.delta_reader")}


def strangers(config: Config, node: str, connection: Connection) -> set[str]:
    """Return the streams that this config does not know. Raises psycopg.Error."""
    known = {slot_name(name, node) for name, sync in config.syncs.items() if node in sync.sources}
    return streams_there(connection) - known


def syncs_with(config: Config, node: str, connection: Connection, sync: str) -> list[str]:
    """Return the syncs that have a stream here, and this one. Raises psycopg.Error."""
    return list(dict.fromkeys((*_active(config, node, connection), sync)))


def _active(config: Config, node: str, connection: Connection) -> list[str]:
    """The syncs that have a stream here."""
    there = streams_there(connection)
    return [name for name, sync in config.syncs.items() if node in sync.sources and slot_name(name, node) in there]


# -- making ------------------------------------------------------------------------------------------------------------------------


def prepare(config: Config, node: str, connection: Connection, sync: str, say: Say) -> bool:
    """Make what one stream needs: objects, triggers, and last its reader. Return whether it was there with fewer tables. Raises
    StreamerError, psycopg.Error."""
    say(f"{node}: {delta_objects.install(connection, node)} tables for captured changes")
    made = install(config, node, connection, syncs_with(config, node, connection, sync), say)
    stream = slot_name(sync, node)
    if stream in streams_there(connection):
        say(f'{node}: kept delta reader "{stream}"')
        return bool(made)
    batches.create_reader(connection, stream)
    say(f'{node}: created delta reader "{stream}"')
    return False


def install(config: Config, node: str, connection: Connection, syncs: Sequence[str], say: Say) -> int:
    """Bring the triggers of the source's tables into line with what these syncs want; return how many tables had none. Raises
    StreamerError, psycopg.Error."""
    wanted = wanted_tables(config, node, connection, syncs)
    if not strangers(config, node, connection):
        needed = {one.table.table for one in wanted}
        _remove(connection, [t for t in triggers.read_installed(connection).tables() if t not in needed], node, say)
    installed = triggers.read_installed(connection)
    if script := triggers.missing_functions(wanted, installed):
        connection.execute(script.encode())
    done: Counter[Condition] = Counter()
    for one in wanted:
        condition = triggers.condition(one, installed)
        done[condition] += 1
        if condition is not Condition.COMPLETE:
            with patiently(connection, one.table.table):
                connection.execute(triggers.making(one, installed).encode())
            say(f'{node}: {_DONE[condition]} capture triggers of table "{one.table.table}"')
        if condition is Condition.DISABLED:
            say(
                f'warning: {node}: triggers of table "{one.table.table}" did not fire: what was changed meanwhile has not been '
                f"captured; compare its rows with those of the targets"
            )
    triggers.remove_idle_functions(connection)
    if kept := done[Condition.COMPLETE]:
        say(f"{node}: kept capture triggers of {kept} table{'' if kept == 1 else 's'}")
    return done[Condition.MISSING]


_DONE = {Condition.MISSING: "made", Condition.DISABLED: "enabled", Condition.OUTDATED: "renewed"}


# -- removing ----------------------------------------------------------------------------------------------------------------------


def removals(connection: Connection, node: str, leaving: Sequence[str], rest: Config, *, force: bool) -> Iterator[Removal]:
    """Yield what goes with the streams of the syncs `leaving`, where `rest` is the config without them.

    Triggers stay where a stream that stays needs them. Raises UsageError if a stream is read and `force` is not given.
    """
    there = streams_there(connection)
    gone = {stream: sync for sync in leaving if (stream := slot_name(sync, node)) in there}
    for stream, sync in gone.items():
        yield from _readers(connection, node, sync, force=force)
        yield Removal(f'delta reader "{stream}"', partial(batches.drop_reader, stream=stream))
    if not is_installed(connection):
        return
    staying = there - gone.keys()
    unwanted = _unwanted(connection, node, rest, staying)
    if unwanted:
        names = ", ".join(f'"{table}"' for table in unwanted)
        yield Removal(f"capture triggers of {names}", partial(_remove, tables=unwanted))
    if not staying:
        yield Removal("captured changes", _remove_objects)


def _unwanted(connection: Connection, node: str, rest: Config, staying: set[str]) -> list[TableName]:
    """The tables whose triggers none of the streams that stay needs."""
    tables = triggers.read_installed(connection).tables()
    if strangers(rest, node, connection) & staying:
        return []
    syncs = [sync for sync in _active(rest, node, connection) if slot_name(sync, node) in staying]
    needed = {one.table.table for one in wanted_tables(rest, node, connection, syncs)}
    return [table for table in tables if table not in needed]


def _readers(connection: Connection, node: str, sync: str, *, force: bool) -> Iterator[Removal]:
    """Sessions of a daemon that reads here for the sync. Raises UsageError if there are any and `force` is not given."""
    stream = slot_name(sync, node)
    for pid in sorted({*sessions(connection, f"streamer {sync} {node}"), *batches.reading(connection, stream)}):
        if not force:
            raise UsageError(f'delta reader "{stream}" on "{node}" is read by process {pid}', STOP)
        yield Removal(f'session of delta reader "{stream}" (process {pid})', "SELECT pg_terminate_backend(%s)", (pid,))


def _remove(connection: Connection, tables: Sequence[TableName], node: str = "", say: Say | None = None) -> None:
    """Remove the triggers of these tables, and functions that no trigger uses."""
    installed = triggers.read_installed(connection)
    for table in tables:
        with patiently(connection, table):
            connection.execute(triggers.removing(table, installed).encode())
        if say is not None:
            say(f'{node}: removed capture triggers of table "{table}"')
    triggers.remove_idle_functions(connection)


def _remove_objects(connection: Connection) -> None:
    if script := delta_objects.removal(connection):
        connection.execute(script.encode())


def backlog(connection: Connection) -> list[tuple[str, int]]:
    """Return, by stream, how many captured changes it has not confirmed. Raises psycopg.Error."""
    rows: list[tuple[Any, ...]] = connection.execute(_BACKLOG).fetchall()
    return [(stream, count) for stream, count in rows]


_BACKLOG = """
SELECT r.stream, (SELECT count(*) FROM streamer.delta d WHERE d.txid >= txid_snapshot_xmin(b.snapshot)
                  AND NOT txid_visible_in_snapshot(d.txid, b.snapshot))
FROM streamer.delta_reader r JOIN streamer.delta_batch b ON b.stream = r.stream AND b.number = r.confirmed
ORDER BY r.stream
"""
