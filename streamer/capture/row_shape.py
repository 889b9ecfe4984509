"""Rows of wal2json that differ in their values only, read by one regular expression instead of a JSON parser. Pure.

A table's payloads mostly look alike: the same names and types in the same order, an update with the key that it had before. A
`RowShape` is such a payload with holes for the values, made from the `Layout` of one that was parsed; it gives the very text of
each, which is what a row holds, so that nothing is left to convert. It takes half the time. Transactions are alike as well: each
shape remembers which one came after it, and that is tried first.

The trap: it must never take what it does not understand. An escape within a string, a number that may be NaN, a changed key,
another column: then it does not match, and the payload is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final

from streamer.capture.layout import BOOL, BYTEA, FLOATS, GENERATED, INTEGERS, NUMERIC, Layout
from streamer.model import UNCHANGED, Change, Kind, Relation, Row, TableName

_STRING: Final = r'(?:"([^"\\]*)"|null)'
_INTEGER: Final = r"(?:(-?[0-9]+)|null)"
_NUMBER: Final = r"(-?[0-9][-+.0-9eE]*)"  # a null may be NaN or an infinity
_ACTION: Final = 11  # where a payload tells its action
_BEFORE: Final = '"(?:,"timestamp":"[^"]*")?(?:,"lsn":"[^"]*")?,'
_BOOLEAN: Final = r"(?:(t(?=rue)|f(?=alse))(?:rue|alse)|null)"


def head(payload: str) -> str:
    """Return what tells payloads of one table and kind from most others."""
    start = payload.find('"schema":')
    return payload[_ACTION] + payload[start : payload.find("[", start)]


class RowShape:
    """The payloads of one kind of change, of one table, in one layout: of its columns, or of the identity for a delete."""

    __slots__ = ("_kind", "_match", "_order", "_relation", "follower")

    def __init__(self, kind: Kind, relation: Relation, pattern: str, order: Callable[[Row], Row] | None) -> None:
        self._kind = kind
        self._relation = relation
        self._match = re.compile(pattern).fullmatch
        self._order = order
        #: what came after a row of this shape, the last time
        self.follower: RowShape | None = None

    def read(self, payload: str) -> Change | None:
        """Return the change of a payload; None if it has another shape."""
        found = self._match(payload, _ACTION)
        if found is None:
            return None
        row: Row = found.groups()
        if self._order is not None:
            row = self._order((*row, UNCHANGED))
        return (self._kind, self._relation, row, None) if self._kind is Kind.DELETE else (self._kind, self._relation, None, row)


def row_shape(kind: Kind, table: TableName, relation: Relation, layout: Layout) -> RowShape | None:
    """Return the shape of a layout, for a table by its own name; None if such payloads must be parsed."""
    keys = layout.keys if kind is Kind.UPDATE else ()
    values = [_value(oid, layout.numbers_are_strings) for oid in layout.types]
    if layout.oids is None or keys is None or any(value is None for value in values):
        return None
    cells = [_cell(name, oid, value) for name, oid, value in zip(layout.names, layout.oids, values, strict=True) if value]
    again = [_cell(layout.names[i], layout.oids[i], _same(i + 1, values[i] or "")) for i in keys]
    named = f'{kind.value[0].upper()}{_BEFORE}"schema":{_literal(table.schema)},"table":{_literal(table.name)}'
    columns = f',"{"identity" if kind is Kind.DELETE else "columns"}":\\[{",".join(cells)}\\]'
    identity = f',"identity":\\[{",".join(again)}\\]' if again else ""
    return RowShape(kind, relation, f"{named}{columns}{identity}\\}}", _ordered(layout.order))


def _value(oid: int, numbers_are_strings: bool) -> str | None:
    """The expression for a value of a type, with one group for its text; None if that is not the text of PostgreSQL."""
    if oid == BOOL:
        return _BOOLEAN
    if oid in (BYTEA, GENERATED):
        return None
    if not numbers_are_strings and oid in INTEGERS:
        return _INTEGER
    if not numbers_are_strings and (oid == NUMERIC or oid in FLOATS):
        return _NUMBER
    return _STRING


def _same(group: int, value: str) -> str:
    """The expression for the value that a group has matched before."""
    return f'"\\{group}"' if value is _STRING else f"\\{group}"


def _cell(name: str, oid: int, value: str) -> str:
    return f'\\{{"name":{_literal(name)},"typeoid":{oid},"value":{value}\\}}'


def _literal(name: str) -> str:
    return re.escape(json.dumps(name, ensure_ascii=False))


def _ordered(order: Sequence[int] | None) -> Callable[[Row], Row] | None:
    """What brings cells into the order of the relation's columns."""
    if order is None:
        return None
    if len(order) == 1:
        return lambda row: (row[order[0]],)
    getter: Callable[[Row], Any] = itemgetter(*order)
    return getter
