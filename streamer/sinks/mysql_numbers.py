"""Numbers as columns of MySQL and MariaDB hold them: which texts are such numbers, and what comes nearest to those that are not.

The usual value is recognised by one regular expression and stays the text that it is. Where a value would be rounded, also by a
column of the user's own that is narrower than the source's, that is told: the server rounds decimals with no more than a note.

https://dev.mysql.com/doc/refman/8.4/en/numeric-types.html
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Final

from streamer.sinks.postgres_types import BOOLEAN, FIRST_USER_OID, FLOATS
from streamer.sinks.unrepresentable import Unrepresentable

_BITS: Final = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_SOURCE_BITS: Final = {21: 16, 23: 32, 20: 64}
_BOOLEANS: Final = {"t": "1", "f": "0"}
_EXACT: Final = Context(prec=200_000, rounding=ROUND_HALF_UP)  # PostgreSQL's numeric has up to 147,455 digits
_LARGEST: Final = "1.7976931348623157e308"
_LARGEST_FLOAT: Final = "3.40282e38"  # the server refuses the decimal text of the very largest one
_MONEY: Final = str.maketrans("", "", "$,")

Number = Callable[[str], str]


def integer(type_oid: int, data_type: str, *, unsigned: bool) -> Number | None:
    """Return the conversion to an integer column; None if every value goes as it is."""
    bits = _BITS[data_type]
    if not unsigned and _SOURCE_BITS.get(type_oid, 65) <= bits:
        return None
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def convert(text: str) -> str:
        number = _decimal(text, str(low), str(high))
        whole = number.to_integral_value(context=_EXACT)
        nearest = str(int(min(max(whole, low), high)))
        if whole != number:
            raise Unrepresentable(text, f"is not a whole number, as {data_type} wants", nearest)
        if not low <= whole <= high:
            raise Unrepresentable(text, f"is not within {low} and {high}", nearest)
        return nearest

    return _with_booleans(type_oid, convert)


def decimal(type_oid: int, digits: int, scale: int, *, unsigned: bool) -> Number:
    """Return the conversion to a decimal column of so many digits, `scale` of them behind the point."""
    left = digits - scale
    usual = re.compile(
        rf"{'' if unsigned else '-?'}(?:0|[0-9]{{1,{left}}})(?:\.[0-9]{{0,{scale}}}0*)?" if left else r"-?0(?:\.0*)?"
    )
    largest = f"{'9' * left or '0'}.{'9' * scale}".rstrip(".")
    smallest = "0" if unsigned else f"-{largest}"
    unit = Decimal(1).scaleb(-scale)

    def convert(text: str) -> str:
        if usual.fullmatch(text):
            return text
        number = _decimal(text, smallest, largest)
        rounded = number.quantize(unit, context=_EXACT)
        nearest = f"{min(max(rounded, Decimal(smallest)), Decimal(largest)):f}"
        if not Decimal(smallest) <= rounded <= Decimal(largest):
            raise Unrepresentable(text, f"is not within {smallest} and {largest}", nearest)
        if rounded != number:
            raise Unrepresentable(text, f"has more than {scale} decimal places", nearest)
        return nearest

    return _with_booleans(type_oid, convert)


def double(type_oid: int) -> Number:
    """Return the conversion to a double column."""
    if type_oid in FLOATS:
        return _finite

    def convert(text: str) -> str:
        number = _decimal(text, f"-{_LARGEST}", _LARGEST)
        near = float(number)
        if math.isinf(near):
            raise Unrepresentable(text, "is out of range", _LARGEST if near > 0 else f"-{_LARGEST}")
        if Decimal(repr(near)) != number:
            raise Unrepresentable(text, "has more digits than a double holds", repr(near))
        return f"{number}" if "$" in text else text

    return _with_booleans(type_oid, convert)


def single(type_oid: int) -> Number:
    """Return the conversion to a float column, of single precision."""

    def convert(text: str) -> str:
        number = float(_decimal(text, f"-{_LARGEST_FLOAT}", _LARGEST_FLOAT))
        if abs(number) > float(_LARGEST_FLOAT):
            raise Unrepresentable(text, "is out of range", _LARGEST_FLOAT if number > 0 else f"-{_LARGEST_FLOAT}")
        if type_oid != 700 and struct.unpack("f", struct.pack("f", number))[0] != number:
            raise Unrepresentable(text, "has more digits than a float holds", text)
        return text

    return _with_booleans(type_oid, convert)


def _finite(text: str) -> str:
    if text[-1] in "yN":  # Infinity, -Infinity, NaN
        _decimal(text, f"-{_LARGEST}", _LARGEST)
    return text


def _with_booleans(type_oid: int, convert: Number) -> Number:
    """Let t and f be 1 and 0, where the type is boolean, or may be a domain over it."""
    if type_oid == BOOLEAN:
        return _BOOLEANS.__getitem__
    if type_oid < FIRST_USER_OID:
        return convert
    return lambda text: _BOOLEANS.get(text) or convert(text)


def _decimal(text: str, smallest: str, largest: str) -> Decimal:
    """The number; an infinity comes nearest to `smallest` or `largest`."""
    try:
        number = Decimal(text.translate(_MONEY) if "$" in text else text)
    except InvalidOperation:
        raise Unrepresentable(text, "is not a number") from None
    if number.is_nan():
        raise Unrepresentable(text, "is not a number that the column's type knows")
    if number.is_infinite():
        raise Unrepresentable(text, "is infinite", largest if number > 0 else smallest)
    return number
