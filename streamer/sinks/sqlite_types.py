"""Which column of SQLite holds the values of a PostgreSQL type: the mapping that docs/types.md shows. Pure.

SQLite has integers of 64 bits, doubles, text and bytes, and nothing else; whatever is not one of these is text as PostgreSQL prints
it. The traps: a column of type REAL makes NULL of NaN and 0 of -0, so floats are of type ANY; in a table that is not STRICT any
column takes anything, and a text of digits in a column of another name would become a number.

https://www.sqlite.org/stricttables.html, https://www.sqlite.org/datatype3.html
"""

from __future__ import annotations

import sqlite3
from typing import Final

from streamer.sinks.postgres_types import SourceType

HAS_STRICT: Final = sqlite3.sqlite_version_info >= (3, 37)

_INTEGERS: Final = ("boolean", "smallint", "integer", "bigint", "oid", "xid", "cid")
_FLOATS: Final = ("real", "double precision")


def column_type(source: SourceType, *, strict: bool) -> str:
    """Return the type of the column that holds values of a PostgreSQL type."""
    if source.name in _INTEGERS:
        return "INTEGER"
    if source.name in _FLOATS:
        return "ANY" if strict else "REAL"
    return "BLOB" if source.name == "bytea" else "TEXT"
