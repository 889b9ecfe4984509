"""Columns that are merged instead of fought over: `delta`, `max` and `min`. Pure.

A merge takes three values: what is stored here, and what the writer of the change had before and after. NULL and "there is no
row" both count as absent: nothing to add to, nothing to compare with. Numbers are exact decimals, never floats; NaN and the
infinities behave as in PostgreSQL's numeric, where they swallow what is added, so that every order ends in the same value.

The trap: where this node stores exactly what the writer had before, nobody else has written, and the new value is taken as it
is. That keeps NULL, the number of digits after the point, and the lowering of a `max` column as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Final, TypeAlias

Merge: TypeAlias = Callable[[str | None, str | None, str | None], str | None]
"""(stored here, the writer's old value, the writer's new value) -> the value to store."""

_EXACT_NUMBERS: Final = frozenset({20, 21, 23, 1700})  # bigint, smallint, integer, numeric
_FLOATS: Final = frozenset({700, 701})
_MOMENTS: Final = frozenset({1082, 1114, 1184})  # date, timestamp, timestamptz

_UNBOUNDED: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
"""Nothing is rounded, nothing raised: Infinity - Infinity is NaN."""
_ABSENT: Final = Decimal(0)

_MOMENT: Final = re.compile(r"(\d+)-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d(?:\.\d+)?)(?:\+00)?)?( BC)?")


def delta(stored: str | None, old: str | None, new: str | None) -> str | None:
    """Return `stored` plus the difference from `old` to `new`."""
    if stored == old:
        return new
    if old == new:
        return stored
    total = _UNBOUNDED.subtract(_UNBOUNDED.add(_number(stored), _number(new)), _number(old))
    return "NaN" if total.is_nan() else format(total, "f")


def _number(value: str | None) -> Decimal:
    return _ABSENT if value is None else Decimal(value)


def merge_of(how: str, type_oid: int) -> Merge | None:
    """Return the merge `delta`, `max` or `min` for a column's type; None if the type has no such thing.

    `delta` takes integers and numeric; `max` and `min` floats, date, timestamp and timestamp with time zone as well. Moments are
    read as the sessions of streamer write them: ISO, in UTC.
    """
    if how == "delta":
        return delta if type_oid in _EXACT_NUMBERS else None
    if type_oid in _EXACT_NUMBERS | _FLOATS:
        return _extreme(how, _numeric_order)
    return _extreme(how, _moment_order) if type_oid in _MOMENTS else None


def _extreme(how: str, order: Callable[[str], tuple[object, ...]]) -> Merge:
    # equal values may be written differently ("1.0", "1.00"): every node must choose the same text
    choose: Callable[..., str] = max if how == "max" else min

    def merge(stored: str | None, old: str | None, new: str | None) -> str | None:
        if stored == old or stored is None:
            return new
        if old == new or new is None:
            return stored
        return choose(stored, new, key=lambda value: (order(value), value))

    return merge


def _numeric_order(value: str) -> tuple[object, ...]:
    """NaN is greater than everything, as PostgreSQL sorts."""
    return (1,) if value == "NaN" else (0, Decimal(value))


def _moment_order(value: str) -> tuple[object, ...]:
    """Order by era and size of the year, then by its days and times; raises ValueError for text that is no such moment."""
    if value in ("infinity", "-infinity"):
        return (2,) if value == "infinity" else (-1,)
    match = _MOMENT.fullmatch(value)
    if match is None:
        raise ValueError(f'"{value}" is not a date or a timestamp in ISO form and UTC')
    year, *rest, era = match.groups()
    # time goes forward within a year that is counted backwards
    return (0, -int(year), *(Decimal(part or 0) for part in rest)) if era else (1, int(year), *(Decimal(p or 0) for p in rest))
