"""Tables without a key: how their changes are captured, and the ways out; for `check`, `tables` and `setup`.

A slot gives the inserts of such a table only. Triggers cannot capture it at all; it is copied whole then, where that can be. Either
is told wherever somebody looks, and never an error. The trap: what serves depends on the capture: a replica identity means nothing
to triggers, and a key that the config names nothing to a slot, unless the identity is FULL.

docs/tables-without-keys.md
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.nodes import Say
from streamer.capture import keys
from streamer.capture.catalog import SourceTable
from streamer.config import Config
from streamer.model import Identity, TableName
from streamer.session import Connection
from streamer.sinks.postgres_table import quote, quoted

TRIGGER: Final = "trigger"


class Method(enum.StrEnum):
    """How a table's rows get to the targets, after the first copy."""

    STREAM = "stream"
    INSERTS = "inserts only"
    FULLCOPY = "copied whole"
    NOTHING = "not captured"


_TOLD: Final = {
    Method.INSERTS: "has no usable replica identity: only inserts are replicated",
    Method.FULLCOPY: "has no key by which triggers could tell its rows apart: it is copied whole, again and again",
    Method.NOTHING: "has no key by which triggers could tell its rows apart: it is not replicated",
}


@dataclass(frozen=True, slots=True)
class Keys:
    """The tables of a sync on one of its sources, as far as keys are concerned."""

    config: Config
    sync: str
    node: str
    #: how changes are read there
    plugin: str
    #: what a slot gives the inserts of only
    insert_only: Collection[TableName]

    def key(self, table: SourceTable) -> tuple[str, ...]:
        """What tells rows of the table apart, on the source and on the targets."""
        named = self.config.syncs[self.sync].key_for(table.table)
        if self.plugin == TRIGGER:
            return keys.delta_key(table, named)
        return keys.identity_key(table, named) or table.definition.primary_key

    def method(self, table: SourceTable) -> Method:
        """How the table is replicated."""
        settings, name = self.config.syncs[self.sync], table.table
        if settings.copies_whole(name):
            return Method.FULLCOPY
        if self.plugin != TRIGGER:
            return Method.INSERTS if name in self.insert_only else Method.STREAM
        if keys.delta_key(table, settings.key_for(name)):
            return Method.STREAM
        return Method.NOTHING if self.config.refuses_fullcopy(self.sync, name) else Method.FULLCOPY

    def lacking(self, table: SourceTable) -> str:
        """What is told of a table that lacks a key; empty if it lacks none, or the config says what to do."""
        if self.config.syncs[self.sync].copies_whole(table.table):
            return ""
        return _TOLD.get(self.method(table), "")

    def ways_out(self, connection: Connection, table: SourceTable) -> Iterator[str]:
        """Give what makes a table that lacks a key a whole part of the sync. Raises psycopg.Error."""
        altered, section = f"ALTER TABLE {quoted(table.table)}", f'[syncs.{self.sync}.table."{table.table}"]'
        named = self.config.syncs[self.sync].key_for(table.table)
        if self.plugin != TRIGGER:
            if (index := _serving_index(connection, table)) is not None:
                yield f"{altered} REPLICA IDENTITY USING INDEX {quote(index)}"
            if table.identity is not Identity.FULL:
                parts = " (and its partitions)" if table.leaves else ""
                yield f"{altered} REPLICA IDENTITY FULL{parts}" + (
                    "" if named else f"; if columns tell rows apart, also {section} key = […]"
                )
        else:
            yield f"{section} key = […], columns that are NOT NULL and tell its rows apart"
        yield f"{altered} ADD PRIMARY KEY (…)"
        if not self.config.refuses_fullcopy(self.sync, table.table) and self.method(table) is not Method.FULLCOPY:
            yield f"{section} fullcopy = true"
        yield {
            Method.INSERTS: "leave it, if rows are only ever inserted",
            Method.FULLCOPY: "leave it, if it is small",
        }.get(self.method(table), f'[syncs.{self.sync}] exclude = ["{table.table}"]')

    def judge(self, connection: Connection, tables: Sequence[SourceTable]) -> Iterator[Finding]:
        """Yield what is to be told of the tables' keys. Raises psycopg.Error."""
        settings = self.config.syncs[self.sync]
        for table in tables:
            what, named = f'table "{table.table}" on "{self.node}"', settings.key_for(table.table)
            if named:
                yield from self._judge_named(what, table, named)
            if told := self.lacking(table):
                ways = "; or ".join(self.ways_out(connection, table))
                yield warning(what, told, f"{ways}; after a change run: streamer setup")
            elif settings.copies_whole(table.table):
                yield ok(what, f"is copied whole {self.rhythm}")

    def _judge_named(self, what: str, table: SourceTable, named: Sequence[str]) -> Iterator[Finding]:
        key = f'key of syncs.{self.sync}.table."{table.table}"'
        if (problem := keys.problem_of(self.node, table, named)) is not None:
            yield error(what, problem.message.removeprefix(f"{what} ").removeprefix(f"{what}: "), problem.hint)
            return
        taken = self.key(table)
        if taken and taken != tuple(named):
            yield warning(what, f"has a key of its own ({', '.join(taken)}), which is taken", f"remove the {key}")
        elif not any(set(unique) <= set(named) for unique in table.definition.unique_keys):
            yield warning(
                what,
                f"nothing keeps two rows from having the same {', '.join(named)}, the key that the config names",
                f"CREATE UNIQUE INDEX ON {quoted(table.table)} ({', '.join(map(quote, named))})",
            )

    @property
    def rhythm(self) -> str:
        """How often tables are copied whole, for people."""
        settings = self.config.syncs[self.sync]
        return f"every {settings.fullcopy_every}" if settings.continuous else "in every run"

    def judge_held_back(self, tables: Collection[TableName]) -> Iterator[Finding]:
        """Yield what is to be told of tables that got a key since setup, and are published for inserts only still. Pure."""
        for table in sorted(tables, key=str):
            yield error(
                f'table "{table}" on "{self.node}"',
                "has a replica identity now, but is published for inserts only: its updates and deletes are not replicated",
                f"streamer setup, and for what was left out so far: streamer copy {self.sync} --table {table}",
            )

    def announce_caught_up(self, tables: Collection[TableName], say: Say) -> None:
        """Tell of tables whose updates and deletes are replicated from now on."""
        for table in sorted(tables, key=str):
            say(
                f'warning: {self.node}: updates and deletes of table "{table}" are replicated from now on; if there were any '
                f"before, the targets lack them: streamer copy {self.sync} --table {table}"
            )

    def announce(self, tables: Sequence[SourceTable], say: Say) -> None:
        """Tell of tables that lack a key."""
        for table in tables:
            if told := self.lacking(table):
                say(f'warning: {self.node}: table "{table.table}" {told}; for the ways out run: streamer tables --sync {self.sync}')


def _serving_index(connection: Connection, table: SourceTable) -> str | None:
    """The name of a unique index that can be the table's replica identity."""
    if table.leaves or not keys.unique_keys(table):
        return None
    row = connection.execute(_INDEX, [table.table.schema, table.table.name]).fetchone()
    return None if row is None else str(row[0])


_INDEX: Final = """
SELECT x.relname
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
  AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull)
ORDER BY i.indnatts, x.relname LIMIT 1
"""
