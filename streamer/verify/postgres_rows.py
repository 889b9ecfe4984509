"""A table of PostgreSQL on one side of a comparison: hashed by its server, so that nothing but hashes and keys travels.

A row is hashed as the text of ROW(...), which tells NULL from an empty string. Two servers of version 11 and later have a fast hash
of 64 bits in common; others, and those of different encodings, take a part of MD5.

The traps: the text of floats changed in versions 9.0 and 12, so between an older server and a newer one their bytes are taken; a
column of another type on the target holds what the type makes of the text, so the source's text is sent through that type; and
a partitioned table may hold a row in a partition where it does not belong, so the partition's name is hashed with the row where
both sides have the same ones.

https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import psycopg

from streamer.capture.catalog import FULL_TEXT, read_as
from streamer.capture.definition_types import literal, quote
from streamer.capture.key_ranges import conditions, end_of
from streamer.capture.snapshot import blocks
from streamer.copytext import parse
from streamer.errors import SourceError
from streamer.model import ColumnDefinition, TableName
from streamer.session import Connection, connect, connect_error, reason_of, remedy, reported, version
from streamer.verify.parts import Digest, Digests, Key, Part, Rows, Seen, together

FAST_HASH: Final = 110000  # hashtextextended: version 11
SHORTEST_FLOATS: Final = 120000  # version 12
_PROBES: Final = "SELECT hashtextextended('' COLLATE \"C\", 0), hashtextextended('streamer verifies' COLLATE \"C\", 0)"
_BITS: Final = {
    600: "point_send",
    601: "lseg_send",
    602: "path_send",
    603: "box_send",
    604: "poly_send",
    628: "line_send",
    700: "float4send",
    701: "float8send",
    718: "circle_send",
} | dict.fromkeys((629, 719, 1001, 1017, 1018, 1019, 1020, 1021, 1022, 1027), "array_send")
"""What gives the bytes of a type, by its oid: floats, what is made of them, and arrays of these and of bytea."""
_SCALARS: Final = (700, 701)  # of which there is more than one NaN
_KEYS: Final = 200
"""Rows that are asked for by their keys in one statement."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a table's rows are read: expressions in SQL that give text."""

    table: TableName
    columns: tuple[str, ...]
    #: of the key; none if nothing tells rows apart
    key: tuple[str, ...]
    #: the column that ranges are cut by, and its type; empty if there are none
    ranged: str = ""
    type_name: str = ""
    where: str = ""
    partitioned: bool = False

    @property
    def name(self) -> str:
        """The table for a FROM: with its partitions, but without tables that inherit from it, which are tables of their own."""
        return f"{'' if self.partitioned else 'ONLY '}{quote(self.table.schema)}.{quote(self.table.name)}"

    def condition(self, part: Part, *more: str) -> str:
        """Return WHERE for the rows of a part, without regard to buckets."""
        terms = [f"({term})" for term in (f"\n{self.where}\n" if self.where else "", *more) if term]
        terms += conditions(self.ranged, self.type_name, part.low, part.high)
        return f" WHERE {' AND '.join(terms)}" if terms else ""

    def is_one_of(self, keys: Sequence[Key]) -> str:
        """Return the condition for rows with these keys."""
        each = (" AND ".join(f"{c} = {literal(v)}" for c, v in zip(self.key, key, strict=True) if v is not None) for key in keys)
        return " OR ".join(f"({one})" for one in each)


def open_session(node: str, url: str) -> Connection:
    """Return a connection that only reads. Raises ConnectError."""
    connection = connect(node, url, application="streamer verify")
    with reported(node):
        connection.execute("SET search_path = pg_catalog; SET default_transaction_read_only = on")
        if version(connection) >= FAST_HASH:
            connection.execute("SET jit = off")  # takes longer to compile than most parts to read
    return connection


def read_alike(source: Connection, target: Connection) -> None:
    """Have floats that stand within other values read the same on both servers, with 15 digits, where their versions differ."""
    if _differ(source, target):
        for connection in (source, target):
            connection.execute("SET extra_float_digits = 0")


def value_of(connection: Connection, column: ColumnDefinition, other: Connection, held: ColumnDefinition | None = None) -> str:
    """Return the expression for a column's value as it is compared with that on the server `other`; with `held`, for what that
    column of the other server makes of it.
    """
    text, holder = read_as(connection, column), held or column
    value = quote(column.name) if held is None else f"CAST(CAST({text} AS text) AS {held.type_name})"
    kind = holder.base_oid or holder.type_oid
    if kind in _BITS and _differ(connection, other):
        bits = f"encode({_BITS[kind]}({value}), 'hex')"
        return f"CASE WHEN {value} = 'NaN' THEN 'NaN' ELSE {bits} END" if kind in _SCALARS else bits
    return text if held is None else value


def _differ(connection: Connection, other: Connection) -> bool:
    """Whether the servers write floats, or bytes within arrays, in different ways."""
    return any((version(connection) < since) != (version(other) < since) for since in (FULL_TEXT, SHORTEST_FLOATS))


@dataclass(frozen=True, slots=True)
class Hashing:
    """How both servers hash a text."""

    pattern: str

    @classmethod
    def between(cls, source: Connection, target: Connection) -> Hashing:
        """The fastest way that both servers have, and that gives the same on both. Raises psycopg.Error."""
        encodings = {c.execute("SHOW server_encoding").fetchone() for c in (source, target)}
        if len(encodings) > 1:
            return cls("('x' || substr(md5(convert_to({}, 'UTF8')), 1, 16))::bit(64)::bigint")
        fast = all(version(c) >= FAST_HASH for c in (source, target))
        if fast and source.execute(_PROBES).fetchone() == target.execute(_PROBES).fetchone():  # byte orders differ
            return cls('hashtextextended({} COLLATE "C", 0)')
        return cls("('x' || substr(md5({}), 1, 16))::bit(64)::bigint")

    def of(self, expressions: Sequence[str]) -> str:
        """Return the expression for the hash of some values: a bigint."""
        return self.pattern.format(f"ROW({', '.join(expressions)})::text")

    def of_key(self, expressions: Sequence[str]) -> str:
        """Return the same for the values by which rows are put into buckets; a single one needs no row, which costs a quarter."""
        if len(expressions) != 1:
            return self.of(expressions)
        return self.pattern.format(f"coalesce(({expressions[0]})::text, '')")


class HashedRows:
    """Implements parts.SourceSide and parts.Side, on the node of this name; `shown` gives the values that a repair writes."""

    def __init__(
        self, node: str, connection: Connection, reading: Reading, hashing: Hashing, *, partition: bool, shown: Sequence[str] = ()
    ) -> None:
        self._node = node
        self._connection = connection
        self._reading = reading
        leaf = ("tableoid::regclass::text",) if partition else ()
        self._hash = hashing.of((*reading.columns, *leaf))
        self._key_hash = hashing.of_key(reading.key)
        self._shown = tuple(shown)

    def digests(self, part: Part) -> Digests:
        """Have the server sum up the buckets of a part."""
        condition = self._reading.condition(part)
        if not self._reading.key:
            rows = f"(SELECT {self._hash} AS h FROM {self._reading.name}{condition} OFFSET 0) AS r"
            query = f"SELECT {_bucket('h', part)} AS b, count(*), sum(h) FROM {rows} GROUP BY 1"
        elif part.buckets == 1:
            query = f"SELECT 0, count(*), sum({self._hash}) FROM {self._reading.name}{condition}"
        else:
            bucket = _bucket(self._key_hash, part)
            query = f"SELECT {bucket}, count(*), sum({self._hash}) FROM {self._reading.name}{condition} GROUP BY 1"
        return {int(b or 0): Digest(int(n or 0), int(total)) for b, n, total in self._copied(query) if total is not None}

    def parts(self, rows: int, within: Part) -> Iterator[Part]:
        """Give ranges of so many rows, in the order of the key."""
        return parts(self._node, self._connection, self._reading, rows, within)

    def rows(self, part: Part, buckets: Collection[int]) -> Rows:
        """Have the server hash the rows of some buckets."""
        chosen = ", ".join(map(str, sorted(buckets)))
        if not self._reading.key:
            hashed = f"(SELECT {self._hash} AS h FROM {self._reading.name}{self._reading.condition(part)} OFFSET 0) AS r"
            query = f"SELECT h, count(*) FROM {hashed} WHERE {_bucket('h', part)} IN ({chosen}) GROUP BY h"
            return {(h,): Seen(int(n or 0)) for h, n in self._copied(query)}
        among = "" if part.buckets == 1 else f"{_bucket(self._key_hash, part)} IN ({chosen})"
        condition = self._reading.condition(part, among)
        query = f"SELECT {', '.join(self._reading.key)}, {self._hash}, {VERSION} FROM {self._reading.name}{condition}"
        found: dict[Key, Seen] = {}
        for *key, row_hash, seen in self._copied(query):
            found[tuple(key)] = together(found.get(tuple(key)), Seen(int(row_hash or 0), seen or ""))
        return found

    def fetch(self, keys: Collection[Key]) -> Mapping[Key, tuple[Seen, tuple[str | None, ...]]]:
        """Return rows with their values, by their keys."""
        width, found = len(self._reading.key), {}
        for chosen in batches(keys):
            values = ", ".join((*self._reading.key, self._hash, VERSION, *self._shown))
            condition = self._reading.condition(Part(), self._reading.is_one_of(chosen))
            for row in self._copied(f"SELECT {values} FROM {self._reading.name}{condition}"):
                found[row[:width]] = Seen(int(row[width] or 0), row[width + 1] or ""), row[width + 2 :]
        return found

    def cancel(self) -> None:
        """Have the server break off what it does."""
        break_off(self._connection)

    def _copied(self, query: str) -> Iterator[tuple[str | None, ...]]:
        return copied(self._node, self._connection, self._reading.table, query)


VERSION: Final = "xmin::text || ' ' || ctid::text"
"""What differs for a row that was written in between."""


def _bucket(hashed: str, part: Part) -> str:
    return f"({hashed} % {part.buckets} + {part.buckets}) % {part.buckets}"


def batches(keys: Collection[Key]) -> Iterator[list[Key]]:
    """Give the keys by the hundred."""
    listed = list(keys)
    return (listed[at : at + _KEYS] for at in range(0, len(listed), _KEYS))


def parts(node: str, connection: Connection, reading: Reading, rows: int, within: Part) -> Iterator[Part]:
    """Give ranges of so many rows; the last one ends where `within` does, so that together they hold whatever is there."""
    low = within.low
    while True:
        rest = Part(low, within.high)
        query = end_of(reading.ranged, f"{reading.name}{reading.condition(rest)}", rows)
        found = list(copied(node, connection, reading.table, query))
        if not found:
            yield rest
            return
        ((high,),) = found
        yield Part(low, high)
        low = high


def copied(node: str, connection: Connection, table: TableName, query: str) -> Iterator[tuple[str | None, ...]]:
    """Give the rows of a query as text, while the server sends them. Raises ConnectError, SourceError."""
    with reading_errors(node, connection, table):
        for block in blocks(connection, f"COPY ({query}) TO STDOUT"):
            yield from parse(block)


@contextmanager
def reading_errors(node: str, connection: Connection, table: TableName) -> Iterator[None]:
    """Name the table in what the server says against reading it."""
    try:
        yield
    except psycopg.Error as error:
        if connection.broken or error.sqlstate is None:
            raise connect_error(node, error) from error
        hint = remedy(node, error, error.diag.message_hint or "cure it on that server, and run streamer verify again")
        raise SourceError(f'table "{table}" on "{node}" cannot be read: {reason_of(error)}', hint) from error


def break_off(connection: Connection) -> None:
    """Have the server break off what the connection asks."""
    with suppress(psycopg.Error):
        connection.cancel_safe(timeout=1)
