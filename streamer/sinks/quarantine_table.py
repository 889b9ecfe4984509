"""The table that keeps an edge's quarantine in its target, the same for PostgreSQL, MySQL and SQLite.

A row is a change as it would have been written: the relation with its columns and types, the old row and the new one, so that it
can be applied later without the source. The trap: what cannot be written as text there (an encoding that lacks a character) is just
what ends up here, so JSON is plain ASCII.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from streamer.model import UNCHANGED, Change, Column, EdgeName, Group, Identity, Kind, Relation, Row, TableName
from streamer.sinks.quarantine import Held

Execute: TypeAlias = Callable[[str, Sequence[object]], list[tuple[Any, ...]]]
"""Executes a statement with its parameters; gives the rows of a query, none for another statement."""
Record: TypeAlias = dict[str, str | None]

POSTGRES: Final = "streamer.quarantine"
"""What the table is called on PostgreSQL."""
ELSEWHERE: Final = "streamer_quarantine"
ROWS: Final = 40
"""Rows stored by one statement: 17 parameters each, and old versions of SQLite take 999 in all."""
IDS: Final = 400
"""Ids looked for by one query, each twice."""

PAGE: Final = 10_000
"""Changes read at once."""

_EDGE: Final = "sync = ? AND source = ? AND target = ?"
_STORED: Final = (
    "sync, source, target, schema_name, table_name, kind, row_key, row_id, next_row_id, relation, old_row, new_row, error, "
    "origin, origin_position, origin_time, quarantined"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A change in quarantine. A column that is missing in a row did not travel."""

    id: int
    edge: EdgeName
    table: TableName
    kind: Kind
    key: Record
    old: Record | None
    new: Record | None
    #: why it was refused; None if it follows another one
    error: str | None
    #: the node that it was made on; position and time of the last commit that was written together with it
    origin: str
    position: str
    commit_time: datetime
    quarantined: datetime
    #: what tells its row from all others, before the change and after it
    before: str
    after: str
    #: the relation, as the table has it
    relation: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which changes of an edge are wanted: those for which all of this holds that is given."""

    table: TableName | None = None
    since: datetime | None = None
    ids: Collection[int] | None = None


class QuarantineTable:
    """Implements quarantine.Ledger for an edge. `mark` is what stands for a parameter in SQL."""

    def __init__(self, edge: EdgeName, execute: Execute, name: str = ELSEWHERE, mark: str = "?") -> None:
        self._edge = edge
        self._where = (edge.sync, edge.source, edge.target)
        self._execute = execute
        self._name = name
        self._mark = mark

    def _run(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        return self._execute(statement.replace("?", self._mark), parameters)

    def count(self) -> int:
        """Return how many changes there are."""
        ((number,),) = self._run(f"SELECT count(*) FROM {self._name} WHERE {_EDGE}", self._where)
        return int(number)

    def known(self, rows: Collection[str]) -> set[str]:
        """Return those of the rows of which changes are held."""
        found: set[str] = set()
        for ids in _parts(list(rows), IDS):
            marks = ", ".join("?" * len(ids))
            halves = [f"SELECT {column} FROM {self._name} WHERE {column} IN ({marks})" for column in ("row_id", "next_row_id")]
            found.update(row for (row,) in self._run(" UNION ".join(halves), [*ids, *ids]))
        return found

    def empty(self, table: TableName) -> int:
        """Forget the changes of a table; return how many there were."""
        where, values = f"{_EDGE} AND schema_name = ? AND table_name = ?", [*self._where, table.schema, table.name]
        ((number,),) = self._run(f"SELECT count(*) FROM {self._name} WHERE {where}", values)
        self._run(f"DELETE FROM {self._name} WHERE {where}", values)
        return int(number)

    def keep(self, held: Sequence[Held], group: Group) -> None:
        """Add changes of a group, in order."""
        origin, now = group.origin, datetime.now(UTC).isoformat()
        made = [origin.node, str(origin.position), origin.commit_time.astimezone(UTC).isoformat(), now]
        for part in _parts(held, ROWS):
            values = ", ".join([f"({', '.join('?' * 17)})"] * len(part))
            rows = [value for one in part for value in (*self._where, *_values(one), *made)]
            self._run(f"INSERT INTO {self._name} ({_STORED}) VALUES {values}", rows)

    def read(self, wanted: Wanted = Wanted(), *, after: int = 0, limit: int = PAGE) -> list[Stored]:
        """Return so many changes in order, those behind the one with the id `after`."""
        query, values = self._query(wanted)
        return [_stored(row) for row in self._run(f"{query} AND id > ? ORDER BY id LIMIT {limit:d}", [*values, after])]

    def newest(self, wanted: Wanted, limit: int) -> list[Stored]:
        """Return so many of the newest changes, the newest first."""
        query, values = self._query(wanted)
        return [_stored(row) for row in self._run(f"{query} ORDER BY id DESC LIMIT {limit:d}", values)]

    def pages(self, wanted: Wanted) -> Iterator[list[Stored]]:
        """Give all changes in order, so many at a time as memory may hold; they may be removed meanwhile."""
        if wanted.ids is not None:
            for part in _parts(sorted(wanted.ids), PAGE):
                if page := [change for ids in _parts(part, IDS) for change in self.read(Wanted(ids=ids))]:
                    yield page
            return
        last = 0
        while page := self.read(wanted, after=last):
            yield page
            last = page[-1].id

    def _query(self, wanted: Wanted) -> tuple[str, list[object]]:
        conditions: dict[str, Sequence[object]] = {_EDGE: self._where}
        if wanted.table is not None:
            conditions["schema_name = ? AND table_name = ?"] = (wanted.table.schema, wanted.table.name)
        if wanted.since is not None:
            conditions["quarantined >= ?"] = (wanted.since.astimezone(UTC).isoformat(),)
        if wanted.ids is not None:
            conditions[f"id IN ({', '.join('?' * len(wanted.ids))})" if wanted.ids else "id < 0"] = list(wanted.ids)
        query = f"SELECT id, {_STORED} FROM {self._name} WHERE {' AND '.join(conditions)}"
        return query, [value for values in conditions.values() for value in values]

    def chain(self, ids: Collection[int]) -> set[int]:
        """Return the ids of all changes that must go with these: those of the same rows, and of the rows that these became."""
        chosen: dict[int, tuple[str, str]] = {}
        rows: set[str] = set()
        wanted = self._links("id", list(ids))
        while wanted.keys() - chosen.keys():
            chosen |= wanted
            rows = {row for link in chosen.values() for row in link}
            wanted = self._links("row_id", list(rows)) | self._links("next_row_id", list(rows))
        return set(chosen)

    def _links(self, column: str, values: Sequence[object]) -> dict[int, tuple[str, str]]:
        found: dict[int, tuple[str, str]] = {}
        for part in _parts(values, IDS):
            query = f"SELECT id, row_id, next_row_id FROM {self._name} WHERE {_EDGE} AND {column} IN ({', '.join('?' * len(part))})"
            found |= {int(number): (before, after) for number, before, after in self._run(query, [*self._where, *part])}
        return found

    def remove(self, ids: Collection[int]) -> None:
        """Take changes out."""
        for part in _parts(list(ids), IDS):
            self._run(f"DELETE FROM {self._name} WHERE {_EDGE} AND id IN ({', '.join('?' * len(part))})", [*self._where, *part])


def changes_of(stored: Iterable[Stored]) -> Iterator[Change]:
    """Give what was stored as changes; those of one version of a table share its relation."""
    relations: dict[tuple[TableName, str], Relation] = {}
    for one in stored:
        place = (one.table, one.relation)
        relation = relations.get(place) or relations.setdefault(place, _relation(*place))
        yield one.kind, relation, _row(relation, one.old), _row(relation, one.new)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _values(held: Held) -> tuple[object, ...]:
    kind, relation, old, new = held.change
    rows = [None if row is None else json.dumps(_record(relation, row)) for row in (old, new)]
    table = relation.table
    about = {"identity": relation.identity.value, "net": relation.net}
    columns = [[column.name, column.type_oid, column.identity] for column in relation.columns]
    told = json.dumps(about | {"columns": columns})
    return (table.schema, table.name, kind.value, json.dumps(held.key), held.before, held.after, told, *rows, held.error)


def _record(relation: Relation, row: Row) -> Record:
    return {name: value for name, value in zip(relation.names, row, strict=True) if value is not UNCHANGED}


def _relation(table: TableName, told: str) -> Relation:
    about = json.loads(told)
    return Relation(table, tuple(Column(*column) for column in about["columns"]), Identity(about["identity"]), about["net"])


def _row(relation: Relation, record: Record | None) -> Row | None:
    return None if record is None else tuple([record.get(name, UNCHANGED) for name in relation.names])


def _stored(row: Sequence[Any]) -> Stored:
    number, sync, source, target, schema, name, kind, key, before, after, relation, old, new, error, origin, position, *times = row
    commit_time, quarantined = map(_moment, times)
    return Stored(
        int(number),
        EdgeName(sync, source, target),
        TableName(schema, name),
        Kind(kind),
        json.loads(key),
        None if old is None else json.loads(old),
        None if new is None else json.loads(new),
        error,
        origin,
        position,
        commit_time,
        quarantined,
        before,
        after,
        relation,
    )


def _moment(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)
