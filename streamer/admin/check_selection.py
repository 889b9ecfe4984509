"""`streamer check`, what a sync selects: patterns that choose nothing, and what stands in their place.

https://www.postgresql.org/docs/current/catalog-pg-class.html
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.printing import counted
from streamer.capture.catalog import PARTITIONED, PERSISTENCE, SourceTable
from streamer.config import Sync
from streamer.model import TableName
from streamer.patterns import literal
from streamer.session import Connection, version

NAMED: Final = 3
"""How many of a kind are named."""
_RELATIONS: Final = (
    "SELECT n.nspname || '.' || c.relname, c.relkind::text "
    "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
)
_TABLES: Final = """
SELECT n.nspname, c.relname, {unlogged} FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND {partition} IS NOT TRUE AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
AND n.nspname NOT IN ('streamer', 'bucardo') AND NOT EXISTS (
    SELECT 1 FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
)
ORDER BY 1, 2
"""
_NO_TABLES: Final = {
    "v": "it is a view, whose rows are those of other tables",
    "m": "it is a materialized view, whose rows are those of other tables",
    "f": "it is a foreign table, whose rows are written elsewhere",
    "S": "it is a sequence, which follows with sequences = true",
}
_NOT_SELECTED: Final = "it is excluded, a partition (which its table brings along), unlogged or temporary"


def relations(connection: Connection) -> Mapping[str, str]:
    """Return what a user may take for a table: names with the kind."""
    return dict(connection.execute(_RELATIONS).fetchall())


def unselected(connection: Connection, syncs: Sequence[Sync]) -> dict[TableName, bool]:
    """Return the tables that none of the syncs selects, each with whether it is unlogged, which none can."""
    query = _TABLES.format(
        unlogged="c.relpersistence = 'u'" if version(connection) >= PERSISTENCE else "false",
        partition="c.relispartition" if version(connection) >= PARTITIONED else "false",
    )
    found = {TableName(schema, name): unlogged for schema, name, unlogged in connection.execute(query.encode()).fetchall()}
    return {t: u for t, u in found.items() if u or not any(sync.selects(t) for sync in syncs)}


def wanted(syncs: Sequence[Sync], names: Iterable[TableName]) -> list[TableName]:
    """Return those that no sync leaves out on purpose."""
    return [name for name in names if not any(sync.excludes(name) for sync in syncs)]


def judge_selection(
    name: str,
    sync: Sync,
    source: str,
    tables: Sequence[SourceTable],
    sequences: Sequence[TableName],
    relations: Mapping[str, str] | None = None,
) -> Iterator[Finding]:
    """Yield patterns that choose nothing; `sequences` are those that the sync keeps in step, `relations` what is there. Pure."""
    names = [str(name) for name in (*(t.table for t in tables), *sequences)]
    missed = [pattern for pattern in sync.tables if not any(fnmatch.fnmatchcase(chosen, pattern) for chosen in names)]
    if not tables:
        told = [f'"{literal(pattern)}": {why}' for pattern in missed if (why := _why(pattern, relations or {}))]
        yield error(
            f'sync "{name}"',
            f'selects no table on "{source}" (tables = {list(sync.tables)}, exclude = {list(sync.exclude)})'
            + (f"; {'; '.join(told)}" if told else ""),
            f"correct syncs.{name}.tables; case counts, and a name without a dot means the schema public",
        )
        return
    for pattern in missed:
        why = _why(pattern, relations or {})
        yield warning(
            f'sync "{name}"',
            f'the pattern "{pattern}" chooses no table on "{source}"{f": {why}" if why else ""}',
            f"correct syncs.{name}.tables",
        )
    yield from _judge_settings(name, sync, source, {str(t.table) for t in tables}, relations or {})
    yield ok(f'sync "{name}"', f'selects {counted(len(tables), "table")} on "{source}"')


def _judge_settings(name: str, sync: Sync, source: str, there: Collection[str], relations: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the tables that have settings, and are not there: what a misspelt one says would hold for nothing, in silence."""
    keys = {f'syncs.{name}.table."{table}"': table for table in sync.table}
    keys |= {f'syncs.{name}.target.{n}.table."{table}"': table for n, settings in sync.target.items() for table in settings.table}
    for key, table in keys.items():
        if table not in there:
            why = _near(table, relations)
            yield warning(f'sync "{name}"', f'{key} holds for no table on "{source}"{f": {why}" if why else ""}', f"correct {key}")


def judge_unselected(node: str, left: Sequence[TableName]) -> Iterator[Finding]:
    """Yield that a source has tables that stay where they are. Pure."""
    if left:
        yield ok(f'node "{node}"', f"no sync selects {named(left, 'other table')}")


def named(names: Sequence[TableName], noun: str) -> str:
    """Return `2 tables: "public.a", "public.b"`, with the first few names."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{counted(len(names), noun)}: " + ", ".join(f'"{name}"' for name in names[:NAMED]) + more


def _why(pattern: str, relations: Mapping[str, str]) -> str:
    """Why a pattern that is a name chooses no table; empty if nothing is known."""
    return "" if (wanted := literal(pattern)) is None else _near(wanted, relations)


def _near(wanted: str, relations: Mapping[str, str]) -> str:
    """What there is of that name, or nearly."""
    if wanted in relations:
        return _NO_TABLES.get(relations[wanted], _NOT_SELECTED)
    there = [name for name, kind in relations.items() if kind not in _NO_TABLES]
    near = [name for name in there if name.lower() == wanted.lower()] or difflib.get_close_matches(wanted, there, n=1, cutoff=0.8)
    return f'there is "{near[0]}"' if near else ""
