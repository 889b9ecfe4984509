r"""Values of MySQL, MariaDB and SQLite in the one form in which they are compared. Pure.

The source's text goes through the same converter as a sink's, and then through the same function as what the target gives back. So
what an engine rounds, pads or spells in its own way is equal, and nothing else is.

The traps: FLOAT is printed with six digits, so it is read as a double; dates are read as text, because year 1 and 24:00:00 are no
dates of Python's; SQLite turns a text into a number where the column was declared so.

https://www.sqlite.org/datatype3.html#type_affinity
"""

from __future__ import annotations

import ipaddress
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from decimal import Context, Decimal, InvalidOperation
from typing import Any, Final, TypeAlias

from streamer.model import OnUnrepresentable
from streamer.sinks.mysql_ddl import quote
from streamer.sinks.mysql_values import TargetColumn
from streamer.sinks.unrepresentable import Unrepresentable

Alike: TypeAlias = Callable[[Any], object]
"""Makes of a value, never NULL, what is compared."""
Expected: TypeAlias = Callable[[str], object]
"""Makes of the source's text what is compared with the target's value; None for NULL."""

_INTEGERS: Final = ("tinyint", "smallint", "mediumint", "int", "bigint", "year")
_MOMENTS: Final = ("date", "datetime", "timestamp", "time")
_EXACT: Final = Context(prec=200)


def expected(convert: Callable[[str], Any] | None, alike: Alike, policy: OnUnrepresentable) -> Expected:
    """Return what the target should hold for the source's text: converted as the sink does it, replaced as the config has it."""

    def value(text: str) -> object:
        try:
            return alike(text if convert is None else convert(text))
        except Unrepresentable as problem:
            if policy == "error":
                return f"unrepresentable: {text}"
            return None if policy == "null" or problem.nearest is None else alike(problem.nearest)

    return value


# -- MySQL and MariaDB -------------------------------------------------------------------------------------------------------------


def mysql_expression(column: TargetColumn) -> str:
    """Return the expression that the column is read with."""
    name, kind = quote(column.name), column.data_type
    if kind in ("float", "bit"):
        return f"{name} + 0{'e0' if kind == 'float' else ''}"
    texts = (*_MOMENTS, "uuid", "inet4", "inet6", "decimal")
    return f"CAST({name} AS CHAR)" if kind in texts else name


def mysql_alike(column: TargetColumn) -> Alike:
    """Return what brings a value written to the column, or read by its expression, into one form."""
    kind = column.data_type
    if kind in _INTEGERS or kind == "bit":
        return int
    if kind == "decimal":
        return _fixed(column.scale or 0)
    if kind == "double":
        return lambda value: float(value) + 0.0  # there is no -0
    if kind == "float":
        return lambda value: struct.unpack("f", struct.pack("f", float(value)))[0] + 0.0
    if kind in ("datetime", "timestamp", "time"):
        return _without_zeros
    if kind == "char":
        return lambda value: str(value).rstrip(" ")
    if kind == "json":
        return _json
    if kind in ("uuid", "inet4", "inet6"):
        return _address if kind != "uuid" else lambda value: str(value).lower()
    return lambda value: value


def _fixed(scale: int) -> Alike:
    unit = Decimal(1).scaleb(-scale)

    def alike(value: object) -> str:
        number = Decimal(str(value)).quantize(unit, context=_EXACT)
        return f"{number if number else abs(number):f}"

    return alike


def _without_zeros(value: object) -> str:
    text = str(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _json(value: object) -> str:
    return json.dumps(json.loads(str(value)), sort_keys=True)


def _address(value: object) -> str:
    return str(ipaddress.ip_address(str(value)))


# -- SQLite ------------------------------------------------------------------------------------------------------------------------


def sqlite_alike(declared: str, *, strict: bool) -> Alike:
    """Return what brings a value written to a column declared so, or read from it, into one form."""
    if (strict and declared == "ANY") or not declared or declared == "BLOB":
        return _number
    if "INT" in declared:
        return _as_number
    if any(word in declared for word in ("CHAR", "CLOB", "TEXT")):
        return lambda value: value if isinstance(value, bytes) else str(value)
    return _as_number


def _number(value: object) -> object:
    """A float without decimals is the integer; SQLite stores it so, and gives back either."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def _as_number(value: object) -> object:
    """What a column for numbers makes of a text."""
    if not isinstance(value, str):
        return _number(value)
    with suppress(ValueError):
        return int(value)
    try:
        number = Decimal(value)
    except InvalidOperation:
        return value
    return _number(float(number)) if number.is_finite() else value
