"""The values of a PostgreSQL type that ask the most of a column, and which of them one does not hold. Pure.

`streamer check` tries them on a column that is there with what writing converts by, so that it and writing never disagree. The
trap: of some types not even the column that `setup` would make holds all values (infinity); only what that one holds is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from streamer.sinks.postgres_types import SourceType
from streamer.sinks.unrepresentable import Unrepresentable

Convert: TypeAlias = Callable[[str], Any] | None
"""What makes a value for a column; None if the text goes as it is."""

_LENGTHS: Final = (256, 1_025, 65_536)
"""Of texts without a limit: each is more than some usual column holds."""
_WHOLE: Final = {
    "smallint": (-(2**15), 2**15 - 1),
    "integer": (-(2**31), 2**31 - 1),
    "bigint": (-(2**63), 2**63 - 1),
    "oid": (0, 2**32 - 1),
    "xid": (0, 2**32 - 1),
    "cid": (0, 2**32 - 1),
    "xid8": (0, 2**64 - 1),
}
_DOUBLES: Final = ("0.1", "-1.7976931348623157e+308", "5e-324", "NaN", "Infinity")
_OTHERS: Final = {
    "boolean": ("f", "t"),
    "real": ("0.1", "-3.4028235e+38", "1e-45", "NaN", "Infinity"),
    "double precision": _DOUBLES,
    "money": ("-$92,233,720,368,547,758.08", "$92,233,720,368,547,758.07"),
    "date": ("0001-01-01", "9999-12-31", "infinity"),
    "interval": ("-178956970 years -8 mons -2147483648 days -2562047788:00:54.775808",),
    "uuid": ("00000000-0000-1000-0000-000000000000", "ffffffff-ffff-ffff-7fff-ffffffffffff"),
    "inet": ("10.0.0.1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/127"),
    "cidr": ("10.0.0.0/8", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"),
    "macaddr": ("ff:ff:ff:ff:ff:ff",),
    "macaddr8": ("ff:ff:ff:ff:ff:ff:ff:ff",),
    "pg_lsn": ("FFFFFFFF/FFFFFFFF",),
    "tid": ("(4294967295,65535)",),
    '"char"': ("\\377",),
    "name": ("é" * 31, "x" * 63),
    "bytea": tuple("\\x" + "ff" * length for length in _LENGTHS),
    "json": ('{"a": 0.1234567890123456789}', *(f'"{"x" * length}"' for length in _LENGTHS)),
}
_ZONED: Final = ("timestamp with time zone", "time with time zone")


def extremes(source: SourceType) -> tuple[str, ...]:
    """Return values as PostgreSQL prints them; none where nothing is known of the type but its name."""
    name, modifiers = source.name, source.modifiers
    if name in _WHOLE:
        return tuple(map(str, _WHOLE[name]))
    if name == "numeric":
        return _numbers(modifiers)
    if name.startswith("time"):
        return _moments(name, modifiers)
    if name in ("bit", "bit varying"):
        return ("1" * (modifiers[0] if modifiers else _LENGTHS[0]),)
    if name in ("text", "character varying", "character"):
        return _texts(modifiers)
    return () if name in ("enum", "other") else _OTHERS.get("json" if name == "jsonb" else name) or _texts(())


def _numbers(modifiers: tuple[int, ...]) -> tuple[str, ...]:
    if not modifiers:
        return (f"-{'9' * 40}.{'9' * 40}", f"{'9' * 66}", "NaN")
    precision, scale = modifiers if len(modifiers) == 2 else (modifiers[0], 0)
    before, after = max(precision - scale, 0), max(scale, 0)
    digits = "9" * min(precision, before) + "0" * max(before - precision, 0) or "0"
    fraction = ("9" * min(precision, after)).rjust(after, "0")
    return (f"-{digits}.{fraction}".rstrip("."), "NaN")


def _moments(name: str, modifiers: tuple[int, ...]) -> tuple[str, ...]:
    places = modifiers[0] if modifiers else 6
    fraction, zone = f".{'9' * places}".rstrip("."), "+00" if name in _ZONED else ""
    if name == "time with time zone":
        return (f"23:59:59{fraction}-15:59:59", f"00:00:00{zone}")
    if name == "time without time zone":
        return (f"23:59:59{fraction}", "24:00:00")
    usual = f"2001-01-01 01:02:03{fraction.replace('9', '1')}{zone}"
    return (usual, f"0001-01-01 00:00:00{zone}", f"9999-12-31 23:59:59{fraction}{zone}", "infinity")


def _texts(modifiers: tuple[int, ...]) -> tuple[str, ...]:
    """Of each length, and one with a character beyond the basic plane of Unicode."""
    lengths = tuple(min(length, modifiers[0]) for length in _LENGTHS) if modifiers else _LENGTHS
    return ("€" * min(lengths), "🐘", *("x" * length for length in dict.fromkeys(lengths)))


def lost(source: SourceType, there: Convert, made: Convert) -> Unrepresentable | None:
    """Return the first of the type's values that the column `there` does not hold, though the one that would be made does."""
    for value in extremes(source) if there is not None else ():
        problem = _problem(value, there)
        if problem is not None and _problem(value, made) is None:
            return problem
    return None


def _problem(value: str, convert: Convert) -> Unrepresentable | None:
    try:
        if convert is not None:
            convert(value)
    except Unrepresentable as problem:
        return problem
    return None
