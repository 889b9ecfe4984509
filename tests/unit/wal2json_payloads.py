"""Payloads as wal2json writes them, and a catalog to decode them with."""

from __future__ import annotations

import json
from collections.abc import Sequence

from streamer.capture.layout import CatalogTable
from streamer.capture.wal2json import Wal2jsonDecoder
from streamer.model import LSN, Column, Identity, Kind, Relation, Row, TableName, Value

T = TableName("public", "t")
INT, TEXT, BOOL, BYTEA, NUMERIC, FLOAT8 = 23, 25, 16, 17, 1700, 701


def table(
    *columns: tuple[str, int],
    name: TableName = T,
    identity: Identity = Identity.DEFAULT,
    key: Sequence[str] = ("id",),
    generated: Sequence[str] = (),
) -> CatalogTable:
    full = identity is Identity.FULL
    made = tuple(Column(n, oid, full or (n in key and identity is not Identity.NOTHING)) for n, oid in columns)
    return CatalogTable(Relation(name, made, identity), tuple(key), frozenset(generated))


PLAIN = table(("id", INT), ("name", TEXT), ("n", INT))


def cells(*triples: tuple[str, int | None, str]) -> str:
    """Columns as JSON: (name, type oid, JSON value); oid None is a plugin that sends none."""
    return ",".join(
        f'{{"name":{json.dumps(name)},' + (f'"typeoid":{oid},' if oid is not None else "") + f'"value":{value}}}'
        for name, oid, value in triples
    )


def change_json(action: str, columns: str | None = None, identity: str | None = None, name: str = "t", lsn: str = "0/1") -> bytes:
    parts = [f'"action":"{action}","lsn":"{lsn}","schema":"public","table":"{name}"']
    parts += [f'"columns":[{columns}]'] if columns is not None else []
    parts += [f'"identity":[{identity}]'] if identity is not None else []
    return f"{{{','.join(parts)}}}".encode()


class Catalog:
    """The look-ups of a decoder, with what the source says at the time."""

    def __init__(self, *tables: CatalogTable, reread: Sequence[Value] = ()) -> None:
        self.tables = {t.relation.table: t for t in tables}
        self.asked: list[TableName] = []
        #: where the WAL ends
        self.end = LSN(0)
        self.reread_values = reread
        self.reread_keys: list[tuple[Row, list[int]]] = []

    def lookup(self, name: TableName) -> CatalogTable | None:
        self.asked.append(name)
        return self.tables.get(name)

    def reread(self, relation: Relation, key: Row, columns: Sequence[int]) -> Sequence[Value]:
        self.reread_keys.append((key, list(columns)))
        return self.reread_values

    def decoder(self, *, numbers_are_strings: bool = False, encoding: str = "utf-8") -> Wal2jsonDecoder:
        return Wal2jsonDecoder(
            self.lookup, self.reread, lambda: self.end, numbers_are_strings=numbers_are_strings, encoding=encoding
        )


def change(payload: bytes, of: Wal2jsonDecoder) -> tuple[Kind, Relation, Row | None, Row | None]:
    decoded = of.decode(payload)
    assert isinstance(decoded, tuple)
    return decoded


def inserted(columns: str, *tables: CatalogTable, numbers_are_strings: bool = False) -> Row | None:
    return change(change_json("I", columns), Catalog(*tables).decoder(numbers_are_strings=numbers_are_strings))[3]


ROW = cells(("id", INT, "1"), ("name", TEXT, '"a"'), ("n", INT, "2"))
KEY = cells(("id", INT, "1"))
