r"""Values of PostgreSQL as columns of MySQL and MariaDB hold them: one conversion a column, chosen once. Pure.

What decides is the column that the target really has, as information_schema tells it; the source's type only says how to read the
text. A column may be narrower than the source's: what does not fit raises Unrepresentable, before the server can round or cut it.
The trap: the type of a domain is not known here, only its oid; its values are told by their looks (\x and digits, t or f).

https://dev.mysql.com/doc/refman/8.4/en/information-schema-columns-table.html
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeAlias

from streamer.sinks import mysql_moments, mysql_numbers
from streamer.sinks.postgres_types import BYTEA, FIRST_USER_OID, OIDS
from streamer.sinks.unrepresentable import Unrepresentable, shown

Converter: TypeAlias = Callable[[str], str | bytes | int]

_TEXTS: Final = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext")
_BINARIES: Final = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob")
_CHARSETS: Final = {"latin1": "cp1252", "ascii": "ascii", "utf16": "utf-16", "utf32": "utf-32"}
_THREE_BYTES: Final = ("utf8", "utf8mb3", "ucs2")
_HEX: Final = re.compile(r"\\x(?:[0-9a-f]{2})*")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LABEL: Final = re.compile(r"'((?:[^']|'')*)'")
_BPCHAR: Final = OIDS["character"]
_DEEPEST_JSON: Final = 100


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column as information_schema.columns tells it; names of types in lower case."""

    name: str
    data_type: str
    #: with modifiers: int(10) unsigned
    column_type: str
    #: character_maximum_length: characters of char and varchar, else bytes
    length: int | None = None
    precision: int | None = None
    scale: int | None = None
    #: datetime_precision
    fraction: int | None = None
    charset: str | None = None
    nullable: bool = True


def converter(type_oid: int, target: TargetColumn) -> Converter | None:
    """Return what makes a value for the target of PostgreSQL's text; None if the text goes as it is.

    Text goes as a literal of utf8mb4, bytes as one without a character set. Called with a value that the column cannot hold it
    raises Unrepresentable. A type of column that is not known here takes the text; the server says what it thinks of it.
    """
    kind = target.data_type
    if kind in _TEXTS:
        return _text(type_oid, target)
    if kind in _BINARIES:
        return _binary(type_oid, target)
    if kind in ("date", "datetime", "timestamp", "time"):
        return _moment(target)
    return _number(type_oid, target) or _special(type_oid, target)


def takes_bytes(target: TargetColumn) -> bool:
    """Whether the column's values are bytes."""
    return target.data_type in _BINARIES


def load_expression(target: TargetColumn, variable: str) -> str:
    """Return what LOAD DATA sets the column to, where `variable` holds a field: bytes in hexadecimal, all else as text."""
    if takes_bytes(target):
        return f"UNHEX({variable})"
    return f"CAST({variable} AS UNSIGNED)" if target.data_type == "bit" else variable


def _number(type_oid: int, target: TargetColumn) -> Converter | None:
    kind, unsigned = target.data_type, "unsigned" in target.column_type
    if kind in ("tinyint", "smallint", "mediumint", "int", "bigint"):
        return mysql_numbers.integer(type_oid, kind, unsigned=unsigned)
    if kind == "decimal":
        return mysql_numbers.decimal(type_oid, target.precision or 10, target.scale or 0, unsigned=unsigned)
    if kind == "double":
        return mysql_numbers.double(type_oid)
    return mysql_numbers.single(type_oid) if kind == "float" else None


def _moment(target: TargetColumn) -> Converter:
    places = target.fraction or 0
    if target.data_type == "date":
        return mysql_moments.date
    if target.data_type == "time":
        return mysql_moments.time(places)
    if target.data_type == "timestamp":
        return mysql_moments.date_time(places, mysql_moments.FIRST_TIMESTAMP, mysql_moments.LAST_TIMESTAMP)
    return mysql_moments.date_time(places, f"{mysql_moments.FIRST_DAY} 00:00:00", f"{mysql_moments.LAST_DAY} 23:59:59")


def _special(type_oid: int, target: TargetColumn) -> Converter | None:
    if target.data_type == "bit":
        return _bits(target.precision or 1)
    if target.data_type == "uuid":
        return _uuid
    if target.data_type in ("inet4", "inet6"):
        return _address(4 if target.data_type == "inet4" else 6)
    if target.data_type == "enum":
        return _label(frozenset(label.replace("''", "'") for label in _LABEL.findall(target.column_type)))
    return _json if target.data_type == "json" else None


# -- text and bytes ---------------------------------------------------------------------------------------------------------------


def _text(type_oid: int, target: TargetColumn) -> Converter | None:
    fits = _byte_limit(target) if target.data_type.endswith("text") else _char_limit(type_oid, target)
    encodes = _encodes(target.charset)
    if fits is None or encodes is None:
        return fits or encodes
    return lambda text: fits(encodes(text))


def _char_limit(type_oid: int, target: TargetColumn) -> Callable[[str], str]:
    limit, padded = target.length or 0, target.data_type == "char"

    def convert(text: str) -> str:
        if len(text) > limit and (type_oid != _BPCHAR or len(text.rstrip(" ")) > limit):
            raise Unrepresentable(text, f"has {len(text)} characters, more than {limit}", text[:limit])
        if padded and text.endswith(" ") and type_oid != _BPCHAR:
            raise Unrepresentable(text, "ends with a blank, which CHAR drops", text.rstrip(" "))
        return text

    return convert


def _byte_limit(target: TargetColumn) -> Callable[[str], str] | None:
    limit = target.length or 0
    if target.data_type == "longtext":
        return None

    def convert(text: str) -> str:
        if 4 * len(text) > limit and len(data := text.encode()) > limit:
            raise Unrepresentable(text, f"has {len(data)} bytes, more than {limit}", data[:limit].decode(errors="ignore"))
        return text

    return convert


def _encodes(charset: str | None) -> Callable[[str], str] | None:
    """What refuses characters that the column's character set lacks; None if it has all, or the server is to say."""
    if charset in _THREE_BYTES:

        def narrow(text: str) -> str:
            if text and max(text) > "\uffff":
                kept = re.sub("[^\0-\uffff]", "?", text)
                raise Unrepresentable(text, f"has characters that {charset} lacks", kept)
            return text

        return narrow
    codec = _CHARSETS.get(charset or "")
    if codec is None:
        return None

    def encodable(text: str) -> str:
        try:
            text.encode(codec)
        except UnicodeEncodeError:
            kept = text.encode(codec, "replace").decode(codec)
            raise Unrepresentable(text, f"has characters that {charset} lacks", kept) from None
        return text

    return encodable


def _binary(type_oid: int, target: TargetColumn) -> Converter:
    limit, padded = target.length or 0, target.data_type == "binary"

    def convert(text: str) -> bytes:
        data = _bytes(type_oid, text, limit)
        if len(data) > limit:
            raise Unrepresentable(text, f"has {len(data)} bytes, more than {limit}", data[:limit])
        if padded and len(data) < limit:
            raise Unrepresentable(text, f"has {len(data)} bytes, and BINARY({limit}) would add zeros", data)
        return data

    return convert


def _bytes(type_oid: int, text: str, limit: int) -> bytes:
    if type_oid == BYTEA or (type_oid >= FIRST_USER_OID and _HEX.fullmatch(text)):
        return bytes.fromhex(text[2:])
    if type_oid == OIDS["uuid"] and limit == 16:
        return bytes.fromhex(text.replace("-", ""))
    return text.encode()


# -- what is left -----------------------------------------------------------------------------------------------------------------


def _bits(width: int) -> Converter:
    def convert(text: str) -> int:
        if text in ("t", "f"):
            return int(text == "t")
        if not text or text.strip("01"):
            raise Unrepresentable(text, "is not a string of bits")
        if len(text) != width:
            raise Unrepresentable(text, f"has {len(text)} bits, not {width}", int(text, 2) & (2**width - 1))
        return int(text, 2)

    return convert


def _uuid(text: str) -> str:
    if _UUID.fullmatch(text) is None:
        raise Unrepresentable(text, "is not a UUID")
    if text[14] >= "8" and text[19] < "8":
        raise Unrepresentable(text, "is of a version and variant that the type UUID refuses")
    return text


def _address(version: int) -> Converter:
    def convert(text: str) -> str:
        try:
            address = ipaddress.ip_address(text.partition("/")[0])
        except ValueError:
            raise Unrepresentable(text, "is not an address") from None
        nearest = str(address) if address.version == version else f"::ffff:{address}" if version == 6 else None
        if "/" in text:
            raise Unrepresentable(text, "has a netmask", nearest)
        if address.version != version:
            raise Unrepresentable(text, f"is not an address of version {version}", nearest)
        return text

    return convert


def _label(labels: frozenset[str]) -> Converter:
    def convert(text: str) -> str:
        if text not in labels:
            raise Unrepresentable(text, f"is none of the column's {len(labels)} labels")
        return text

    return convert


def _json(text: str) -> str:
    """MySQL's own JSON: keys are unique, numbers become doubles, and nesting has an end."""

    def number(literal: str) -> float | int:
        value = float(literal) if any(c in literal for c in ".eE") else int(literal)
        exact = Decimal(repr(value)) == Decimal(literal) and (isinstance(value, float) or -(2**63) <= value < 2**64)
        if not exact:
            raise Unrepresentable(text, f"has the number {shown(literal)}, which a JSON column rounds", text)
        return value

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        if len(made := dict(found)) < len(found):
            raise Unrepresentable(text, "has a key twice, of which a JSON column keeps one", text)
        return made

    try:
        depth = _depth(json.loads(text, parse_float=number, parse_int=number, object_pairs_hook=pairs))
    except RecursionError:
        depth = _DEEPEST_JSON + 1
    except json.JSONDecodeError:
        raise Unrepresentable(text, "is not JSON") from None
    if depth > _DEEPEST_JSON:
        raise Unrepresentable(text, f"is nested deeper than {_DEEPEST_JSON} levels")
    return text


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0
