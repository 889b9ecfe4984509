"""Which column of MySQL or MariaDB holds the values of a PostgreSQL type: the mapping that docs/types.md shows. Pure.

A type is chosen so that every value, or all but values like infinity, reads back as it was; what no type of the engine can hold in
its own form (numeric without bounds, intervals, arrays, ranges) is text as PostgreSQL prints it, which PostgreSQL also takes back.
The trap: the engines offer types of the same name that hold less: FLOAT compares badly, CHAR drops trailing blanks, JSON rounds
numbers or refuses deep nesting, INET6 has no netmask, UUID refuses some, and the usual collations take 'a' and 'a ' for one key.

https://dev.mysql.com/doc/refman/8.4/en/data-types.html, https://mariadb.com/kb/en/data-types/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from streamer.sinks.postgres_types import SourceType

LONGEST_VARCHAR: Final = 1000
"""Characters up to which a text of limited length is a VARCHAR: all of a row's share 65,535 bytes."""
DIGITS: Final = 65
"""https://dev.mysql.com/doc/refman/8.4/en/precision-math-decimal-characteristics.html"""


@dataclass(frozen=True, slots=True)
class Engine:
    """Which of the two a server is."""

    flavour: Literal["mysql", "mariadb"]
    version: tuple[int, int, int]

    @classmethod
    def of(cls, version: str) -> Engine:
        """The engine by what SELECT VERSION() says. Raises ValueError."""
        # replication used to prefix MariaDB's version with 5.5.5-
        match = re.search(r"(\d+)\.(\d+)\.(\d+)", version.removeprefix("5.5.5-"))
        if match is None:
            raise ValueError(f"{version!r} is no version")
        return cls("mariadb" if "mariadb" in version.lower() else "mysql", (int(match[1]), int(match[2]), int(match[3])))

    @property
    def collation(self) -> str:
        """Which of utf8mb4 compares bytes, trailing blanks included."""
        return "utf8mb4_nopad_bin" if self.flavour == "mariadb" else "utf8mb4_0900_bin"

    @property
    def scale(self) -> int:
        """The greatest number of decimal places."""
        return 38 if self.flavour == "mariadb" else 30


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type of a column: a `fixed` one, or text or bytes of some length."""

    fixed: str = ""
    binary: bool = False
    #: of a text; None if nothing limits it
    chars: int | None = None

    @property
    def key_bytes(self) -> int | None:
        """How much of an index a value may take; None if nothing limits it."""
        if self.fixed:
            return 36
        return None if self.chars is None else 4 * self.chars

    def sql(self, engine: Engine, key_bytes: int | None = None) -> str:
        """The type as a column is declared with it; `key_bytes` is what an index leaves for it."""
        if self.fixed:
            return self.fixed
        if self.binary:
            return "LONGBLOB" if key_bytes is None else f"VARBINARY({key_bytes})"
        chars = self.chars
        if key_bytes is not None:
            chars = key_bytes // 4 if chars is None else min(chars, key_bytes // 4)
        varchar = chars is not None and (chars <= LONGEST_VARCHAR or key_bytes is not None)
        return f"{f'VARCHAR({chars})' if varchar else 'LONGTEXT'} CHARACTER SET utf8mb4 COLLATE {engine.collation}"


_INTEGERS: Final = {
    "boolean": "TINYINT(1)",
    "smallint": "SMALLINT",
    "integer": "INT",
    "bigint": "BIGINT",
    "oid": "INT UNSIGNED",
    "xid": "INT UNSIGNED",
    "cid": "INT UNSIGNED",
    "xid8": "BIGINT UNSIGNED",
}
_OTHERS: Final = {"real": "DOUBLE", "double precision": "DOUBLE", "money": "DECIMAL(19,2)", "date": "DATE"}
_MOMENTS: Final = {
    "time without time zone": "TIME",
    "timestamp without time zone": "DATETIME",
    "timestamp with time zone": "DATETIME",
}
_TEXTS: Final = {
    '"char"': 4,
    "name": 63,
    "enum": 63,
    "tid": 32,
    "time with time zone": 32,
    "interval": 96,
    "inet": 49,
    "cidr": 49,
    "macaddr": 17,
    "macaddr8": 23,
    "pg_lsn": 17,
}
"""Types whose values are short texts, and how many characters they can have."""


def column_type(source: SourceType, engine: Engine) -> ColumnType:
    """Return the type of the column that holds values of a PostgreSQL type."""
    name, modifiers = source.name, source.modifiers
    if name in _MOMENTS:
        return ColumnType(f"{_MOMENTS[name]}({modifiers[0] if modifiers else 6})")
    if name == "numeric":
        return _numeric(modifiers, engine)
    if name == "uuid":
        return ColumnType("CHAR(36) CHARACTER SET ascii COLLATE ascii_bin")
    if name == "bytea":
        return ColumnType(binary=True)
    if name in ("character", "character varying", "bit", "bit varying"):
        return ColumnType(chars=modifiers[0] if modifiers else None)
    return ColumnType(_INTEGERS.get(name) or _OTHERS.get(name) or "", chars=_TEXTS.get(name))


def _numeric(modifiers: tuple[int, ...], engine: Engine) -> ColumnType:
    """A scale may be negative, or greater than the precision, from version 15 on."""
    if not modifiers:
        return ColumnType()
    precision, scale = modifiers if len(modifiers) == 2 else (modifiers[0], 0)
    digits, places = max(precision - min(scale, 0), scale), max(scale, 0)
    if digits > DIGITS or places > engine.scale:
        return ColumnType(chars=digits + 3)  # a sign, a zero and a point
    return ColumnType(f"DECIMAL({digits},{places})")
