"""PostgreSQL's built-in types: by their oids, which never change, and as format_type() writes them, modifiers included. Pure.

What a column of another engine is made of goes by these names. A type that is not here belongs to an extension or to the user; its
values travel as text.

https://www.postgresql.org/docs/current/datatype.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from streamer.model import ColumnDefinition

TYPES: Final = {
    16: "boolean",
    17: "bytea",
    18: '"char"',
    19: "name",
    20: "bigint",
    21: "smallint",
    23: "integer",
    24: "regproc",
    25: "text",
    26: "oid",
    27: "tid",
    28: "xid",
    29: "cid",
    114: "json",
    142: "xml",
    194: "pg_node_tree",
    600: "point",
    601: "lseg",
    602: "path",
    603: "box",
    604: "polygon",
    628: "line",
    650: "cidr",
    700: "real",
    701: "double precision",
    718: "circle",
    774: "macaddr8",
    790: "money",
    829: "macaddr",
    869: "inet",
    1033: "aclitem",
    1042: "character",
    1043: "character varying",
    1082: "date",
    1083: "time without time zone",
    1114: "timestamp without time zone",
    1184: "timestamp with time zone",
    1186: "interval",
    1266: "time with time zone",
    1560: "bit",
    1562: "bit varying",
    1700: "numeric",
    1790: "refcursor",
    2202: "regprocedure",
    2203: "regoper",
    2204: "regoperator",
    2205: "regclass",
    2206: "regtype",
    2950: "uuid",
    2970: "txid_snapshot",
    3220: "pg_lsn",
    3361: "pg_ndistinct",
    3402: "pg_dependencies",
    3614: "tsvector",
    3615: "tsquery",
    3642: "gtsvector",
    3734: "regconfig",
    3769: "regdictionary",
    3802: "jsonb",
    3904: "int4range",
    3906: "numrange",
    3908: "tsrange",
    3910: "tstzrange",
    3912: "daterange",
    3926: "int8range",
    4072: "jsonpath",
    4089: "regnamespace",
    4096: "regrole",
    4191: "regcollation",
    4451: "int4multirange",
    4532: "nummultirange",
    4533: "tsmultirange",
    4534: "tstzmultirange",
    4535: "datemultirange",
    4536: "int8multirange",
    4600: "pg_brin_bloom_summary",
    4601: "pg_brin_minmax_multi_summary",
    5017: "pg_mcv_list",
    5038: "pg_snapshot",
    5069: "xid8",
}
OIDS: Final = {name: oid for oid, name in TYPES.items()}

BOOLEAN: Final = 16
BYTEA: Final = 17
FLOATS: Final = frozenset({700, 701})
MONEY: Final = 790
FIRST_USER_OID: Final = 16384
"""Types of users and extensions begin here: enums, composites, and domains, whose values look like those of their base type."""

_MODIFIERS: Final = re.compile(r"\((-?\d+)(?:,(-?\d+))?\)")


@dataclass(frozen=True, slots=True)
class SourceType:
    """The type of a source's column; of a domain, what it is a domain over."""

    #: as in TYPES, "enum", "array", or "other"
    name: str
    #: numbers in parentheses, like the 10 and 2 of numeric(10,2)
    modifiers: tuple[int, ...] = ()

    @classmethod
    def of(cls, column: ColumnDefinition) -> SourceType:
        """The type of a column as the catalog defines it."""
        text = column.base_name or column.type_name
        if text.endswith("[]"):
            return cls("array")
        if column.enum:
            return cls("enum")
        name = TYPES.get(column.base_oid or column.type_oid)
        if name is None:
            return cls("other")
        match = _MODIFIERS.search(text)
        return cls(name, tuple(int(n) for n in match.groups() if n is not None) if match else ())
