"""The trigger functions of captured tables, written for the types of their keys. Pure: from columns to statements.

A function's name is made from its text, so tables whose keys are alike share their functions, and whether a trigger is as this code
would make it is told by the name of its function. The traps: a function of ours runs in the session of whoever changes a row, with
their settings and their search_path, and with our rights. So nothing in it is looked up by a path, and where the text of a type
depends on settings the function has its own.

https://www.postgresql.org/docs/current/plpgsql-trigger.html
https://www.postgresql.org/docs/current/sql-createfunction.html#SQL-CREATEFUNCTION-SECURITY
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from streamer import statements
from streamer.capture.definition_types import quote
from streamer.model import ColumnDefinition, TableDefinition

Event: TypeAlias = Literal["insert", "update", "delete"]
EVENTS: Final[tuple[Event, ...]] = ("insert", "update", "delete")
FILE: Final = "postgres/delta.sql"

DIGITS: Final = 90000  # extra_float_digits = 3, bytea_output: version 9.0
LAST_VALUE: Final = 100000  # pg_sequence_last_value
NONDETERMINISTIC: Final = 120000  # collations in which different texts are equal

_FIXED: Final = frozenset({16, 20, 21, 23, 26, 1082, 1114, 1184, 2950})
"""bool, int8, int2, int4, oid, date, timestamp, timestamptz, uuid: equal values are the same bytes."""
_TEXTS: Final = frozenset({25, 1043})
"""text, varchar."""
_PLAIN: Final = _FIXED - {1082, 1114, 1184} | _TEXTS | {18, 19, 650, 774, 829, 869, 1042, 1083, 1266, 1560, 1562, 1700}
"""No setting changes the text: also "char", name, cidr, macaddr8, macaddr, inet, bpchar, time, timetz, bit, varbit, numeric."""
_BY_TYPE: Final = {
    1082: ("datestyle",),
    1114: ("datestyle",),
    1184: ("datestyle", "timezone"),
    1186: ("intervalstyle",),
    700: ("extra_float_digits",),
    701: ("extra_float_digits",),
    17: ("bytea_output",),
    790: ("lc_monetary",),
}
"""date, timestamp, timestamptz, interval, float4, float8, bytea, money: what their text depends on. Of any other type: all."""


@dataclass(frozen=True, slots=True)
class Function:
    """One trigger function: its name in the schema streamer, and the statements that make it."""

    name: str
    script: str


@dataclass(frozen=True, slots=True)
class Marker:
    """What the comment of a function says: how it tells of a row."""

    key: tuple[str, ...]
    #: the columns without a change of which an update is passed over; None: every update counts
    columns: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return json.dumps({"key": self.key, "columns": self.columns}, ensure_ascii=False)

    @classmethod
    def parse(cls, comment: str) -> Marker:
        """Return what a comment says. Raises ValueError if it is not ours."""
        try:
            told: dict[str, Any] = json.loads(comment)
            columns = told["columns"]
            return cls(tuple(told["key"]), None if columns is None else tuple(columns))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a marker: {comment!r}") from error


def functions(
    table: TableDefinition,
    key: Sequence[str],
    unique: Collection[str],
    columns: Collection[str] | None,
    server: int,
    *,
    masters: bool,
) -> dict[Event, Function]:
    """Return the functions of a table for a server of this version.

    `key` tells rows apart. An update that changes it, or one of the columns `unique`, is noted as a delete and an insert: their
    values must be free before another row takes them. Updates that change nothing of `columns` are passed over; None: none is.
    `masters`: several nodes write the table, and it matters what was written behind a savepoint.
    """
    texts = statements.parts(FILE)
    known = {c.name: c for c in table.columns}
    keys = [known[name] for name in key]
    moved = [c for c in table.columns if c.name in unique and c.name not in key and (columns is None or c.name in columns)]
    apart = {c.name for c in (*keys, *moved)}
    watched = None if columns is None else [c for c in table.columns if c.name in columns and c.name not in apart]
    values = {
        "old_key": _key("OLD", keys),
        "new_key": _key("NEW", keys),
        "key_changes": _differ([*keys, *moved], server),
        "unless_captured": "" if watched is None else f"ELSIF NOT ({_differ(watched, server)}) THEN\n        RETURN NULL;",
        "declared": "DECLARE\n    writer bigint;" if masters else "",
        "returned": " RETURNING xmin::pg_catalog.text::pg_catalog.int8 INTO writer" if masters else "",
        "nested": texts["fragment nested"] if masters else "",
        "wake": texts["fragment wake" if server >= LAST_VALUE else "fragment wake_84"],
    }
    marks = dict.fromkeys(EVENTS, Marker(tuple(key)))
    if watched is not None:
        marks["update"] = Marker(tuple(key), tuple(c.name for c in (*moved, *watched)))
    pinned = dict.fromkeys(EVENTS, keys) | {"update": [*keys, *moved, *(watched or ())]}
    return {
        event: _function(
            event,
            texts[f"function {event}"],
            values | {"settings": _settings(pinned[event], server), "comment": _literal(str(marks[event]))},
        )
        for event in EVENTS
    }


def _function(event: Event, template: str, values: dict[str, str]) -> Function:
    digest = hashlib.md5(statements.fill(template, values).encode(), usedforsecurity=False).hexdigest()
    name = f"delta_{event}_{digest[:16]}"
    # no name holds the digest of a text that holds the name, so nothing in the body ends it
    return Function(name, statements.fill(template, values | {"function": name, "tag": f"body_{digest}"}))


def _key(row: str, columns: Sequence[ColumnDefinition]) -> str:
    return f"ARRAY[{', '.join(f'{row}.{quote(c.name)}::pg_catalog.text' for c in columns)}]"


def _differ(columns: Sequence[ColumnDefinition], server: int) -> str:
    """The condition for an update that changes one of the columns, as the WAL sees it: 1.0 and 1.00 are two values.

    The text of a row is compared where there is no cheaper way: it needs no operator of the type, and knows NULL.
    """
    tests = [test for c in columns if (test := _differs(c, server))]
    if rest := [quote(c.name) for c in columns if not _differs(c, server)]:
        old, new = (f"ROW({', '.join(f'{row}.{name}' for name in rest)})::pg_catalog.text" for row in ("OLD", "NEW"))
        tests.append(f"{old} OPERATOR(pg_catalog.<>) {new}")
    return " OR ".join(tests) or "false"


def _differs(column: ColumnDefinition, server: int) -> str:
    """The condition for a column whose values can be compared as they are; empty if they can't."""
    base, name = column.base_oid or column.type_oid, quote(column.name)
    collation = ' COLLATE pg_catalog."C"' if base in _TEXTS and server >= NONDETERMINISTIC else ""
    if not column.not_null or base not in _FIXED | _TEXTS:
        return ""
    return f"OLD.{name}{collation} OPERATOR(pg_catalog.<>) NEW.{name}"


def is_written_one_way(column: ColumnDefinition) -> bool:
    """Whether equal values of the column always are the same text, unless its collation says otherwise."""
    return column.enum or (column.base_oid or column.type_oid) in _FIXED | _TEXTS


def _settings(columns: Sequence[ColumnDefinition], server: int) -> str:
    """The settings that fix the text of the columns, as in `session`. Each costs something with every row."""
    values = {"datestyle": "ISO", "intervalstyle": "postgres", "timezone": "UTC", "lc_monetary": "C", "extra_float_digits": "2"}
    if server >= DIGITS:
        values |= {"extra_float_digits": "3", "bytea_output": "hex"}
    needed: set[str] = set()
    for column in columns:
        base = column.base_oid or column.type_oid
        if not column.enum and base not in _PLAIN:
            needed.update(_BY_TYPE.get(base, values))
    return " ".join(f"SET {name} = '{value}'" for name, value in values.items() if name in needed)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
