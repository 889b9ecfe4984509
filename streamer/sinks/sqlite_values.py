r"""Values of PostgreSQL as columns of SQLite hold them: one conversion a column, chosen once. Pure.

A STRICT table takes nothing but its columns' types; what does not fit raises Unrepresentable. Any other table takes anything, and
only what has a form of its own in SQLite is converted: booleans, bytes and floats. The traps: SQLite's own reading of decimal
floats is off by a bit now and then, so floats are read here; and the type of a domain is not known here, so its values are told by
their looks (\x and digits, t or f).

https://www.sqlite.org/stricttables.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias

from streamer.sinks.postgres_types import BOOLEAN, BYTEA, FIRST_USER_OID, FLOATS
from streamer.sinks.unrepresentable import Unrepresentable

Convert: TypeAlias = Callable[[str], str | bytes | int | float]

_INTEGERS: Final = (20, 21, 23, 26, 28, 29)
_BOOLEANS: Final = {"t": 1, "f": 0}
_HEX: Final = re.compile(r"\\x(?:[0-9a-f]{2})*")
_FLOAT: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?|-?Infinity|NaN")
_LOWEST: Final = -(2**63)
_HIGHEST: Final = 2**63 - 1
_LARGEST: Final = 1.7976931348623157e308


def conversion(type_oid: int, declared: str, *, strict: bool) -> Convert | None:
    """Return the conversion to a column that is declared so, in upper case; None if the text goes as it is."""
    if strict and declared != "ANY":
        return _strict(type_oid, declared)
    if type_oid == BOOLEAN:
        return boolean
    if type_oid == BYTEA:
        return blob
    if type_oid in FLOATS:
        return real
    return None if type_oid < FIRST_USER_OID else _domain(declared)


def boolean(text: str) -> int:
    """Return a boolean as SQLite has them."""
    return _BOOLEANS[text]


def blob(text: str) -> bytes:
    r"""Return the bytes of a bytea, written as \x and hexadecimal digits."""
    return bytes.fromhex(text.removeprefix("\\x"))


def real(text: str) -> float | str:
    """Return a float; NaN and infinities stay text, as SQLite would make NULL of a NaN."""
    return text if text[-1] in "yN" else float(text)


def _domain(declared: str) -> Convert | None:
    """Where the type is the user's, and may be a domain, what the column was made for tells what it is a domain over."""
    if declared == "INTEGER":
        return lambda text: _BOOLEANS.get(text, text)
    if declared == "BLOB":
        return lambda text: blob(text) if _HEX.fullmatch(text) else text
    if declared in ("REAL", "ANY"):
        return lambda text: real(text) if _FLOAT.fullmatch(text) else text
    return None


def _strict(type_oid: int, declared: str) -> Convert | None:
    if declared in ("INTEGER", "INT"):
        if type_oid == BOOLEAN:
            return boolean
        return None if type_oid in _INTEGERS else _integer
    if declared == "REAL":
        return _finite if type_oid in FLOATS else _exact
    if declared == "BLOB":
        return blob if type_oid == BYTEA else _bytes(type_oid)
    return None


def _integer(text: str) -> int:
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    number = _decimal(text)
    if number.is_nan():
        raise Unrepresentable(text, "is not a number that the column's type knows")
    bounded = min(max(number, Decimal(_LOWEST)), Decimal(_HIGHEST))
    nearest = int(bounded.to_integral_value())
    if bounded != number:
        raise Unrepresentable(text, f"is not within {_LOWEST} and {_HIGHEST}", nearest)
    if nearest != number:
        raise Unrepresentable(text, "is not a whole number", nearest)
    return nearest


def _finite(text: str) -> float:
    if text == "NaN":
        raise Unrepresentable(text, "is not a number that the column's type knows")
    return float(text)  # an infinity too


def _exact(text: str) -> float:
    number = _decimal(text)
    if number.is_nan():
        raise Unrepresentable(text, "is not a number that the column's type knows")
    near = float(number)
    if abs(near) > _LARGEST and number.is_finite():
        raise Unrepresentable(text, "is out of range", _LARGEST if near > 0 else -_LARGEST)
    if number.is_finite() and Decimal(repr(near)) != number:
        raise Unrepresentable(text, "has more digits than a double holds", near)
    return near


def _bytes(type_oid: int) -> Convert:
    if type_oid < FIRST_USER_OID:
        return str.encode
    return lambda text: blob(text) if _HEX.fullmatch(text) else text.encode()


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise Unrepresentable(text, "is not a number") from None
