"""What a table, a row and a change become on a target that takes them in another shape. Pure.

A row is filtered (`where`), transformed, cut to the columns that travel and renamed, in this order; so a condition and a function
see the source's names. An update is judged by both of its rows: a row that enters the filter becomes an insert, one that leaves it
a delete, one that was and stays outside nothing.

The trap: what an old row does not carry cannot be judged. Under the default replica identity it has the key only, and an update
that keeps the key carries none at all; then the key of the new row is that of the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final, TypeAlias

from streamer.errors import ApplyError, SchemaError
from streamer.model import UNCHANGED, Change, Identity, Kind, Relation, Row, TableDefinition, TableName
from streamer.ports import CopyTable
from streamer.shape_config import Shape
from streamer.sql_text import names, takes_whole_row

Values: TypeAlias = tuple[str | None, ...]
"""What a condition is asked about: the values of the columns that it may use."""
Function: TypeAlias = Callable[[dict[str, str | None]], Any]
"""A user's transform: takes a row, returns the one that travels, None if none does. What it returns is looked at when it does."""
Passes: TypeAlias = Callable[[Values], bool]
"""Whether a row that has these values fulfils the condition."""


def used_columns(shape: Shape, columns: Sequence[str]) -> tuple[str, ...]:
    """Return those of the table's columns that the condition may use, in their order.

    Raises SchemaError if it takes the row as a whole: then it would see columns that do not travel.
    """
    if shape.where and takes_whole_row(shape.where, shape.table.name, columns):
        raise SchemaError(
            f'table "{shape.table}": where = "{shape.where}" takes the row as a whole', "name the columns that it is about"
        )
    used = {name.text for name in names(shape.where)}
    return tuple(name for name in columns if name in used)


def travelling(shape: Shape, columns: Sequence[str], key: Sequence[str]) -> tuple[str, ...]:
    """Return those of the source's columns that travel, in their order. `key` tells rows apart.

    Raises SchemaError if the shape names a column that is not there, leaves out the key, or gives two columns one name.
    """
    for what, named in (("columns", shape.columns or ()), ("rename_columns", shape.renamed)):
        if unknown := sorted(set(named).difference(columns)):
            raise SchemaError(
                f'table "{shape.table}" has no column "{unknown[0]}" whose values travel', f"correct its {what} in the config"
            )
    if lost := [name for name in key if not shape.takes(name)]:
        raise SchemaError(
            f'table "{shape.table}": column "{lost[0]}" belongs to its key, without which nobody can tell its rows apart',
            "name it in its columns in the config",
        )
    chosen = tuple(name for name in columns if shape.takes(name))
    called: dict[str, str] = {}
    for name in chosen:
        if (other := called.setdefault(shape.column(name), name)) != name:
            raise SchemaError(
                f'table "{shape.table}": columns "{other}" and "{name}" would both be called "{shape.column(name)}"',
                "correct its rename_columns in the config",
            )
    return chosen


def shape_definition(definition: TableDefinition, shape: Shape | None) -> TableDefinition:
    """Return the table as the target has it. Raises SchemaError, as `travelling`.

    What a function makes of the rows need not be unique; the key must be, or nobody could tell them apart.
    """
    if shape is None:
        return definition
    unique = () if shape.transform else definition.unique_keys
    if not shape.recast:
        return replace(definition, unique_keys=unique)
    chosen = set(travelling(shape, [c.name for c in definition.columns if not c.generated], definition.primary_key))
    return replace(
        definition,
        table=shape.target,
        columns=tuple(replace(c, name=shape.column(c.name)) for c in definition.columns if c.name in chosen),
        primary_key=tuple(map(shape.column, definition.primary_key)),
        unique_keys=tuple(tuple(map(shape.column, key)) for key in unique if chosen.issuperset(key)),
    )


def copied_columns(table: CopyTable, shape: Shape) -> CopyTable:
    """Return what to read of the source's table for this shape: a transform sees all columns. Raises SchemaError."""
    chosen = travelling(shape, table.columns, table.key)
    used_columns(shape, table.columns)
    if shape.transform:
        chosen = table.columns
    types = dict(zip(table.columns, table.type_oids, strict=True))
    return replace(table, columns=chosen, type_oids=tuple(types[name] for name in chosen), where=shape.where)


def loaded_table(table: CopyTable, shape: Shape) -> CopyTable:
    """Return what is written of what `copied_columns` has had read."""
    chosen = [i for i, name in enumerate(table.columns) if shape.takes(name)]
    return replace(
        table,
        table=shape.target,
        columns=tuple(shape.column(table.columns[i]) for i in chosen),
        type_oids=tuple(table.type_oids[i] for i in chosen),
        key=tuple(map(shape.column, table.key)),
        where="",
    )


class ShapedRelation:
    """One version of a table, and what becomes of its changes. `key` is what tells its rows apart, where the catalog says so.

    Raises SchemaError, as `travelling`.
    """

    def __init__(self, relation: Relation, shape: Shape, function: Function | None, key: Sequence[str] = ()) -> None:
        self._whole = relation.identity is Identity.FULL
        known = self._whole and not relation.key
        key = [name for name in key if name in relation.names] if known else [relation.names[i] for i in relation.key]
        chosen = travelling(shape, relation.names, key)
        self.source = relation
        self.shape = shape
        self._cut = RowCut(shape, relation.names, chosen, key, function)
        columns = [replace(c, name=shape.column(c.name)) for c in relation.columns if c.name in chosen]
        self.target = Relation(shape.target, tuple(columns), relation.identity)
        used = used_columns(shape, relation.names)
        self._used = [i for i, name in enumerate(relation.names) if name in used]
        #: the columns that the condition may use
        self.columns = tuple(relation.columns[i] for i in self._used)

    def asked(self, change: Change) -> tuple[Values | None, Values | None]:
        """Return what the condition is to be asked about: the old and the new row; None for one that there is not.

        Raises SchemaError if the old row does not carry what the condition needs.
        """
        kind, _, old, new = change
        if kind is Kind.TRUNCATE:
            return None, None
        after = None if new is None else self._values(kind, complete(new, old))
        if kind is Kind.INSERT:
            return None, after
        if old is not None:
            return self._values(kind, old), after
        # the update has left the identity alone, so these columns are in the old row what they are in the new one
        if strange := next((c.name for c in self.columns if not c.identity), None):
            raise self._lacks(kind, strange)
        return after, after

    def _values(self, kind: Kind, row: Row) -> Values:
        values = tuple([row[i] for i in self._used])
        if UNCHANGED in values:
            raise self._lacks(kind, self.source.names[self._used[values.index(UNCHANGED)]])
        return values  # type: ignore[return-value]  # just looked at

    def shaped(self, change: Change, passes: Passes) -> Change | None:
        """Return the change as the target gets it, None if it gets none; `passes` answers what is `asked`.

        Raises SchemaError if a row does not carry what it must, ApplyError if the function fails.
        """
        kind, _, old, new = change
        if kind is Kind.TRUNCATE:
            return (kind, self.target, None, None)
        before, after = kind is not Kind.INSERT, kind is not Kind.DELETE
        if self.shape.where:
            was, is_now = self.asked(change)
            before = was is not None and passes(was)
            after = is_now is not None and passes(is_now)
        gone = self._gone(kind, old, new) if before else None
        made = self._made(kind, old, new, entering=gone is None) if after and new is not None else None
        if made is None:
            return None if gone is None else (Kind.DELETE, self.target, gone, None)
        if gone is None:
            return (Kind.INSERT, self.target, None, made)
        if self._whole and not self._cut.keeps_all and complete(made, gone) == gone:
            return None  # what has changed does not travel
        return (Kind.UPDATE, self.target, None if old is None else gone, made)

    def _gone(self, kind: Kind, old: Row | None, new: Row | None) -> Row | None:
        """The row that was on the target: all of it, or as much as finds it."""
        row = new if old is None else old
        assert row is not None
        if self._cut.function is not None and (old is None or UNCHANGED in row):
            raise self._lacks(kind, self._missing(old))
        return self._cut.row(row)

    def _made(self, kind: Kind, old: Row | None, new: Row, *, entering: bool) -> Row | None:
        """The row that will be on the target, whole if it was not there before."""
        whole = entering or self._cut.function is not None
        row = complete(new, old) if whole else new
        if whole and self._cut.function is not None and UNCHANGED in row:
            raise self._lacks(kind, self._missing(row))
        made = self._cut.row(row)
        if whole and made is not None and UNCHANGED in made:
            raise self._lacks(kind, self._missing(row))
        return made

    def _missing(self, row: Row | None) -> str:
        """The first column that the row does not carry."""
        names = self.source.names
        return next((name for name, value in zip(names, row, strict=True) if value is UNCHANGED), names[0]) if row else names[0]

    def _lacks(self, kind: Kind, column: str) -> SchemaError:
        needs = "transform" if self._cut.function else "where"
        remedy = (
            f"on the source: {full_identity(self.source.table)}; changes made before that stay without it: if the error stays, "
            "set up the sync anew (streamer teardown, streamer setup)"
        )
        if self._whole:
            remedy = (
                "wal2json before 2.6 does not tell NULL, NaN and infinity of an old row; install 2.6, or set capture to pgoutput"
            )
        return SchemaError(
            f'table {self.source}: the old row of {_AN[kind]} does not carry the column "{column}", which its {needs} needs', remedy
        )


_AN: Final = {Kind.INSERT: "an insert", Kind.UPDATE: "an update", Kind.DELETE: "a delete"}


class RowCut:
    """Makes rows of the target from rows that have the source's `columns`: those `chosen` travel, after the function."""

    def __init__(
        self, shape: Shape, columns: Sequence[str], chosen: Sequence[str], key: Sequence[str], function: Function | None
    ) -> None:
        self.function = function
        self._shape = shape
        self._columns = tuple(columns)
        self._names = tuple(chosen)
        at = [i for i, name in enumerate(columns) if name in chosen]
        self._shown = [i for i, name in enumerate(columns) if name in key] or list(range(min(3, len(columns))))
        #: whether rows travel as they are
        self.keeps_all = function is None and len(at) == len(self._columns)
        self._pick: Callable[[Row], Row] = itemgetter(*at) if len(at) > 1 else lambda row: tuple([row[i] for i in at])

    def row(self, row: Row) -> Row | None:
        """Return the row of the target, None if the function leaves it out. Raises ApplyError."""
        if self.function is not None:
            return self._made(row)
        return row if self.keeps_all else self._pick(row)

    def _made(self, row: Row) -> Row | None:
        assert self.function is not None
        try:
            answer = self.function(dict(zip(self._columns, row, strict=True)))  # type: ignore[arg-type]  # the row is whole
        except Exception as error:
            told = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
            raise self._failed(row, f"raised {told}") from error
        if answer is None:
            return None
        if not isinstance(answer, dict):
            raise self._failed(row, f"returned {type(answer).__name__}, which is neither a dict nor None")
        if unknown := answer.keys() - set(self._columns):
            raise self._failed(row, f"returned a column that the table does not have, {min(map(repr, unknown))}")
        if missing := [name for name in self._names if name not in answer]:
            raise self._failed(row, f'returned a row without the column "{missing[0]}"')
        for name in self._names:
            if (value := answer[name]) is not None and not _is_text(value):
                what = "text that no database takes" if isinstance(value, str) else type(value).__name__
                raise self._failed(row, f'returned {what} in column "{name}"; a value is text as PostgreSQL writes it, or None')
        return tuple([answer[name] for name in self._names])

    def _failed(self, row: Row, what: str) -> ApplyError:
        key = ", ".join(f"{self._columns[i]} = {_shortened(row[i])}" for i in self._shown)
        return ApplyError(
            f'table "{self._shape.table}": transform "{self._shape.transform}" {what}, for the row with {key}',
            "correct the function, and start streamer run again",
        )


def full_identity(table: TableName) -> str:
    """Return the statement that has a table's changes carry the whole old row."""
    schema, name = (part.replace('"', '""') for part in (table.schema, table.name))
    return f'ALTER TABLE "{schema}"."{name}" REPLICA IDENTITY FULL'


def complete(row: Row, old: Row | None) -> Row:
    """Return the row with what it leaves unchanged taken from the old one, as far as that has it."""
    if old is None or UNCHANGED not in row:
        return row
    return tuple([before if value is UNCHANGED else value for value, before in zip(row, old, strict=True)])


def _is_text(value: object) -> bool:
    """Whether it is text that can be stored: no NUL, no half of a surrogate pair."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _shortened(value: object) -> str:
    text = "NULL" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"
