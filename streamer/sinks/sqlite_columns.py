"""The columns of one relation as an SQLite table has them: how rows become parameters, and what happens to what does not fit.

A row whose values are its parameters already is handed over as it is. The trap: a value that its column cannot hold is found in the
middle of a batch, where only the row itself tells which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any, Final, TypeAlias

from streamer.model import TableName, Value
from streamer.sinks.sqlite_ddl import TargetTable, fold_case, missing_column, quote
from streamer.sinks.sqlite_values import conversion
from streamer.sinks.unrepresentable import Replacements, Unrepresentable, Written, shown

Bind: TypeAlias = Callable[[Sequence[Value]], Sequence[Any]]

_SHOWN: Final = 4  # columns that tell a row without a key


class Columns:
    """Converts rows of `table`, whose columns have these names and types; `key` are the places of those that address a row.

    Raises SchemaError for a column that the target does not have.
    """

    def __init__(
        self,
        table: TableName,
        names: Sequence[str],
        oids: Sequence[int],
        key: Collection[int],
        target: TargetTable,
        replacements: Replacements,
    ) -> None:
        for name, oid in zip(names, oids, strict=True):
            if fold_case(name) not in target.columns:
                raise missing_column(table, name, oid, strict=target.strict)
        self.table = table
        self.names = names
        self.quoted = [quote(name) for name in names]
        self.generated = {i for i, name in enumerate(names) if fold_case(name) in target.generated}
        self._key = tuple(key)
        self._target = target
        self._replacements = replacements
        found = {i: conversion(oid, target.type_of(names[i]), strict=target.strict) for i, oid in enumerate(oids)}
        self._conversions = {i: convert for i, convert in found.items() if convert is not None}

    def bind(self, fields: Sequence[int]) -> Bind | None:
        """Return what makes parameters of a row: its `fields`, converted; None if a row is its own parameters.

        The parameters' maker raises ApplyError for a value that the column cannot hold, and must not lose.
        """
        convert = [(n, self._conversions[i], i) for n, i in enumerate(fields) if i in self._conversions]
        if not convert and tuple(fields) == tuple(range(len(self.names))):
            return None
        pick: Bind = itemgetter(*fields) if len(fields) > 1 else lambda row: (row[fields[0]],)
        if not convert:
            return pick

        def bind(row: Sequence[Value]) -> Sequence[Any]:
            values: list[Any] = list(pick(row))
            for n, function, field in convert:
                if (value := values[n]) is not None:
                    try:
                        values[n] = function(value)
                    except Unrepresentable as problem:
                        values[n] = self._replace(row, field, problem)
            return values

        return bind

    def sought(self, row: Sequence[Value], fields: Sequence[int]) -> Sequence[Any]:
        """Return parameters of `fields` that a row is found by; what was replaced then is replaced again, and counted once."""
        mark = self._replacements.mark()
        bind = self.bind(fields)
        values = row if bind is None else bind(row)
        self._replacements.back_to(mark)
        return values

    def _replace(self, row: Sequence[Value], field: int, problem: Unrepresentable) -> Written | None:
        name = self.names[field]
        folded = fold_case(name)
        return self._replacements.replace(
            self.table,
            name,
            lambda: self.describe(row),
            problem,
            nullable=folded not in self._target.not_null,
            in_key=field in self._key or any(folded in key for key in self._target.keys[:1]),
        )

    def describe(self, row: Sequence[Value]) -> str:
        """Return the row's key, or its first columns, for people."""
        fields = self._key or range(min(_SHOWN, len(self.names)))
        return ", ".join(f"{self.quoted[i]} = {_told(row[i])}" for i in fields)


def _told(value: Value) -> str:
    if not isinstance(value, str):
        return "NULL" if value is None else "?"
    return "'" + shown(value).replace("'", "''") + "'"
