"""wal2json's payloads (format version 2, plugin 2.3 to 2.6) to messages. Pure, but for two look-ups that the caller supplies.

Every row carries its columns by name, from 2.5 on with the oids of their types. What does not fit the relation known so far is
looked up in the catalog; where the catalog has moved on since, the relation is derived from the row (`layout.derive`).
https://github.com/eulerto/wal2json

The traps: an unchanged TOASTed column is absent, which is not NULL; a JSON parser rounds numbers; and before 2.6, NaN and the
infinities are null, so that a NULL number has to be read again from the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeAlias

import orjson

from streamer.capture.assemble import Begin, Commit, Message, completed, partition_truncated
from streamer.capture.layout import CatalogTable, Cell, Layout, Rounded, agrees, derive, signature
from streamer.capture.row_shape import RowShape, head, row_shape
from streamer.errors import NOT_UTF8, DecodeError
from streamer.model import LSN, UNCHANGED, Change, Column, Identity, Kind, Relation, Row, TableName, Value

Lookup: TypeAlias = Callable[[TableName], CatalogTable | None]
"""Reads the catalog for a table or partition by its own name; None if its changes do not travel."""

WalEnd: TypeAlias = Callable[[], LSN]
"""Asks where the WAL ends now."""

Reread: TypeAlias = Callable[[Relation, Row, Sequence[int]], Sequence[Value]]
"""Reads values of a row as they are now: (relation, key, columns) -> a value for each of `columns` (by index), in order.

`key` is aligned with the relation's columns and UNCHANGED outside of the key. A row that is gone has NULLs: a later change, that
deleted it or gave it another key, is on its way."""

ENVELOPE_BYTES: Final = 55
"""About what a payload spends on a column besides its value: its name, its type's oid, punctuation (see Assembler)."""

_ROWS: Final = tuple(b'{"action":"%c"' % kind for kind in b"IUDT")

_BOUNDS: Final = ('{"action":"B"', '{"action":"C"')

_EXACT: Final = json.JSONDecoder(parse_int=str, parse_float=str)
_INSERT, _UPDATE, _DELETE = Kind.INSERT, Kind.UPDATE, Kind.DELETE
#: what an action means, and the role of the cells that tell it (see `agrees`)
_ROLES: Final = {"I": (_INSERT, "I"), "U": (_UPDATE, "U"), "D": (_DELETE, "K")}


def options(tables: Iterable[TableName], *, schemas: Iterable[str] = (), numbers_are_strings: bool) -> dict[str, str]:
    """Return the options of START_REPLICATION that `Wal2jsonDecoder` expects, for these tables and all tables of `schemas`.

    Partitions have to be among the tables by their own names; name the schema where new ones may appear while the stream runs.
    `numbers_are_strings` needs wal2json 2.6; older ones answer `option "numeric-data-types-as-string" = "true" is unknown`.
    https://github.com/eulerto/wal2json#parameters
    """
    chosen = [f"{_escaped(t.schema)}.{_escaped(t.name)}" for t in tables] + [f"{_escaped(s)}.*" for s in schemas]
    named = {
        "format-version": "2",
        "include-lsn": "true",
        "include-timestamp": "true",
        "include-types": "false",
        "include-type-oids": "true",
        "add-tables": ",".join(chosen),
    }
    return named | {"numeric-data-types-as-string": "true"} if numbers_are_strings else named


def _escaped(name: str) -> str:
    """Spaces, commas, dots, asterisks and backslashes mean something to add-tables; any character may be escaped."""
    return re.sub(r"([^\w])", r"\\\1", name)


class _Table:
    """A table or partition of the source, with the layouts of its rows so far."""

    __slots__ = ("last", "layouts", "name", "source")

    def __init__(self, name: TableName, source: CatalogTable) -> None:
        self.name = name
        self.become(source)

    def become(self, source: CatalogTable) -> None:
        """Follow another version of the relation."""
        self.source = source
        self.layouts: dict[tuple[object, ...], Layout] = {}
        self.last: dict[str, Layout] = {}

    def layout(self, role: str, cells: Sequence[Cell], numbers_are_strings: bool) -> Layout | None:
        """Return the layout of the cells; None if the relation is not the version that they were written under."""
        names, oids = signature(cells)
        version = (role, *names, *(oids or ()))
        found = self.layouts.get(version)
        if found is None and agrees(self.source, cells, role):
            found = self.layouts[version] = Layout(self.source, cells, numbers_are_strings)
        if found is not None:
            self.last[role] = found
        return found


class Wal2jsonDecoder:
    """Decodes one replication session.

    `encoding` is Python's name of the database's encoding: wal2json does not convert to client_encoding.
    """

    def __init__(
        self, tables: Lookup, reread: Reread, wal_end: WalEnd, *, numbers_are_strings: bool, encoding: str = "utf-8"
    ) -> None:
        self._lookup = tables
        self._reread = reread
        self._wal_end = wal_end
        self._numbers_are_strings = numbers_are_strings
        self._encoding = encoding
        self._tables: dict[tuple[str, str], _Table] = {}
        #: whose changes do not travel, as was seen when the WAL ended there: one that is attached as a partition later does
        self._outside: set[tuple[str, str]] = set()
        self._outside_until = LSN(0)
        self._versions: dict[tuple[TableName, Identity, tuple[Column, ...]], Relation] = {}
        self._truncated: tuple[str, set[TableName]] = ("", set())
        #: the shape of the row that came last
        self._last: RowShape | None = None
        #: the last shape of each table's rows, by their heads; and all of them, by their layouts
        self._shapes: dict[str, RowShape | None] = {}
        self._made: dict[tuple[Kind, Layout], RowShape | None] = {}

    def decode(self, data: bytes) -> Message:
        """Return what one payload means. Raises DecodeError if it cannot be read, or must not be trusted."""
        try:
            payload = data.decode(self._encoding)
            if payload.startswith(_BOUNDS):
                return self._message(orjson.loads(payload))
            expected = None if self._last is None else self._last.follower
            if expected is not None and (change := expected.read(payload)) is not None:
                self._last = expected
                return change
            known = head(payload)
            shape = self._shapes.get(known)
            if shape is not None and (change := shape.read(payload)) is not None:
                if self._last is not None:
                    self._last.follower = shape
                self._last = shape
                return change
            try:
                parsed = orjson.loads(payload)
                message = self._message(parsed)
            except (Rounded, orjson.JSONDecodeError):
                parsed = _exactly(payload)
                message = self._message(parsed)
            if parsed["action"] in _ROLES and message is not None:
                self._shapes[known] = self._shape(parsed)
            return message
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _broken(data, error) from error

    def is_row(self, payload: bytes) -> bool:
        """Whether the payload is a change, which nothing that follows depends on."""
        return payload.startswith(_ROWS)

    def _message(self, message: dict[str, Any]) -> Message:
        action = message["action"]
        if action == "U":
            return self._update(message)
        if action == "I":
            return self._insert(message)
        if action == "D":
            return self._delete(message)
        if action == "B":
            return self._begin(message)
        if action == "C":
            return Commit(LSN.parse(message["nextlsn"]))
        if action == "T":
            return self._truncate(message)
        if action != "M":
            raise DecodeError(f'wal2json sent the unknown action "{action}"', "report it with the version of wal2json")
        return None

    def _begin(self, message: dict[str, Any]) -> Begin:
        begin = Begin(LSN.parse(message["lsn"]), datetime.fromisoformat(message["timestamp"]))
        if self._outside and begin.position >= self._outside_until:
            self._outside.clear()
        return begin

    def _insert(self, message: dict[str, Any]) -> Change | None:
        if (table := self._table(message)) is None:
            return None
        columns = message["columns"]
        layout = self._layout(table, "I", columns, columns, None)
        new = layout.row(columns)
        if layout.nullable_numbers:
            new = self._settled(table.source, layout, new)
        return (_INSERT, table.source.relation, None, new)

    def _update(self, message: dict[str, Any]) -> Change | None:
        if (table := self._table(message)) is None:
            return None
        columns, identity = message["columns"], message["identity"]
        layout = table.last.get("U")
        if layout is None or not layout.describes(columns):
            layout = self._layout(table, "U", columns, columns, identity)
        new = layout.row(columns)
        old: Row | None = None
        if layout.keys is None or [columns[i] for i in layout.keys] != identity:
            old_layout = self._layout(table, "K", identity, columns, identity)
            if layout is not table.last.get("U"):
                return self._update(message)  # the identity shows that the relation is another version
            old, new = completed(table.source.relation, self._old(table.source, old_layout, identity), new)
        if layout.nullable_numbers:
            new = self._settled(table.source, layout, new)
        return (_UPDATE, table.source.relation, old, new)

    def _delete(self, message: dict[str, Any]) -> Change | None:
        if (table := self._table(message)) is None:
            return None
        identity = message["identity"]
        layout = self._layout(table, "K", identity, (), identity)
        return (_DELETE, table.source.relation, self._old(table.source, layout, identity), None)

    def _truncate(self, message: dict[str, Any]) -> Change | None:
        """One TRUNCATE gives a message per table with one LSN, a partitioned table before its partitions."""
        if (table := self._table(message)) is None:
            return None
        if message["lsn"] != self._truncated[0]:
            self._truncated = (message["lsn"], set())
        truncated = self._truncated[1]
        relation = table.source.relation
        if table.name == relation.table:
            truncated.add(table.name)
            return (Kind.TRUNCATE, relation, None, None)
        if relation.table not in truncated:
            raise partition_truncated(table.name, relation.table)
        return None

    def _shape(self, message: dict[str, Any]) -> RowShape | None:
        """The shape of the row that has just been decoded."""
        table = self._table(message)
        assert table is not None
        kind, role = _ROLES[message["action"]]
        layout = table.last[role]
        if (kind, layout) not in self._made:
            self._made[kind, layout] = row_shape(kind, table.name, table.source.relation, layout)
        return self._made[kind, layout]

    def _table(self, message: dict[str, Any]) -> _Table | None:
        """The table that a message speaks of; None if its changes do not travel."""
        key = (message["schema"], message["table"])
        if (known := self._tables.get(key)) is not None:
            return known
        if key in self._outside:
            return None
        if not self._outside:
            self._outside_until = self._wal_end()
        source = self._lookup(TableName(*key))
        if source is None:
            self._outside.add(key)
            return None
        table = self._tables[key] = _Table(TableName(*key), self._shared(source))
        return table

    def _shared(self, source: CatalogTable) -> CatalogTable:
        """The table with one Relation object for all that are equal: partitions, and a version that was there before."""
        new = source.relation
        relation = self._versions.setdefault((new.table, new.identity, new.columns), new)
        return replace(source, relation=relation)

    def _layout(
        self,
        table: _Table,
        role: str,
        cells: Sequence[Cell],
        columns: Sequence[Cell],
        identity: Sequence[Cell] | None,
    ) -> Layout:
        """The layout of `cells`, which play `role` (see `agrees`) in the row of `columns` and `identity`."""
        layout = table.last.get(role)
        if layout is not None and layout.describes(cells):
            return layout
        layout = table.layout(role, cells, self._numbers_are_strings)
        if layout is None:
            self._follow(table, columns, identity)
            layout = table.layout(role, cells, self._numbers_are_strings)
        if layout is None:
            raise DecodeError(f"{table.source.relation}: a row came that contradicts itself: {signature(cells)[0]}")
        return layout

    def _follow(self, table: _Table, columns: Sequence[Cell], identity: Sequence[Cell] | None) -> None:
        """Find the version of the relation that a row was written under: the catalog's, or a later one of what it was so far."""
        source = self._lookup(table.name)
        new_role = "I" if identity is None else "U"
        if (
            source is None  # dropped since: its rows are still on their way
            or not agrees(source, columns, new_role)
            or (identity is not None and not agrees(source, identity, "K"))
        ):
            source = derive(table.source, columns, identity)
        table.become(self._shared(source))
        self._shapes.clear()
        self._made.clear()
        self._last = None

    def _old(self, source: CatalogTable, layout: Layout, identity: Sequence[Cell]) -> Row:
        """The row that an identity is. Numbers that may be NULL or NaN become UNCHANGED where a key finds the row without them."""
        # before 2.5 NULLs are left out of an identity
        left_out = source.relation.identity is Identity.FULL and not all("typeoid" in c for c in identity)
        row = layout.row(identity, None if left_out else UNCHANGED)
        unknown = [i for i in layout.nullable_numbers if row[i] is None]
        if not unknown:
            return row
        self._key(source, row, unknown)
        return tuple([UNCHANGED if i in unknown else v for i, v in enumerate(row)])

    def _settled(self, source: CatalogTable, layout: Layout, new: Row) -> Row:
        """The new row with the numbers that may be NULL or NaN read again."""
        unknown = [i for i in layout.nullable_numbers if new[i] is None]
        if not unknown:
            return new
        values = self._reread(source.relation, self._key(source, new, unknown), unknown)
        settled = list(new)
        for i, value in zip(unknown, values, strict=True):
            settled[i] = value
        return tuple(settled)

    def _key(self, source: CatalogTable, row: Row, unknown: Sequence[int]) -> Row:
        """The row's key. Raises DecodeError if it has none, or if the key itself is not known."""
        relation = source.relation
        key = tuple([v if name in source.key else UNCHANGED for name, v in zip(relation.names, row, strict=True)])
        if not source.key or sum(isinstance(v, str) for v in key) != len(source.key):
            columns = ", ".join(f'"{relation.names[i]}"' for i in unknown)
            raise DecodeError(
                f"{relation}: this version of wal2json sends NULL, NaN and infinity alike as null (column {columns}), "
                "and the row has no key to read it again by",
                'give the table a primary key, install wal2json 2.6, or set capture = "pgoutput" for the node',
            )
        return key


def _exactly(payload: str) -> dict[str, Any]:
    """Parse the payload with every number of a value as the digits that it is written with."""
    message: dict[str, Any] = _EXACT.decode(payload)
    for cell in (*message.get("columns", ()), *message.get("identity", ())):
        if "typeoid" in cell:
            cell["typeoid"] = int(cell["typeoid"])
    return message


def _broken(data: bytes, error: Exception) -> DecodeError:
    if isinstance(error, UnicodeDecodeError):
        return DecodeError(
            f"{_place(data[: error.start].decode(error.encoding))} is not text in the encoding {error.encoding} ({error.reason})",
            NOT_UTF8,
        )
    return DecodeError(
        f"a wal2json message of {len(data)} bytes is malformed ({type(error).__name__}: {error})",
        "look for a proxy between streamer and the server, or report it",
    )


def _place(before: str) -> str:
    """Name the value that follows this part of a payload."""
    table = re.match(r'.*?"schema":"([^"]*)","table":"([^"]*)"', before)
    column = before.rpartition('"name":"')[2].partition('"')[0]
    return f'"{table[1]}.{table[2]}": the value of column "{column}"' if table else "a message of wal2json"
