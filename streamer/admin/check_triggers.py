"""`streamer check`, sources that capture by triggers: is all installed, does it fire, and was it made by this version and config.

Until setup has been there nothing can be wrong; from then on a table whose triggers are missing or do not fire loses changes. The
trap: what is missing because the table is new to the sync, and what somebody has dropped, look the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from streamer.admin import capture_triggers
from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.printing import counted
from streamer.capture import batches, delta_objects, triggers
from streamer.capture.catalog import SourceTable
from streamer.capture.keys import delta_key
from streamer.capture.triggers import Condition
from streamer.config import Config, slot_name
from streamer.model import TableName
from streamer.session import Connection
from streamer.sinks.postgres_table import quoted

SETUP = "run: streamer setup"
ARRAY_KEYS: Final = 90100
MAKE_TRIGGERS = "give it triggers that always fire"
"""What only a table's owner can do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a source has of what a stream needs."""

    node: str
    stream: str
    #: whether the stream exists
    exists: bool
    #: whether the tables for captured changes are there, and as this version makes them
    installed: bool
    complete: bool
    language: bool
    conditions: dict[TableName, Condition]

    def unfinished(self) -> set[TableName]:
        """Return the tables that setup has something to do with."""
        return {table for table, condition in self.conditions.items() if condition is not Condition.COMPLETE}


def read_facts(config: Config, sync: str, node: str, connection: Connection, tables: Sequence[SourceTable]) -> Facts:
    """Look at the source. Raises SchemaError, psycopg.Error."""
    stream, there = slot_name(sync, node), capture_triggers.streams_there(connection)
    own = {table.table for table in tables}
    wanted = capture_triggers.wanted_tables(config, node, connection, capture_triggers.syncs_with(config, node, connection, sync))
    installed = triggers.read_installed(connection)
    return Facts(
        node,
        stream,
        stream in there,
        delta_objects.is_there(connection),
        not delta_objects.missing(connection),
        delta_objects.has_language(connection),
        {one.table.table: triggers.condition(one, installed) for one in wanted if one.table.table in own},
    )


def judge_triggers(facts: Facts) -> Iterator[Finding]:
    """Yield what keeps changes from being captured. Pure."""
    if not facts.language:
        yield error(f'node "{facts.node}"', "its database lacks the language of triggers", delta_objects.MAKE_LANGUAGE)
    what = f'stream "{facts.stream}" on "{facts.node}"'
    if not facts.exists:
        yield ok(what, "does not exist yet; streamer setup makes it, and the triggers of its tables")
        return
    yield ok(what, "exists")
    if facts.installed and not facts.complete:
        yield error(f'node "{facts.node}"', "what captures changes there was made by another version", SETUP)
    for table, condition in facts.conditions.items():
        if condition is not Condition.COMPLETE:
            yield error(f'table "{table}" on "{facts.node}"', _TOLD[condition], SETUP)
    if not facts.unfinished():
        count = len(facts.conditions)
        yield ok(what, f"the triggers of {count} table{'' if count == 1 else 's'} are as they must be")


def judge_left(config: Config, node: str, connection: Connection) -> Iterator[Finding]:
    """Yield the streams that this config does not know, and nobody reads: what is kept for them grows. Raises psycopg.Error."""
    unknown = capture_triggers.strangers(config, node, connection)
    for stream, kept in capture_triggers.backlog(connection) if unknown else ():
        if stream in unknown and not batches.reading(connection, stream):
            yield warning(
                f'stream "{stream}" on "{node}"',
                f"is not in the config, and nobody reads it: {counted(kept, 'captured change')}, and all to come, are kept for it",
                f"if it is not coming back: {_FORGET.format(stream)}; then: streamer setup",
            )


_FORGET: Final = "DELETE FROM streamer.delta_batch WHERE stream = '{0}'; DELETE FROM streamer.delta_reader WHERE stream = '{0}'"


def judge_array_keys(node: str, number: int, tables: Sequence[SourceTable]) -> Iterator[Finding]:
    """Yield the tables of a sync with several sources by whose keys a server of this version cannot look rows up again. Pure."""
    for table in tables if number < ARRAY_KEYS else ():
        types = {c.name: c.base_name or c.type_name for c in table.definition.columns}
        if arrays := [name for name in delta_key(table, ()) if types[name].endswith("[]")]:
            yield error(
                f'table "{table.table}" on "{node}"',
                f"its key has an array ({', '.join(arrays)}), by which a server before 9.1 does not find a row for several sources",
                f"ALTER TABLE {quoted(table.table)} ADD PRIMARY KEY (…) over other columns, or put the table into exclude",
            )


_TOLD = {
    Condition.MISSING: "lacks triggers: its changes are not captured; if it is not new, compare its rows with those of the targets",
    Condition.DISABLED: "has triggers that do not fire, or not always: compare its rows with those of the targets",
    Condition.OUTDATED: "has triggers that were made for another key, by another config or by another version of streamer",
}
