"""What tells the rows of a table apart, and so how its changes can be captured. Pure.

A slot gives updates and deletes of a table that has a replica identity, triggers those of a table that has a key of any kind. The
config may name a key where the database knows none: it stands for the identity FULL on the targets, and for a key in triggers. The
trap: a key that the config names is a promise; nothing keeps two rows from having it, and both are then updated together.

docs/tables-without-keys.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from streamer.capture.assemble import Interest
from streamer.capture.catalog import SourceTable
from streamer.errors import SchemaError
from streamer.model import Identity, TableName

Keys: TypeAlias = Callable[[TableName], Sequence[str]]
"""What the config names as the key of a table, if it does."""


def delta_key(table: SourceTable, named: Sequence[str]) -> tuple[str, ...]:
    """Return the columns by which triggers tell of a row; none if they cannot capture the table.

    The primary key, else the index that is the replica identity, else what the config names, else a unique index without NULLs.
    """
    if table.definition.primary_key:
        return table.definition.primary_key
    if table.identity is Identity.INDEX:
        return table.identity_columns
    return tuple(named) or next(iter(unique_keys(table)), ())


def is_enforced(table: SourceTable, key: Sequence[str]) -> bool:
    """Return whether no two rows ever have the key, not even while a statement moves it from one row to another."""
    if set(key) == set(table.definition.primary_key):
        return not table.deferrable
    return any(set(key) == set(unique) for unique in table.definition.unique_keys)


def identity_key(table: SourceTable, named: Sequence[str]) -> tuple[str, ...]:
    """Return what a slot's changes tell rows of the table by, besides all of their values; none if there is nothing else."""
    if table.identity is Identity.FULL:
        return () if table.definition.primary_key else tuple(named)
    return table.identity_columns


def unique_keys(table: SourceTable) -> list[tuple[str, ...]]:
    """Return the columns of unique indexes that hold no NULL, and travel."""
    never_null = {c.name for c in table.travelling if c.not_null}
    return [key for key in table.definition.unique_keys if never_null.issuperset(key)]


def problem_of(node: str, table: SourceTable, named: Sequence[str]) -> SchemaError | None:
    """Return what is wrong with the key that the config names for the table, if something is."""
    columns = {c.name: c for c in table.travelling}
    for name in named:
        if name not in columns:
            return SchemaError(
                f'table "{table.table}" on "{node}" has no column "{name}" whose values travel, but the config names it as its key',
                "correct key in the config",
            )
        if not columns[name].not_null:
            return SchemaError(
                f'table "{table.table}" on "{node}": column "{name}", which the config names as its key, may be NULL: '
                "such rows would not be found",
                f"ALTER TABLE {_quoted(table.table)} ALTER COLUMN {_quote(name)} SET NOT NULL; or name other columns",
            )
    return None


def require(node: str, tables: Sequence[SourceTable], keys: Keys) -> None:
    """Raise SchemaError if a key that the config names cannot be one."""
    for table in tables:
        if (problem := problem_of(node, table, keys(table.table))) is not None:
            raise problem


def divided(tables: Sequence[SourceTable], interest: Interest) -> tuple[dict[TableName, tuple[str, ...]], set[TableName]]:
    """Return which of a stream's tables triggers capture, with the key of each, and which are copied whole; others are neither."""
    wanted = [t for t in tables if not interest.whole(t.table)]
    captured = {t.table: key for t in wanted if (key := delta_key(t, interest.keys(t.table)))}
    keyless = {t.table for t in wanted if t.table not in captured and interest.copyable(t.table)}
    return captured, keyless | {t.table for t in tables if interest.whole(t.table)}


def on_targets(tables: Sequence[SourceTable], keys: Keys) -> list[SourceTable]:
    """Return the tables as targets should have them: with what the config names as keys."""
    return [_on_target(table, tuple(keys(table.table))) for table in tables]


def _on_target(table: SourceTable, named: tuple[str, ...]) -> SourceTable:
    if not named or table.definition.primary_key or table.identity is Identity.INDEX:
        return table
    definition = replace(table.definition, unique_keys=(named, *table.definition.unique_keys))
    return replace(table, definition=definition, identity=Identity.INDEX, identity_columns=named)


def named_for(tables: Sequence[SourceTable], keys: Keys) -> Mapping[TableName, Sequence[str]]:
    """Return the keys that stand for the identity FULL; an empty one where only a part of the table's own key travels."""
    named = {t.table: key for t in tables if t.identity is Identity.FULL and (key := identity_key(t, keys(t.table)))}
    return named | {
        t.table: () for t in tables if t.identity is Identity.NOTHING and any(c.generated for c in t.definition.columns)
    }


def _quoted(table: TableName) -> str:
    return f"{_quote(table.schema)}.{_quote(table.name)}"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
