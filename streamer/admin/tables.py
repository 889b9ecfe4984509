"""`streamer tables`: which tables the syncs select, how their rows are told apart, and what will happen to them on each target.

It shows what is there now and changes nothing; a node that cannot be reached is named in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from streamer.admin import installation
from streamer.admin.foreign import ForeignTarget, target_of
from streamer.admin.keyless import TRIGGER, Keys, Method
from streamer.admin.nodes import chosen_syncs, session
from streamer.admin.printing import print_table
from streamer.capture import publication
from streamer.capture.catalog import SourceTable, read_tables
from streamer.config import Config
from streamer.errors import StreamerError
from streamer.model import EdgeName, Identity, TableName
from streamer.node_config import choose_capture
from streamer.session import Connection, version
from streamer.sinks.postgres_ddl import has_table
from streamer.sinks.postgres_table import quoted

_IDENTITIES = {Identity.DEFAULT: "primary key", Identity.INDEX: "index", Identity.FULL: "full", Identity.NOTHING: "none"}


@dataclass(frozen=True, slots=True)
class Listed:
    """A table of a sync on one of its sources."""

    sync: str
    source: str
    table: str
    key: tuple[str, ...]
    identity: str
    #: estimated
    rows: int
    #: bytes on disk, with indexes
    size: int
    #: what will happen, by target
    targets: dict[str, str] = field(default_factory=dict)
    #: what is lost or done because the table has no key, and what can be done about it; empty if it has one
    lacks: str = ""
    ways_out: list[str] = field(default_factory=list)


def tables(config: Config, only: str | None) -> tuple[list[Listed], list[StreamerError]]:
    """Return the tables of all syncs, or of one, and the errors of nodes that could not be asked."""
    found: list[Listed] = []
    problems: list[StreamerError] = []
    for sync in chosen_syncs(config, only):
        for source in config.syncs[sync].sources:
            try:
                with session(config, source) as connection:
                    found += _Stream(config, sync, source, connection).listed(problems)
            except StreamerError as problem:
                problems.append(problem)
    return found, problems


class _Stream:
    """The tables that a sync selects on one source."""

    def __init__(self, config: Config, sync: str, source: str, connection: Connection) -> None:
        self._config = config
        self._settings = config.syncs[sync]
        self._sync = sync
        self._source = source
        self._connection = connection
        self._tables = read_tables(connection, self._settings.selects)
        plugin, _ = choose_capture(config.nodes[source].capture, version(connection))
        only_inserts = publication.insert_only(connection, self._tables, plugin) if plugin != TRIGGER else set()
        self._keys = Keys(config, sync, source, plugin, only_inserts)

    def listed(self, problems: list[StreamerError]) -> list[Listed]:
        """All tables, with what will happen to them; targets that cannot be asked are added to `problems`."""
        found = [self._table(t) for t in self._tables]
        for target in self._config.targets(self._sync, self._source):
            try:
                plans = list(self._plans(EdgeName(self._sync, self._source, target)))
            except StreamerError as problem:
                problems.append(problem)
                plans = ["cannot be reached"] * len(found)
            for table, plan in zip(found, plans, strict=True):
                table.targets[target] = plan
        return found

    def _table(self, table: SourceTable) -> Listed:
        lacks = self._keys.lacking(table)
        return Listed(
            self._sync,
            self._source,
            str(table.table),
            self._keys.key(table),
            "none" if table.table in self._keys.insert_only else _IDENTITIES[table.identity],
            table.rows,
            self._size(table),
            lacks=lacks,
            ways_out=list(self._keys.ways_out(self._connection, table)) if lacks else [],
        )

    def _size(self, table: SourceTable) -> int:
        names = [quoted(t) for t in (table.leaves if table.partitioned else [table.table])]
        query = "SELECT coalesce(sum(pg_total_relation_size(name::regclass)), 0)::bigint FROM unnest(%s::text[]) AS name"
        row: Any = self._connection.execute(query, [names]).fetchone()
        return int(row[0])

    def _plans(self, edge: EdgeName) -> Iterator[str]:
        """What will happen to each table on a target."""
        shapes = self._settings.shapes_for(edge.target)
        names = [shapes[t.table].target if t.table in shapes else t.table for t in self._tables]
        foreign = target_of(self._config, edge.target)
        state = _in_server(self._config, edge, names) if foreign is None else _in_foreign(foreign, edge, names)
        for table, name in zip(self._tables, names, strict=True):
            yield self._plan(table, name, state) + ("" if name == table.table else f", as {name}")

    def _plan(self, table: SourceTable, name: TableName, state: _State) -> str:
        """What will happen to a table that has this name on the target."""
        stream = self._keys.method(table)
        if stream in (Method.FULLCOPY, Method.NOTHING):
            plan = f"{stream} {self._keys.rhythm}" if stream is Method.FULLCOPY else stream
            return plan if name in state.existing else f"will be created, {plan}"
        copy = self._settings.copy_rows
        if name in state.copied:
            return stream
        if name not in state.existing:
            return f"will be created, {stream}" if copy == "never" else f"will be created, copy, then {stream}"
        copies = copy == "always" or (copy == "if-empty" and name not in state.filled)
        return f"copy, then {stream}" if copies else stream


@dataclass(frozen=True, slots=True)
class _State:
    """What a target has of an edge's tables."""

    existing: frozenset[TableName]
    filled: frozenset[TableName]
    copied: frozenset[TableName]


def _in_server(config: Config, edge: EdgeName, names: Sequence[TableName]) -> _State:
    with session(config, edge.target) as connection:
        existing = frozenset(n for n in names if has_table(connection, n))
        filled = {n for n in existing if connection.execute(f"SELECT 1 FROM {quoted(n)} LIMIT 1".encode()).fetchone()}
        if installation.has_table(connection, "first_rows"):
            query = "SELECT schema_name, table_name FROM streamer.first_rows WHERE sync = %s AND target = %s AND by_copy"
            filled -= {TableName(*row) for row in connection.execute(query, [edge.sync, edge.target])}
        copied = frozenset[TableName]()
        if installation.has_table(connection, "copy"):
            query = (
                "SELECT schema_name, table_name FROM streamer.copy "
                "WHERE sync = %s AND source = %s AND target = %s AND position <> '0/0'"
            )
            rows = connection.execute(query, [edge.sync, edge.source, edge.target])
            copied = frozenset(TableName(*row) for row in rows)
        return _State(existing, frozenset(filled), copied)


def _in_foreign(target: ForeignTarget, edge: EdgeName, names: Sequence[TableName]) -> _State:
    existing = target.existing(names)
    return _State(existing, target.filled([n for n in names if n in existing]), target.copied(edge))


def print_tables(found: Sequence[Listed], *, as_json: bool) -> None:
    """Print a line for each table and target."""
    if as_json:
        print(json.dumps({"tables": [asdict(t) for t in found]}, indent=2, ensure_ascii=False))
        return
    headers = ("sync", "source", "table", "key", "identity", "rows", "size", "target", "plan")
    rows = [_cells(t, target, plan) for t in found for target, plan in t.targets.items()]
    print_table(headers, rows, spare=("size", "identity", "source", "rows", "key"))
    for table in found:
        if table.lacks:
            print(f'{table.sync}: table "{table.table}" on "{table.source}" {table.lacks}. Ways out:')
            print("\n".join(f"  - {way}" for way in table.ways_out))


def _cells(table: Listed, target: str, plan: str) -> list[str]:
    key = ", ".join(table.key) or "-"
    return [table.sync, table.source, table.table, key, table.identity, f"~{table.rows}", _in_units(table.size), target, plan]


def _in_units(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"
