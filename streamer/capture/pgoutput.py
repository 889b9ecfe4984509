"""pgoutput's payloads (protocol version 1, values as text) to messages. Pure.

A Relation message describes a table before its first change and again whenever it changed; row messages carry the table's oid
and values only. https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html

The traps: a slice past the end of a payload is silently short. Every reader of rows therefore says where it stopped, and
`decode` compares that with the length of the payload. And this module is compiled where that is possible (`compiled.py`): what
costs the least is not the same in C.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from streamer.capture.assemble import Begin, Commit, Message, completed, partition_truncated
from streamer.errors import NOT_UTF8, DecodeError
from streamer.model import (
    LSN,
    UNCHANGED,
    Change,
    Column,
    Identity,
    Kind,
    Relation,
    Row,
    TableName,
    Value,
    from_postgres_time,
)

#: whether this is the compiled form, in which arithmetic costs nothing, and a call of `struct` the most
_IN_C: bool = not __file__.endswith(".py")

_NUMBER: Final = struct.Struct(">xI").unpack_from  # a length after a column's kind, an oid after a message's kind
_BEGIN: Final = struct.Struct(">xQqI")
_COMMIT: Final = struct.Struct(">xBQQq")
_TRUNCATE: Final = struct.Struct(">xIB")
_ATTRIBUTE: Final = struct.Struct(">Ii")  # type oid, typmod

# kinds of messages
_B, _C, _D, _I, _R, _T, _U = b"BCDIRTU"
_ROWS: Final = frozenset((_D, _I, _T, _U))
# origin, type, logical message; and stream abort, which 18 sends unasked for a savepoint of a large transaction that was rolled
# back while nobody read: of such a transaction nothing has come
_IGNORED: Final = frozenset(b"OYMA")
# kinds of rows in a message
_KEY, _OLD, _NEW = b"KON"
# kinds of values
_NULL, _TEXT, _TOAST = b"ntu"

_INSERT, _UPDATE, _DELETE = Kind.INSERT, Kind.UPDATE, Kind.DELETE


@dataclass(frozen=True, slots=True)
class _Described:
    """A relation of the source: its own name, and the relation that its changes get."""

    name: TableName
    relation: Relation


class PgoutputDecoder:
    """Decodes one replication session: relation messages are remembered, so it must see every payload, in order.

    `roots` names for a partition the table that it is replicated as; `names` those tables, by oid, whatever they were called when a
    change was made or are called since; `generated` tells the generated columns of a table, which are
    left out (where the identity is FULL, 18 demands that they are published). Both are asked when a relation is described.
    """

    def __init__(
        self,
        roots: Mapping[TableName, TableName] | None = None,
        generated: Callable[[TableName], Collection[str]] | None = None,
        names: Mapping[int, TableName] | None = None,
    ) -> None:
        self._roots: Mapping[TableName, TableName] = {} if roots is None else roots
        self._generated = generated
        self._names: Mapping[int, TableName] = {} if names is None else names
        self._narrowed: dict[Relation, tuple[Relation, list[int]]] = {}
        self._relations: dict[int, Relation] = {}
        self._described: dict[int, _Described] = {}
        self._versions: dict[tuple[TableName, Identity, tuple[Column, ...]], Relation] = {}

    def decode(self, data: bytes) -> Message:
        """Return what one payload means. Raises DecodeError if it is not one that the protocol describes."""
        try:
            kind = data[0]
            if kind == _U:
                change = self._update(data)
            elif kind == _I:
                change = self._insert(data)
            elif kind == _D:
                change = self._delete(data)
            else:
                return self._control(kind, data)
            return self._without_generated(change) if self._narrowed else change
        except (struct.error, LookupError, ValueError, OverflowError) as error:
            raise self._broken(data, error) from error

    def is_row(self, payload: bytes) -> bool:
        """Whether the payload is a change, which nothing that follows depends on."""
        return payload[0] in _ROWS

    def _control(self, kind: int, data: bytes) -> Message:
        if kind == _B:
            position, time, _ = _BEGIN.unpack(data)
            return Begin(LSN(position), from_postgres_time(time))
        if kind == _C:
            return Commit(LSN(_COMMIT.unpack(data)[2]))
        if kind == _R:
            self._describe(data)
        elif kind == _T:
            return self._truncate(data)
        elif kind not in _IGNORED:
            raise DecodeError(
                f"pgoutput sent a message of the unknown kind {chr(kind)!r}", "report it with the version of the server"
            )
        return None

    def _insert(self, data: bytes) -> Change:
        relation = self._relations[_number(data, 0)]
        _expect(data, 5, _NEW)
        new, end = _row(data, 6, relation)
        _ends(data, end)
        return (_INSERT, relation, None, new)

    def _update(self, data: bytes) -> Change:
        relation = self._relations[_number(data, 0)]
        tag = data[5]
        if tag == _NEW:
            new, end = _row(data, 6, relation)
            _ends(data, end)
            return (_UPDATE, relation, None, new)
        old, end = _old_row(data, relation)
        _expect(data, end, _NEW)
        new, end = _row(data, end + 1, relation)
        _ends(data, end)
        old_row, new = completed(relation, old, new)
        return (_UPDATE, relation, old_row, new)

    def _delete(self, data: bytes) -> Change:
        relation = self._relations[_number(data, 0)]
        old, end = _old_row(data, relation)
        _ends(data, end)
        return (_DELETE, relation, old, None)

    def _without_generated(self, change: Change) -> Change:
        kind, relation, old, new = change
        if relation not in self._narrowed:
            return change
        narrow, kept = self._narrowed[relation]
        old, new = (row and tuple([row[i] for i in kept]) for row in (old, new))
        return (kind, narrow, old, new)

    def _truncate(self, data: bytes) -> list[Change]:
        count, _ = _TRUNCATE.unpack_from(data)
        oids = struct.Struct(f">{count}I")
        _ends(data, _TRUNCATE.size + oids.size)
        tables = [self._described[oid] for oid in oids.unpack_from(data, _TRUNCATE.size)]
        self._check_partitions({table.name for table in tables})
        # several partitions of one table are one truncate
        relations = {table.relation.table: table.relation for table in tables}
        return [(Kind.TRUNCATE, relation, None, None) for relation in relations.values()]

    def _check_partitions(self, truncated: set[TableName]) -> None:
        """A truncated partition is the truncation of its table only if all the others are truncated as well."""
        for root in {self._roots[name] for name in truncated if name in self._roots}:
            partitions = {name for name, of in self._roots.items() if of == root}
            if root not in truncated and not partitions <= truncated:
                raise partition_truncated(min(truncated & partitions, key=str), root)

    def _describe(self, data: bytes) -> None:
        oid = _number(data, 0)
        schema, pos = _string(data, 5)
        name, pos = _string(data, pos)
        identity = Identity(chr(data[pos]))
        count = data[pos + 1] << 8 | data[pos + 2]
        columns, end = _columns(data, pos + 3, count)
        _ends(data, end)
        own = self._names.get(oid) or TableName(schema or "pg_catalog", name)
        relation = self._version(self._roots.get(own, own), columns, identity)
        self._relations[oid] = relation
        generated = () if self._generated is None else self._generated(own)
        kept = [i for i, column in enumerate(columns) if column.name not in generated]
        if len(kept) < len(columns):
            narrow = self._version(relation.table, tuple(columns[i] for i in kept), identity)
            self._narrowed[relation] = (narrow, kept)
            relation = narrow
        self._described[oid] = _Described(own, relation)

    def _version(self, table: TableName, columns: tuple[Column, ...], identity: Identity) -> Relation:
        """One object for equal versions: partitions of a table, and a relation that is described once more."""
        version = (table, identity, columns)
        if version not in self._versions:
            self._versions[version] = Relation(table, columns, identity)
        return self._versions[version]

    def _broken(self, data: bytes, error: Exception) -> DecodeError:
        kind = chr(data[0]) if data else ""
        if isinstance(error, KeyError):
            reason = f"it speaks of the relation with oid {error}, which was never described"
        elif isinstance(error, (IndexError, struct.error)):
            reason = "it ends too early"
        else:
            reason = f"it is malformed ({error})"
        return DecodeError(
            f"a pgoutput message of kind {kind!r} and {len(data)} bytes cannot be read: {reason}",
            "look for a proxy between streamer and the server, or report it",
        )


def _row(data: bytes, pos: int, relation: Relation) -> tuple[Row, int]:
    """Read the row at `pos`; return it and the position after it, which may lie past the end of a broken payload."""
    count = data[pos] << 8 | data[pos + 1]
    pos += 2
    values: list[Value] = []
    try:
        for _ in range(count):
            kind = data[pos]
            if kind == _TEXT:
                size = _number(data, pos) if _IN_C else _NUMBER(data, pos)[0]
                start = pos + 5
                pos = start + size
                values.append(data[start:pos].decode("utf-8"))
            else:
                values.append(_other(kind, relation, len(values)))
                pos += 1
    except UnicodeDecodeError as error:
        raise DecodeError(
            f"{relation}: the value of column {_column(relation, len(values))} is not text in UTF-8 ({error.reason})",
            NOT_UTF8,
        ) from error
    if count != len(relation.columns):
        raise DecodeError(f"{relation}: a row of {count} columns came, {len(relation.columns)} are described")
    return tuple(values), pos


def _number(data: bytes, pos: int) -> int:
    """The four bytes behind `pos`, as a number."""
    if not _IN_C:
        number: int = _NUMBER(data, pos)[0]
        return number
    number = data[pos + 1]
    number = number << 8 | data[pos + 2]
    number = number << 8 | data[pos + 3]
    return number << 8 | data[pos + 4]


def _other(kind: int, relation: Relation, index: int) -> Value:
    """The value that is not sent as text."""
    if kind == _NULL:
        return None
    if kind == _TOAST:
        return UNCHANGED
    raise DecodeError(f"{relation}: the value of column {_column(relation, index)} came in the unknown form {chr(kind)!r}")


def _old_row(data: bytes, relation: Relation) -> tuple[Row, int]:
    """Read the old row or the old key of an update or delete."""
    tag = data[5]
    if tag not in (_KEY, _OLD):
        raise ValueError(f"a row of the unknown kind {chr(tag)!r}")
    row, end = _row(data, 6, relation)
    if tag == _KEY:
        row = tuple([v if c.identity else UNCHANGED for v, c in zip(row, relation.columns, strict=True)])
    return row, end


def _columns(data: bytes, pos: int, count: int) -> tuple[tuple[Column, ...], int]:
    """Read the columns of a Relation message."""
    columns = []
    for _ in range(count):
        identity = bool(data[pos] & 1)
        name, pos = _string(data, pos + 1)
        type_oid, _typmod = _ATTRIBUTE.unpack_from(data, pos)
        pos += _ATTRIBUTE.size
        columns.append(Column(name, type_oid, identity))
    return tuple(columns), pos


def _string(data: bytes, pos: int) -> tuple[str, int]:
    """Read a string that ends with a zero byte."""
    end = data.index(0, pos)
    return data[pos:end].decode(), end + 1


def _column(relation: Relation, index: int) -> str:
    return f'"{relation.names[index]}"' if index < len(relation.names) else f"number {index + 1}"


def _expect(data: bytes, pos: int, tag: int) -> None:
    if data[pos] != tag:
        raise ValueError(f"{chr(tag)!r} was expected at byte {pos}")


def _ends(data: bytes, pos: int) -> None:
    if pos != len(data):
        raise ValueError(f"it should have {pos} bytes")
