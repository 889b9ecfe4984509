r"""How rows are spelled for the columns of one table: as the file of LOAD DATA, and as literals of a statement. Pure.

A file is what COPY's text format is, but for two escapes: tabs part fields, \N is NULL, a backslash escapes. Columns are converted
one after the other, not row by row, because that is several times faster. What a column cannot hold goes to `replace`, which raises
or gives something else.

The trap: bytes in a file would be read in a character set, so they are hexadecimal there, and UNHEX in the statement.

https://dev.mysql.com/doc/refman/8.4/en/load-data.html#load-data-field-line-handling
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, TypeAlias

from pymysql.converters import escape_string

from streamer.model import Value
from streamer.sinks.mysql_ddl import quote
from streamer.sinks.mysql_values import Converter, TargetColumn, converter, load_expression
from streamer.sinks.unrepresentable import Unrepresentable

Stored: TypeAlias = str | bytes | int | float | None
Replace: TypeAlias = Callable[[int, Sequence[Value], Unrepresentable], Stored]
"""Called with the position of a column in the row, the row and the problem; returns what is written instead, or raises."""

PIECE_ROWS: Final = 500
"""Measured: 300 to 1,000 rows take a third of the time that tens of thousands take."""
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n"})
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_UNKNOWN_ESCAPES: Final = {b"f": b"\f", b"v": b"\v"}


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the rows, and the column of a table that it is written to, perhaps under another name."""

    #: its position in the rows
    position: int
    name: str
    target: TargetColumn
    convert: Converter | None

    @classmethod
    def of(cls, position: int, type_oid: int, target: TargetColumn, name: str | None = None) -> Field:
        """The field for a column of the source's type."""
        return cls(position, target.name if name is None else name, target, converter(type_oid, target))


class Fields:
    """Some columns of rows that have `width` of them; `replace` is asked about values that do not fit."""

    def __init__(self, width: int, fields: Sequence[Field], replace: Replace) -> None:
        self._fields = fields
        self._replace = replace
        positions = [f.position for f in fields]
        self._whole = positions == list(range(width))
        self._pick: Callable[[Sequence[Value]], Any] = (
            itemgetter(*positions) if len(positions) > 1 else lambda row: (row[positions[0]],)
        )
        self._converted = [(place, f) for place, f in enumerate(fields) if f.convert is not None]
        self.columns = ", ".join(quote(f.name) for f in fields)

    @property
    def as_copied(self) -> bool:
        """Whether whole rows are written as COPY gives them."""
        return self._whole and not self._converted

    # -- files -------------------------------------------------------------------------------------------------------------------

    def load_statement(self, table: str) -> str:
        """Return LOAD DATA for a table, in SQL; the file's name means nothing."""
        targets, sets = [], []
        for place, field in enumerate(self._fields):
            expression = load_expression(field.target, f"@f{place}")
            plain = expression == f"@f{place}"
            targets.append(quote(field.name) if plain else f"@f{place}")
            if not plain:
                sets.append(f"{quote(field.name)} = {expression}")
        return (
            f"LOAD DATA LOCAL INFILE 'streamer' INTO TABLE {table} CHARACTER SET utf8mb4 FIELDS TERMINATED BY '\\t' "
            f"ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' ({', '.join(targets)}){' SET ' if sets else ''}{', '.join(sets)}"
        )

    def file(self, rows: Sequence[Sequence[Value]]) -> Iterator[bytes]:
        """Give the rows as a file, in pieces that stay in the processor's cache. Raises what `replace` raises."""
        return (self._piece(rows[start : start + PIECE_ROWS]) for start in range(0, len(rows), PIECE_ROWS))

    def _piece(self, rows: Sequence[Sequence[Value]]) -> bytes:
        """As in copytext.format_rows, all is joined first and escaped at once; NUL, which no text of PostgreSQL has, is NULL."""
        columns: list[Sequence[Any]] = [_spelled(column) for column in self._columns(rows)]
        text = _lines(columns)
        if text.count("\t") != len(rows) * (len(columns) - 1) or text.count("\n") != len(rows) - 1:
            text = _lines([[value.translate(_ESCAPES) for value in column] for column in columns])
        else:
            text = text.replace("\\", "\\\\")
        return (text.replace("\0", "\\N") + "\n").encode()

    # -- literals ----------------------------------------------------------------------------------------------------------------

    def literals(self, rows: Sequence[Sequence[Value]]) -> Iterable[str]:
        """Give each row as SQL, in parentheses. Raises what `replace` raises."""
        return (f"({', '.join(map(literal, row))})" for row in self._stored(rows))

    def one(self, row: Sequence[Value]) -> list[str]:
        """Return the literals of one row, in the order of the fields. Raises what `replace` raises."""
        (stored,) = self._stored([row])
        return [literal(value) for value in stored]

    # -- values ------------------------------------------------------------------------------------------------------------------

    def _stored(self, rows: Sequence[Sequence[Value]]) -> Iterable[Sequence[Stored]]:
        """The rows' fields as the target holds them."""
        return zip(*self._columns(rows), strict=True)

    def _columns(self, rows: Sequence[Sequence[Value]]) -> list[Sequence[Stored]]:
        """The same, column by column."""
        picked: Sequence[Sequence[Any]] = rows if self._whole else list(map(self._pick, rows))
        columns: list[Sequence[Stored]] = list(zip(*picked, strict=True))
        for place, field in self._converted:
            columns[place] = self._convert(field, columns[place], rows)
        return columns

    def _convert(self, field: Field, values: Sequence[Any], rows: Sequence[Sequence[Value]]) -> list[Stored]:
        convert: Any = field.convert
        try:
            return [None if value is None else convert(value) for value in values]
        except Unrepresentable:
            return [self._convert_one(field, value, row) for value, row in zip(values, rows, strict=True)]

    def _convert_one(self, field: Field, value: Any, row: Sequence[Value]) -> Stored:  # noqa: ANN401  # never UNCHANGED here
        try:
            return None if value is None or field.convert is None else field.convert(value)
        except Unrepresentable as problem:
            return self._replace(field.position, row, problem)


def _spelled(values: Sequence[Any]) -> Sequence[Any]:
    """A column's values as texts of a file, with NUL for NULL."""
    if set(map(type, values)) == {str}:
        return values
    return ["\0" if v is None else v if isinstance(v, str) else v.hex() if isinstance(v, bytes) else repr(v) for v in values]


def _lines(columns: Sequence[Sequence[str]]) -> str:
    return "\n".join(map("\t".join, zip(*columns, strict=True)))


def literal(value: Stored) -> str:
    """Return a value in SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return f"'{escape_string(value)}'"
    return f"X'{value.hex()}'" if isinstance(value, bytes) else repr(value)


def file_of_copy(block: bytes) -> bytes:
    r"""Return a block of COPY's text format as a file: form feeds and vertical tabs must not be escaped."""
    if b"\\f" not in block and b"\\v" not in block:
        return block
    return _ESCAPED.sub(lambda match: _UNKNOWN_ESCAPES.get(match[1], match[0]), block)


def described(row: Sequence[Value], names: Sequence[str], positions: Iterable[int]) -> str:
    """Return some columns of a row, for people."""
    return ", ".join(f"{quote(names[i])} = {_shown(row[i])}" for i in positions)


def _shown(value: Value) -> str:
    if not isinstance(value, str):
        return "NULL" if value is None else "?"
    return "'" + (value if len(value) <= 60 else value[:60] + "…").replace("'", "''") + "'"
