"""What a PostgreSQL node holds of the rows that a transaction touches, with their versions: what conflicts are judged by.

The rows are locked before their tombstones and versions are looked up, so that what is judged is still so when the outcome is
written. The text of a value is what the type's output function gives: it is taken from the result as it came, because a cast to
text differs for some types.

The trap: a row that changes while its lock is waited for comes as it is then, by a statement that sees nothing else of whoever has
changed it. So its version is asked for by the next statement.

https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final, NamedTuple, TypeAlias

from streamer.model import UNCHANGED, Change, Origin, Row, Value
from streamer.session import Connection, cells
from streamer.sinks.conflict import Key, Rules, Stored, Table, Version
from streamer.sinks.policy import rank
from streamer.sinks.postgres_copied import true_versions
from streamer.sinks.postgres_writer import TableWriter
from streamer.sinks.touched import Unique, Values, filled
from streamer.versions import Versions, key_id

AT_ONCE: Final = 5000
"""Keys asked for in one query."""

TOMBSTONES: Final = "streamer.tombstone"

Cells: TypeAlias = list[str | None]


class _Written(NamedTuple):
    """A row, and the transaction that wrote it."""

    row: Row
    xid: str


@dataclass(frozen=True, slots=True)
class MasterTable:
    """A table that has several masters: how it is written, and the rules for its conflicts."""

    writer: TableWriter
    key: tuple[int, ...]
    #: the other unique keys, as far as the relation has their columns
    uniques: tuple[Unique, ...]
    rules: Rules
    nulls_alike: frozenset[Unique] = frozenset()

    @property
    def merges(self) -> bool:
        """Whether some columns are merged, not overwritten."""
        return bool(self.rules.merged)

    def key_of(self, row: Row) -> Key:
        """The row's key."""
        return tuple(str(row[i]) for i in self.key)

    def id_of(self, key: Key) -> str:
        """What the row's tombstone and version are kept under."""
        return key_id(self.writer.relation.table, key)


class World:
    """Loads the touched part of tables."""

    def __init__(self, connection: Connection, versions: Versions) -> None:
        self._connection = connection
        self._versions = versions

    def load(self, table: MasterTable, changes: Sequence[Change], origin: Origin) -> Table:
        """Return the part of the table that these changes of it touch, its rows locked."""
        keys = list(dict.fromkeys(key for change in changes for key in keys_of(table, change)))
        found = self._keyed(table, keys)
        alike: dict[Unique, dict[Values, Values]] = {}
        for unique in table.uniques:
            for asked, written in self._holders(table, unique, changes):
                found.setdefault(table.key_of(written.row), written)
                if (held := _values_of(unique, written.row)) != asked:
                    alike.setdefault(unique, {})[asked] = held
        rows = self._with_versions(table, found)
        deletions = self.deletions(table, [key for key in keys if table.merges or key not in rows])
        deleted = {key: _faced(table.rules.policy, origin, versions) for key, versions in deletions.items()}
        for key in keys:
            rows.setdefault(key, Stored(None, deleted.get(key)))
        if table.merges:
            self._correct_versions(table, rows)
            for key in rows.keys() & deleted.keys():
                rows[key].deleted = deleted[key]
        return Table(table.writer.relation, table.key, table.uniques, table.rules, rows, table.nulls_alike, alike, deletions)

    def _keyed(self, table: MasterTable, keys: Sequence[Key]) -> dict[Key, _Written]:
        """The rows that have these keys."""
        return {tuple(map(str, key)): written for key, written in self._rows(table, table.key, keys)}

    def _holders(self, table: MasterTable, unique: Unique, changes: Sequence[Change]) -> Iterator[tuple[Values, _Written]]:
        """The rows that hold values of a unique key which the changes may store."""
        wanted = dict.fromkeys(_wanted(unique, changes, nulls=unique in table.nulls_alike))
        yield from self._rows(table, unique, [values for values in wanted if None not in values])
        yield from self._rows(table, unique, [values for values in wanted if None in values], nulls=True)

    def stored(self, table: MasterTable, key: Key) -> Stored:
        """Return what is at one key, locked."""
        part = self._with_versions(table, self._keyed(table, [key]))
        if table.merges:
            self._correct_versions(table, part)
        return part.get(key) or Stored(None, None)

    def keys(self, query: str, values: Sequence[Value]) -> list[Key]:
        """Return the keys that a query gives."""
        return [tuple(map(str, texts)) for texts in self._texts(query, values)]

    def deletions(self, table: MasterTable, keys: Sequence[Key]) -> dict[Key, list[Version]]:
        """Return when and where each of these keys was deleted last: its row, and all rows of the table."""
        if not keys:
            return {}
        whole, ids = table.id_of(()), {table.id_of(key): key for key in keys}
        graves = self._of_ids(TOMBSTONES, "t.xmin", [whole, *ids])
        truncated = [graves[whole]] if whole in graves else []
        return {
            key: ([graves[i]] if i in graves and i != whole else []) + truncated
            for i, key in ids.items()
            if i in graves or truncated
        }

    def _correct_versions(self, table: MasterTable, rows: dict[Key, Stored]) -> None:
        """Give rows that were merged since the version of their ordinary columns."""
        ids = {table.id_of(key): stored for key, stored in rows.items() if stored.row is not None}
        for i, version in self._of_ids("streamer.version", "t.xid", list(ids)).items():
            ids[i].version = version

    def _of_ids(self, table: str, xid: str, ids: Sequence[str]) -> dict[str, Version]:
        if not ids:
            return {}
        query = f"SELECT t.id::text, {xid}::text FROM {table} AS t WHERE t.id = ANY(%s::uuid[])"
        xids: dict[str, str] = dict(self._connection.execute(query.encode(), [list(ids)]).fetchall())
        return self._versions_of(xids, buried=table == TOMBSTONES)

    def _versions_of(self, xids: Mapping[str, str], *, buried: bool) -> dict[str, Version]:
        """The versions of rows or tombstones, given by their ids with the transactions that wrote them."""
        versions = self._versions.of(set(xids.values()))
        found = [(i, xid, versions[xid]) for i, xid in xids.items()]
        return dict(zip(xids, true_versions(self._connection, found, buried=buried), strict=True))

    def _with_versions(self, table: MasterTable, rows: Mapping[Key, _Written]) -> dict[Key, Stored]:
        ids = {key: table.id_of(table.key_of(written.row)) for key, written in rows.items()}
        versions = self._versions_of({ids[key]: written.xid for key, written in rows.items()}, buried=False)
        return {key: Stored(written.row, versions[ids[key]]) for key, written in rows.items()}

    def _rows(
        self, table: MasterTable, columns: Sequence[int], values: Sequence[Values], *, nulls: bool = False
    ) -> Iterator[tuple[Values, _Written]]:
        """The rows that have these values in these columns, locked, each with the values that it was found by; with `nulls` a NULL
        finds another one."""
        query, width = _query(table, columns, nulls=nulls), len(columns)
        for start in range(0, len(values), AT_ONCE):
            block = values[start : start + AT_ONCE]
            for texts in self._texts(query, [[value[i] for value in block] for i in range(width)]):
                yield tuple(texts[:width]), _Written(tuple(texts[width:-1]), str(texts[-1]))

    def _texts(self, query: str, values: Sequence[object]) -> Iterator[Cells]:
        """The result as the server has written it."""
        result = self._connection.execute(query.encode(), values).pgresult
        assert result is not None
        return cells(result)


def _faced(policy: str | tuple[str, ...], origin: Origin, deletions: Sequence[Version]) -> Version:
    """The deletion that a change of `origin` must face: the last one; but where it is not time that decides, one that the origin
    did not know, however old, and of those that of the node which comes first in a list."""
    facing = [] if policy == "latest" else [version for version in deletions if not origin.knew(version)]
    if isinstance(policy, tuple) and facing:
        first = min(rank(policy, version.node) for version in facing)
        facing = [version for version in facing if rank(policy, version.node) == first]
    return reduce(_later, facing or deletions)


def _later(one: Version, other: Version) -> Version:
    return other if one.precedes(other) else one


def _values_of(unique: Unique, row: Row) -> Values:
    """Return what a row that is known whole has in the columns of a unique key."""
    return tuple(None if row[i] is None else str(row[i]) for i in unique)


def equality(one: str, operator: str, other: str, *, nulls: bool) -> str:
    """Return the condition that two expressions are equal; with `nulls`, a NULL equals another one."""
    equal = f"{one} {operator} {other}"
    return f"({equal} OR ({one} IS NULL AND {other} IS NULL))" if nulls else equal


def _query(table: MasterTable, columns: Sequence[int], *, nulls: bool) -> str:
    """The query for rows by their values in these columns: the values as they were asked for, the row, and its xmin."""
    writer = table.writer
    names = [writer.column(i) for i in range(len(writer.relation.names))]
    lists = ", ".join(f"unnest(%s::text[]) AS k{n}" for n in range(len(columns)))
    given = ", ".join(f"k.k{n}" for n in range(len(columns)))
    pairs = [(f"t.{writer.compared(i)}", writer.equals(i), f"k.k{n}::{writer.base_type(i)}") for n, i in enumerate(columns)]
    same = " AND ".join(equality(*pair, nulls=nulls) for pair in pairs).replace("%", "%%")
    return (
        f"SELECT {given}, {', '.join(f't.{name}' for name in names)}, t.xmin::text "
        f"FROM (SELECT {lists} OFFSET 0) AS k JOIN {writer.place} AS t ON {same} FOR UPDATE OF t"
    )


def keys_of(table: MasterTable, change: Change) -> Iterator[Key]:
    """The keys that a change touches: two if it changes the key."""
    _, _, old, new = change
    for row in (old, new):
        if row is not None and not any(row[i] is UNCHANGED for i in table.key):
            yield table.key_of(row)


def _wanted(unique: Unique, changes: Sequence[Change], *, nulls: bool) -> Iterator[Values]:
    """The values of a unique key that the changes may store; one with a NULL collides only where NULLs are alike.

    Also those that an update left as they were: the row that is here may be another one, and be written as a whole.
    """
    for _, _, old, new in changes:
        if new is None:
            continue
        row = filled(new, old)
        if all(row[i] is not UNCHANGED and (nulls or row[i] is not None) for i in unique):
            yield _values_of(unique, row)
