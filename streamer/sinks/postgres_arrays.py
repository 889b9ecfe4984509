r"""Some hundred rows of one table in one statement, each column an array: no temporary table to make, no COPY to wait for.

The traps: `unnest` takes arrays of arrays apart to their last element, and rows of a composite type to their fields, so values of
such types travel as text and are cast; and an array of `box` is parted by semicolons.

https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
https://www.postgresql.org/docs/current/functions-array.html (unnest of several arrays)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from streamer.model import Value
from streamer.sinks.postgres_writer import TableWriter

SEVERAL_ARRAYS: Final = 90400  # unnest of more than one
ARRAY_ROWS: Final = 4
"""From here on one statement is faster than one for each row."""
MANY_ROWS: Final = 1000
"""Beyond, COPY into a temporary table and a join take less, even if the table must be made first."""
INSERTED_ROWS: Final = 200
"""The same for COPY into the table itself."""
MANY_VALUES: Final = 50_000
"""The same for values, which wide rows have many of: each array is a function of its own to the server."""
MANY_BYTES: Final = 8 << 20
"""Characters that an array may have; no parameter can be larger than a gigabyte."""


class Together(NamedTuple):
    """Rows where a statement can read them: in SQL, as it would a table, and the statement's parameters."""

    rows: str
    parameters: Sequence[str] = ()


def in_arrays(writer: TableWriter, columns: Sequence[int], rows: Sequence[Sequence[Value]]) -> Together | None:
    """Return rows of these columns, of which there are some and none holds UNCHANGED; None if they are too large for arrays."""
    if len(rows) * len(columns) > MANY_VALUES:
        return None
    arrays = list(map(_array, zip(*rows, strict=True)))
    return Together(_unnested(writer, columns), arrays) if max(map(len, arrays)) < MANY_BYTES else None


def _unnested(writer: TableWriter, columns: Sequence[int]) -> str:
    names = ", ".join(map(writer.column, columns))
    given = ", ".join(f"%s::{_element(writer, i)}[]" for i in columns)
    cast = ", ".join(_cast(writer, i) for i in columns)
    return f"(SELECT {cast} FROM unnest({given}) AS u({names}))"


def _element(writer: TableWriter, column: int) -> str:
    return writer.type_of(column) if writer.in_arrays(column) else "text"


def _cast(writer: TableWriter, column: int) -> str:
    name = writer.column(column)
    return name if writer.in_arrays(column) else f"{name}::{writer.type_of(column)} AS {name}"


def _array(values: Sequence[Value]) -> str:
    try:
        joined = "\0".join(values)  # type: ignore[arg-type]  # a NULL raises
    except TypeError:
        return "{" + ",".join(["NULL" if v is None else f'"{_escaped(str(v))}"' for v in values]) + "}"
    # no PostgreSQL text holds a NUL, so that it parts the values until they are escaped
    return '{"' + _escaped(joined).replace("\0", '","') + '"}'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
