"""`streamer check`, syncs with several sources: can conflicts be told, are they resolved the same on every node.

Facts of each node are read first; verdicts are pure. The rules behind them stand in docs/multi-master.md.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from streamer.admin.check_identity import Part, demand, lacking, read_parts
from streamer.admin.findings import Finding, error, ok, warning
from streamer.capture.catalog import SourceTable
from streamer.config import Sync
from streamer.conflict_config import TableRules
from streamer.errors import ConfigError
from streamer.model import TableName
from streamer.session import Connection, version
from streamer.sinks import handlers
from streamer.sinks.merge import merge_of
from streamer.sinks.postgres_table import owning, quote, quoted, read_target
from streamer.sinks.postgres_triggers import lacks_commit_timestamps, missing_triggers

DEFERRABLE: Final = 90000  # also exclusion constraints
MERGES: Final = {
    "delta": "smallint, integer, bigint or numeric",
    "max": "smallint, integer, bigint, numeric, real, double precision, date, timestamp or timestamp with time zone",
    "min": "smallint, integer, bigint, numeric, real, double precision, date, timestamp or timestamp with time zone",
}
"""What types can be merged in which way."""


# -- policies ----------------------------------------------------------------------------------------------------------------------


def policies(sync: Sync) -> set[str | tuple[str, ...]]:
    """Return all policies of the sync, what it falls back to included."""
    named = {sync.conflict, *(table.conflict for table in sync.table.values() if table.conflict is not None)}
    return named | ({sync.conflict_fallback} if any(_is_function(policy) for policy in named) else set())


def _is_function(policy: str | tuple[str, ...]) -> bool:
    return isinstance(policy, str) and policy.startswith("python:")


def judge_functions(name: str, sync: Sync) -> Iterator[Finding]:
    """Yield the functions that cannot be called; imports them."""
    for policy in sorted(str(p) for p in policies(sync) if _is_function(p)):
        try:
            handlers.load(policy, sync.conflict_timeout)
        except ConfigError as problem:
            yield error(f'sync "{name}"', problem.message, problem.hint)
        else:
            yield ok(f'sync "{name}"', f"{policy} can be called")


def judge_commit_times(node: str, sync: Sync, connection: Connection, *, by_triggers: bool) -> Iterator[Finding]:
    """Yield what keeps the policy latest from working on the node; `by_triggers` says that triggers capture what is changed there.
    Raises psycopg.Error."""
    if "latest" in policies(sync) and (told := lacks_commit_timestamps(connection, captures=by_triggers)):
        yield error(f'node "{node}"', *told)


# -- clocks ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clock:
    """A node's clock, read between two readings of ours. `ahead` is against a moment that is common to all, in seconds."""

    node: str
    told: datetime
    ahead: float
    #: half the time that the question took
    doubt: float


def read_clock(node: str, connection: Connection) -> Clock:
    """Ask the server what time it is. Raises psycopg.Error."""
    asked = time.monotonic()
    row: Any = connection.execute("SELECT clock_timestamp()").fetchone()
    answered = time.monotonic()
    return Clock(node, row[0], row[0].timestamp() - (asked + answered) / 2, (answered - asked) / 2)


def judge_clocks(name: str, sync: Sync, clocks: Sequence[Clock]) -> Iterator[Finding]:
    """Yield how far the clocks of a sync's nodes are apart. Pure."""
    if len(clocks) < 2:
        return
    behind, ahead = min(clocks, key=lambda c: c.ahead), max(clocks, key=lambda c: c.ahead)
    apart = max(0.0, ahead.ahead - behind.ahead)
    if apart - ahead.doubt - behind.doubt <= sync.max_clock_skew:
        yield ok(f'sync "{name}"', f"the clocks of its nodes are {apart:.1f} s apart, {sync.max_clock_skew:g} s are allowed")
        return
    yield error(
        f'sync "{name}"',
        f'the clock of "{ahead.node}" ({ahead.told:%H:%M:%S} UTC) is {apart:.1f} s ahead of that of "{behind.node}", '
        f"max_clock_skew is {sync.max_clock_skew:g} s",
        "set both clocks right (chrony or another NTP client)",
    )


# -- tables ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MasterTable:
    """A table with several masters, as it is on one node."""

    table: SourceTable
    key: tuple[str, ...]
    parts: tuple[Part, ...]
    #: constraints and indexes that no resolution knows: name, and what they are
    unresolved: tuple[tuple[str, str], ...]
    lacks_triggers: bool
    #: our role, if it is not the owner's
    stranger: str
    #: the statement that makes it one
    owning: str = ""


def read_master_table(connection: Connection, node: str, table: SourceTable, rules: TableRules, *, from_wal: bool) -> MasterTable:
    """Return the facts; of replica identities only `from_wal`. Raises psycopg.Error, SchemaError."""
    names = [table.table.schema, table.table.name]
    target = read_target(connection, node, table.table)
    row: Any = connection.execute(_OWNED, names).fetchone()
    where = {"schema": names[0], "name": names[1]}
    unresolved = connection.execute(_UNRESOLVED, where).fetchall() if version(connection) >= DEFERRABLE else []
    missing = missing_triggers(connection, table.table, merged=bool(rules.merged))
    key, stranger = target.keys[0] if target.keys else (), "" if row[0] else connection.info.user
    parts = tuple(read_parts(connection, table)) if from_wal else ()
    remedy = owning(connection, table.table) if stranger else ""
    return MasterTable(table, key, parts, tuple(map(_pair, unresolved)), missing, stranger, remedy)


def _pair(row: tuple[Any, ...]) -> tuple[str, str]:
    return row[0], row[1]


_OWNED: Final = """
SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""
_UNRESOLVED: Final = """
SELECT i.relname, CASE WHEN x.indisexclusion THEN 'excludes' ELSE 'deferrable' END
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_class c ON c.oid = x.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND x.indisvalid
  AND (x.indisexclusion OR (x.indisunique AND NOT x.indimmediate))
ORDER BY 1
"""
_WHY_UNRESOLVED: Final = {
    "excludes": "excludes rows: a collision in it is not resolved, and stops the edge",
    "deferrable": "is deferrable, and so not checked for replicated rows: collisions in it stay unnoticed",
}


def judge_master_table(name: str, node: str, facts: MasterTable, rules: TableRules, *, from_wal: bool) -> Iterator[Finding]:
    """Yield what keeps conflicts in the table from being resolved the same everywhere; `from_wal` says that changes are read there,
    from the WAL. Pure."""
    what = f'table "{facts.table.table}" on "{node}"'
    altered = f"ALTER TABLE {quoted(facts.table.table)}"
    if not facts.key:
        yield warning(what, "has no key: conflicts in it are not noticed", f"{altered} ADD PRIMARY KEY (…), on all nodes")
    elif facts.lacks_triggers and facts.stranger:
        yield error(
            what,
            f"role {facts.stranger} does not own it, and only the owner can make the triggers that keep deleted keys",
            facts.owning,
        )
    if from_wal and (why := demand(rules, facts.parts, has_key=bool(facts.key))) and (parts := lacking(facts.parts)):
        statements = "; ".join(part.remedy for part in parts)
        yield error(what, f"has not REPLICA IDENTITY FULL: {why}", f"{statements}; or run: streamer setup --fix")
    yield from _judge_merged(what, f'syncs.{name}.table."{facts.table.table}"', facts, rules)
    for index, kind in facts.unresolved if facts.key else ():
        yield warning(
            what,
            f"constraint {quote(index)} {_WHY_UNRESOLVED[kind]}",
            "make it a plain UNIQUE constraint, or have one node alone write what it covers",
        )


def _judge_merged(what: str, key: str, facts: MasterTable, rules: TableRules) -> Iterator[Finding]:
    columns = {column.name: column for column in facts.table.definition.columns}
    if rules.merged and not facts.key:
        yield error(what, "has no key, and columns can only be merged where rows have one", f"remove {key}, or add a primary key")
    for how, names in (("delta", rules.delta), ("max", rules.max), ("min", rules.min)):
        for column in sorted(names):
            if column not in columns:
                yield error(what, f'has no column "{column}" to merge', f"correct {key}.{how}")
            elif column in facts.key:
                yield error(what, f'column "{column}" is part of the key, and cannot be merged', f"remove it from {key}.{how}")
            elif columns[column].generated:
                yield error(what, f'column "{column}" is generated, and cannot be merged', f"remove it from {key}.{how}")
            elif merge_of(how, columns[column].type_oid) is None:
                yield error(
                    what,
                    f'column "{column}" is {columns[column].type_name}; {how} takes {MERGES[how]}',
                    f"remove it from {key}.{how}, or change its type",
                )


def judge_triggers(node: str, missing: Collection[TableName]) -> Iterator[Finding]:
    """Yield that tables lack triggers, in one finding: before the first setup all of them do. Pure."""
    if missing:
        tables = ", ".join(map(str, sorted(missing, key=str)[:5])) + (", …" if len(missing) > 5 else "")
        count = f"{len(missing)} table{' lacks' if len(missing) == 1 else 's lack'}"
        yield warning(f'node "{node}"', f"{count} the triggers that keep deleted keys: {tables}", "streamer setup makes them")


def judge_replica_right(node: str, role: str, *, may_be_replica: bool, merged: Collection[TableName]) -> Iterator[Finding]:
    """Yield that our role cannot keep triggers from firing where columns are merged. Pure."""
    if merged and not may_be_replica:
        yield error(
            f'node "{node}"',
            f"role {role} may not set session_replication_role, and what it merges in {', '.join(map(str, merged))} "
            "would count as written here",
            f"GRANT SET ON PARAMETER session_replication_role TO {quote(role)} (15 and later), or use a superuser",
        )
