"""How the named cells of a wal2json row become a row of a relation: order, missing columns, and the text of values. Pure.

A `Layout` is made once for each list of column names and types that comes for a table, and then reads rows at speed.
`derive` makes a version of the relation from a row when the catalog, which knows the present only, does not agree with it.

The trap: wal2json alters the text of some types (numbers are bare, booleans JSON's, bytea loses its `\\x`), and only of these types
themselves: values of a domain over one of them, or of an array, come as PostgreSQL writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from streamer.errors import DecodeError
from streamer.model import UNCHANGED, Column, Identity, Relation, Row, Value

Cell: TypeAlias = dict[str, Any]
"""name, value, and from wal2json 2.5 on typeoid."""

BOOL: Final = 16
BYTEA: Final = 17
NUMERIC: Final = 1700
GENERATED: Final = 0
"""Stands for the type of a generated column, which the relation leaves out."""
FLOATS: Final = frozenset({700, 701})
INTEGERS: Final = frozenset({20, 21, 23, 26})  # oid is the last one
_OID_MASK: Final = 0xFFFFFFFF  # wal2json prints oids as signed numbers


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """What the source's catalog says of a table whose changes travel.

    `relation` has the name and column order that the rows get (for a partition those of the table that is replicated), without
    generated columns. `key` names columns that find a row (the primary key, else a unique index without NULLs), empty if none.
    """

    relation: Relation
    key: tuple[str, ...]
    generated: frozenset[str] = frozenset()


class Rounded(Exception):
    """A JSON parser may have rounded a number: parse the payload again, exactly."""


class Layout:
    """One list of cells, by names and types, as it maps to the columns of a relation."""

    __slots__ = ("_fixes", "keys", "names", "nullable_numbers", "numbers_are_strings", "oids", "order", "partial", "types")

    def __init__(self, table: CatalogTable, cells: Sequence[Cell], numbers_are_strings: bool) -> None:
        relation = table.relation
        self.numbers_are_strings = numbers_are_strings
        #: of the cells, in their order; the oids as wal2json prints them, None if it sends none
        self.names, self.oids = signature(cells)
        known = {c.name: c.type_oid for c in relation.columns}
        #: the types of the cells as the relation has them
        self.types = [known.get(name, GENERATED) for name in self.names]
        self._fixes = [(i, fix) for i, oid in enumerate(self.types) if (fix := _fix(oid, numbers_are_strings))]
        at = {name: i for i, name in enumerate(self.names)}
        order = [at.get(name, len(cells)) for name in relation.names]
        #: for each column of the relation its cell, the number of cells where it has none; None if they are the same
        self.order = None if order == list(range(len(cells))) else order
        #: some columns of the relation are not among the cells
        self.partial = len(cells) in order
        #: which columns of the row may be NULL, NaN or an infinity when they are None
        self.nullable_numbers = () if numbers_are_strings else tuple(_numbers(relation, order, len(cells)))
        #: which cells the identity consists of; None if it must be compared by value
        self.keys = _keys(relation, at)

    def describes(self, cells: Sequence[Cell]) -> bool:
        """Whether the cells have these names and types."""
        return [c["name"] for c in cells] == self.names and (self.oids is None or [c["typeoid"] for c in cells] == self.oids)

    def row(self, cells: Sequence[Cell], absent: Value = UNCHANGED) -> Row:
        """Return the row of the relation, with `absent` for columns that have no cell. Raises Rounded, DecodeError."""
        values = [c["value"] for c in cells]
        for i, fix in self._fixes:
            if (value := values[i]) is not None:
                values[i] = fix(value)
        if self.order is not None:
            values.append(absent)
            values = [values[i] for i in self.order]
        if self.oids is None:
            self._check_text(values)
        return tuple(values)

    def _check_text(self, values: Sequence[object]) -> None:
        """Without types in the payload a column that changed its type shows by its value only."""
        if any(not isinstance(v, str) and v is not None and v is not UNCHANGED for v in values):
            raise _old_plugin(f"a row with the columns {', '.join(self.names)} has values of other types than the table")


def signature(cells: Sequence[Cell]) -> tuple[list[str], list[int] | None]:
    """Return names and type oids of the cells, as they came; None where the plugin sends no types."""
    typed = all("typeoid" in c for c in cells)
    return [c["name"] for c in cells], [c["typeoid"] for c in cells] if typed else None


def agrees(table: CatalogTable, cells: Sequence[Cell], role: str) -> bool:
    """Whether the relation is the version that the cells were written under.

    `role` is I for the new row of an insert (which is whole), U for that of an update, K for an identity.
    """
    relation = table.relation
    known = {c.name: c.type_oid for c in relation.columns}
    types = {c["name"]: _type_of(c) for c in cells if c["name"] not in table.generated}
    if any(name not in known or oid not in (None, known[name]) for name, oid in types.items()):
        return False
    if role == "U":
        return True
    if role == "I":
        return len(types) == len(known)
    expected = {c.name for c in relation.columns if c.identity}
    # before 2.5 NULLs are left out of an identity
    return types.keys() == expected or (relation.identity is Identity.FULL and all(oid is None for oid in types.values()))


def derive(table: CatalogTable, columns: Sequence[Cell], identity: Sequence[Cell] | None) -> CatalogTable:
    """Return the table as the cells of a row show it, where `table` is how it was known until then.

    `identity` is None for an insert, whose `columns` are whole. Raises DecodeError if the plugin sends no types.
    """
    known = table.relation
    types = {c.name: c.type_oid for c in known.columns}
    seen = {c["name"]: _type_of(c) for c in (*columns, *(identity or ())) if c["name"] not in table.generated}
    if any(oid is None and name not in types for name, oid in seen.items()):
        raise _old_plugin(f"{known} has no column {', '.join(sorted(seen.keys() - types.keys()))} any more")
    full = known.identity is Identity.FULL
    # unchanged TOASTed columns are among neither, so the known ones stay, unless the row is whole
    names = list(seen) if full or identity is None else [*types, *(name for name in seen if name not in types)]
    if identity is not None:
        keys = {c["name"] for c in identity} - table.generated
    else:
        keys = set(names) if full else {c.name for c in known.columns if c.identity}
    made = [Column(name, types[name] if (oid := seen.get(name)) is None else oid, name in keys) for name in names]
    kind = known.identity if identity is None else _identity(known, set(names), keys)
    return CatalogTable(Relation(known.table, tuple(made), kind), table.key, table.generated)


def _identity(known: Relation, names: set[str], keys: set[str]) -> Identity:
    """The identity of a version of a relation whose `names` hold the `keys` that came."""
    if keys == {c.name for c in known.columns if c.identity}:
        return known.identity
    if keys == names:
        return Identity.FULL
    return known.identity if known.identity is Identity.DEFAULT else Identity.INDEX


def _type_of(cell: Cell) -> int | None:
    oid = cell.get("typeoid")
    return None if oid is None else oid & _OID_MASK


def _fix(oid: int, numbers_are_strings: bool) -> Callable[[Any], str] | None:
    """What makes PostgreSQL's text of a JSON value of that type; None if it is that already."""
    if oid == BOOL:
        return _bool
    if oid == BYTEA:
        return _bytea
    if numbers_are_strings:
        return None
    if oid in INTEGERS:
        return str
    if oid in FLOATS:
        return _float
    return _numeric if oid == NUMERIC else None


def _bool(value: bool) -> str:
    return "t" if value else "f"


def _bytea(value: str) -> str:
    return "\\x" + value


def _numeric(value: float | str) -> str:
    if isinstance(value, float):
        raise Rounded
    return str(value)


def _float(value: float | str) -> str:
    if not value or isinstance(value, float):  # -0 is parsed as the integer 0
        raise Rounded
    return str(value)


def _numbers(relation: Relation, order: Sequence[int], absent: int) -> list[int]:
    return [
        i
        for i, column in enumerate(relation.columns)
        if order[i] != absent and (column.type_oid == NUMERIC or column.type_oid in FLOATS)
    ]


def _keys(relation: Relation, at: dict[str, int]) -> list[int] | None:
    names = [c.name for c in relation.columns if c.identity]
    if relation.identity is Identity.FULL or not names or any(name not in at for name in names):
        return None
    return sorted(at[name] for name in names)


def _old_plugin(what: str) -> DecodeError:
    return DecodeError(
        f"{what}: the table was altered, and this version of wal2json does not tell the types of columns",
        "install wal2json 2.5 or newer on the source",
    )
