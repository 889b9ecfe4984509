"""A table with a column of every mapped type, and random values for it, as a PostgreSQL server takes them.

What only some servers have (multiranges are from 14 on) is left out where it is missing, and XML, which some are built without,
everywhere. The trap: a value is compared as the server prints it, so it is made here as any text that the server reads.
"""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.servers import Database

Make = Callable[[random.Random], str]
"""Makes the text of a value."""

TYPES: Final = """
CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'Happy', 'ÄÖ', '');
CREATE TYPE pair AS (a integer, b text);
CREATE TYPE textrange AS RANGE (subtype = text);
CREATE DOMAIN price AS numeric(10, 2);
CREATE DOMAIN dear AS price CHECK (value > 100);
CREATE DOMAIN flag AS boolean;
CREATE DOMAIN data AS bytea;
CREATE DOMAIN words AS text;
CREATE DOMAIN rate AS double precision;
CREATE DOMAIN feeling AS mood;
"""

_ALPHABET: Final = "aZ09 _-.,:;'\"\\/%$(){}[]<>\t\n\r\b\v\f\x01\x7fäß€Я日𝄞\u2028\ufffd🐘"


def _text(longest: int) -> Make:
    return lambda dice: "".join(dice.choices(_ALPHABET, k=dice.randint(0, longest)))


def _whole(low: int, high: int) -> Make:
    return lambda dice: str(dice.choice([low, high, 0, 1, dice.randint(low, high)]))


def _digits(dice: random.Random, before: int, after: int) -> str:
    whole = "".join(dice.choices("0123456789", k=dice.randint(1, before)))
    fraction = "".join(dice.choices("0123456789", k=dice.randint(0, after)))
    return f"{dice.choice(['', '-'])}{whole}{'.' if fraction else ''}{fraction}"


def _decimal(before: int, after: int) -> Make:
    return lambda dice: _digits(dice, before, after)


def _float(form: str) -> Make:
    def make(dice: random.Random) -> str:
        while True:
            (value,) = struct.unpack(form, dice.randbytes(struct.calcsize(form)))
            if value - value == 0 and value != 0:
                return dice.choice([repr(value), "0", "1", "0.1", "-1.5", "1e20"])

    return make


def _bits(longest: int, shortest: int) -> Make:
    return lambda dice: "".join(dice.choices("01", k=dice.randint(shortest, longest)))


def _bytes(dice: random.Random) -> str:
    return "\\x" + dice.randbytes(dice.choice([0, 1, 5, 300])).hex()


def _moment(dice: random.Random) -> datetime:
    first = datetime(1, 1, 1, tzinfo=UTC)
    return first + timedelta(microseconds=dice.randrange(9998 * 365 * 86_400 * 1_000_000))


def _timestamp(dice: random.Random) -> str:
    ends = ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"]
    return dice.choice([*ends, _moment(dice).replace(tzinfo=None).isoformat(" ")])


def _whole_seconds(dice: random.Random) -> str:
    return str(_moment(dice).replace(tzinfo=None, microsecond=0))


def _choice(*values: str) -> Make:
    return lambda dice: dice.choice(values)


def _json(dice: random.Random, depth: int = 3) -> str:
    kind = dice.randrange(6 if depth else 4)
    if kind == 0:
        return f"-1{dice.randrange(10**30)}.{dice.randrange(10**30)}"
    if kind == 1:
        return dice.choice(["true", "false", "null", '""'])
    if kind in (2, 3):
        return '"' + "".join(dice.choices("aé日🐘 \\/'", k=dice.randint(0, 9))).replace("\\", "\\\\") + '"'
    if kind == 4:
        return f"[{', '.join(_json(dice, depth - 1) for _ in range(dice.randrange(4)))}]"
    return "{" + ",".join(f'"k{dice.randrange(5)}" : {_json(dice, depth - 1)}' for _ in range(dice.randrange(4))) + "}"


def _interval(dice: random.Random) -> str:
    parts = [f"{dice.randint(-9999, 9999)} {unit}" for unit in ("year", "month", "day", "hour", "minute", "second")]
    return dice.choice(
        [
            "0",
            "-178956970 years -7 mons -2147483648 days -2562047788:00:54.775807",
            " ".join(dice.sample(parts, dice.randint(1, 6))),
            f"{dice.uniform(-99, 99):.6f} seconds",
        ]
    )


def _address(dice: random.Random) -> str:
    four = ".".join(str(dice.randrange(256)) for _ in range(4))
    six = ":".join(f"{dice.randrange(65536):x}" for _ in range(8))
    return dice.choice([four, f"{four}/{dice.randrange(33)}", six, f"{six}/{dice.randrange(129)}", "::1"])


def _range(dice: random.Random) -> str:
    low = dice.randint(-999, 999)
    return dice.choice(["empty", f"[{low},{low + dice.randrange(9)}]", f"({low},)", "(,)"])


COLUMNS: Final[Mapping[str, tuple[str, Make]]] = {
    "c_boolean": ("boolean", _choice("t", "f")),
    "c_smallint": ("smallint", _whole(-(2**15), 2**15 - 1)),
    "c_integer": ("integer", _whole(-(2**31), 2**31 - 1)),
    "c_bigint": ("bigint", _whole(-(2**63), 2**63 - 1)),
    "c_oid": ("oid", _whole(0, 2**32 - 1)),
    "c_xid": ("xid", _whole(0, 2**32 - 1)),
    "c_cid": ("cid", _whole(0, 2**32 - 1)),
    "c_tid": ("tid", _choice("(0,1)", "(4294967295,65535)")),
    "c_regclass": ("regclass", _choice("pg_class", "pg_type")),
    "c_regtype": ("regtype", _choice("integer", "timestamp with time zone")),
    "c_real": ("real", _float("f")),
    "c_double": ("double precision", _float("d")),
    "c_numeric": ("numeric", _decimal(300, 300)),
    "c_numeric_5": ("numeric(5)", _decimal(5, 0)),
    "c_numeric_20_5": ("numeric(20,5)", _decimal(15, 5)),
    "c_numeric_65_30": ("numeric(65,30)", _decimal(35, 30)),
    "c_numeric_70_40": ("numeric(70,40)", _decimal(30, 40)),
    "c_money": ("money", _whole(-(10**16), 10**16)),
    "c_text": ("text", _text(3000)),
    "c_varchar": ("varchar(20)", _text(20)),
    "c_varchar_long": ("varchar(5000)", _text(100)),
    "c_char": ("char(10)", lambda dice: _text(10)(dice).rstrip()),
    "c_name": ("name", _text(15)),
    "c_letter": ('"char"', _choice("a", "Z", "")),
    "c_bytea": ("bytea", _bytes),
    "c_date": ("date", lambda dice: str(_moment(dice).date())),
    "c_time": ("time", _choice("00:00:00", "24:00:00", "23:59:59.999999", "12:34:56.7")),
    "c_time_0": ("time(0)", _choice("00:00:00", "24:00:00", "12:34:56")),
    "c_timetz": ("timetz", _choice("00:00:00+00", "24:00:00-15:59:59", "12:34:56.789012+05:30")),
    "c_timestamp": ("timestamp", _timestamp),
    "c_timestamp_0": ("timestamp(0)", _whole_seconds),
    "c_timestamptz": ("timestamptz", lambda dice: f"{_timestamp(dice)}+00"),
    "c_interval": ("interval", _interval),
    "c_uuid": ("uuid", lambda dice: str(uuid.UUID(bytes=dice.randbytes(16)))),
    "c_inet": ("inet", _address),
    "c_cidr": ("cidr", _choice("10.0.0.0/8", "::/0", "2001:db8::/32", "192.168.1.1/32")),
    "c_macaddr": ("macaddr", lambda dice: dice.randbytes(6).hex()),
    "c_macaddr8": ("macaddr8", lambda dice: dice.randbytes(8).hex()),
    "c_bit": ("bit(7)", _bits(7, 7)),
    "c_bit_long": ("bit(100)", _bits(100, 100)),
    "c_varbit": ("varbit(20)", _bits(20, 0)),
    "c_varbit_any": ("varbit", _bits(200, 0)),
    "c_json": ("json", _json),
    "c_jsonb": ("jsonb", _json),
    "c_jsonpath": ("jsonpath", _choice("$", '$."a"[*]?(@ > 1)')),
    "c_integers": ("integer[]", _choice("{}", "{1,NULL,3}", "[2:3]={4,5}", "{{1,2},{3,4}}")),
    "c_texts": ("text[]", _choice("{}", '{NULL,"NULL","a,b","\\"q\\\\","日"}')),
    "c_int4range": ("int4range", _range),
    "c_int8range": ("int8range", _range),
    "c_numrange": ("numrange", _range),
    "c_tsrange": ("tsrange", _choice("empty", '["2020-01-01 00:00:00",infinity)', "(,)")),
    "c_tstzrange": ("tstzrange", _choice("empty", "(-infinity,2020-01-01 00:00:00+02]")),
    "c_daterange": ("daterange", _choice("empty", "[2020-01-01,2020-02-01]")),
    "c_own_range": ("textrange", _choice("empty", "[a,b)")),
    "c_enum": ("mood", _choice("sad", "it's ok", "Happy", "ÄÖ", "")),
    "c_pair": ("pair", _choice("(1,)", '(,"a ""b"" c")')),
    "c_price": ("price", _decimal(8, 2)),
    "c_dear": ("dear", lambda dice: str(dice.randint(101, 9999))),
    "c_flag": ("flag", _choice("t", "f")),
    "c_data": ("data", _bytes),
    "c_words": ("words", _text(50)),
    "c_rate": ("rate", _float("d")),
    "c_feeling": ("feeling", _choice("sad", "Happy")),
    "c_prices": ("price[]", _choice("{}", "{1.50,NULL}")),
    "c_point": ("point", lambda dice: f"({_float('d')(dice)},{_float('d')(dice)})"),
    "c_lseg": ("lseg", _choice("[(0,0),(1,1)]")),
    "c_path": ("path", _choice("[(0,0),(1,1)]", "((0,0),(1,1),(2,0))")),
    "c_box": ("box", _choice("(1,1),(0,0)")),
    "c_polygon": ("polygon", _choice("((0,0),(1,1),(2,0))")),
    "c_line": ("line", _choice("{1,2,3}")),
    "c_circle": ("circle", _choice("<(0,0),1.5>")),
    "c_tsvector": ("tsvector", _choice("", "'a':1 'b c':2A,3")),
    "c_tsquery": ("tsquery", _choice("", "'a' & !'b'")),
    "c_pg_lsn": ("pg_lsn", _choice("0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848")),
    "c_txid_snapshot": ("txid_snapshot", _choice("10:20:10,14")),
    "c_refcursor": ("refcursor", _text(10)),
    "c_regproc": ("regproc", _choice("pg_catalog.now")),
}
"""What every server has, with values that every engine can hold in the type that it is mapped to."""

FROM_13: Final[Mapping[str, tuple[str, Make]]] = {
    "c_xid8": ("xid8", _whole(0, 2**64 - 1)),
    "c_pg_snapshot": ("pg_snapshot", _choice("10:20:10,14")),
}
FROM_14: Final[Mapping[str, tuple[str, Make]]] = {
    "c_int4multirange": ("int4multirange", _choice("{}", "{[1,3),[5,)}")),
    "c_nummultirange": ("nummultirange", _choice("{}", "{[1.5,3]}")),
    "c_tsmultirange": ("tsmultirange", _choice("{}", "{[2020-01-01,2021-01-01)}")),
}
FROM_15: Final[Mapping[str, tuple[str, Make]]] = {
    "c_numeric_5_minus": ("numeric(5,-2)", lambda dice: f"{dice.randint(-99999, 99999)}00"),
    "c_numeric_2_4": ("numeric(2,4)", _choice("0.0099", "-0.0001", "0")),
}

ODD: Final[Mapping[str, tuple[str, ...]]] = {
    "c_real": ("NaN", "Infinity", "-Infinity", "-0"),
    "c_double": ("NaN", "Infinity", "-Infinity", "-0"),
    "c_numeric": ("NaN", "Infinity", "-Infinity", "9" * 1000),
    "c_numeric_20_5": ("NaN",),
    "c_date": ("infinity", "-infinity", "4714-11-24 BC", "5874897-12-31"),
    "c_timestamp": ("infinity", "-infinity", "4714-11-24 00:00:00 BC", "294276-12-31 23:59:59.999999"),
    "c_timestamptz": ("infinity", "-infinity", "0001-01-01 00:00:00+00 BC"),
    "c_rate": ("NaN", "-Infinity"),
}
"""Values that not every engine can hold."""


def columns_of(version: int) -> dict[str, tuple[str, Make]]:
    """The columns that a server of this version has types for."""
    found = dict(COLUMNS)
    for since, more in ((130000, FROM_13), (140000, FROM_14), (150000, FROM_15)):
        if version >= since:
            found |= more
    return found


def create(database: Database, *tables: str) -> dict[str, Make]:
    """Make the types, and tables with an `id` and a column of each type; return what makes values, by column."""
    columns = columns_of(database.server.version)
    for statement in TYPES.strip().split(";\n"):
        database.execute(statement.rstrip(";"))
    for table in tables:
        listed = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
        database.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, {listed})")
    return {name: make for name, (_, make) in columns.items()}
