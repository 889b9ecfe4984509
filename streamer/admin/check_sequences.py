"""`streamer check`, sequences of tables with several sources: two nodes that draw the same number insert rows that collide.

Sequences are kept apart when no number that one of them gives can come from another: by steps of the number of sources with a
remainder of its own for each, or by ranges. What the user has to do is told in statements for every node.

https://www.postgresql.org/docs/current/sql-altersequence.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import gcd
from typing import Any, Final, TypeAlias

from streamer.admin.findings import Finding, warning
from streamer.model import TableName
from streamer.session import Connection, version
from streamer.sinks.postgres_table import quote, quoted

PG_SEQUENCE: Final = 100000  # the catalog pg_sequence, and identity columns: version 10

ColumnName: TypeAlias = tuple[TableName, str]


@dataclass(frozen=True, slots=True)
class Counter:
    """A sequence that fills a column. `following` is the number that it gives next."""

    name: TableName
    following: int
    increment: int
    minimum: int
    maximum: int
    #: our role, if it may not read the sequence
    denied: str = ""


def read_counters(connection: Connection, tables: Collection[TableName]) -> dict[ColumnName, Counter]:
    """Return the sequences behind serial and identity columns of these tables. Raises psycopg.Error."""
    new = version(connection) >= PG_SEQUENCE
    query = _COLUMNS + (_IDENTITIES if new else "")
    found = {}
    for schema, table, column, sequence_schema, sequence, readable in connection.execute(query.encode()):
        if TableName(schema, table) in tables:
            name = TableName(sequence_schema, sequence)
            found[TableName(schema, table), column] = _read(connection, name, new=new, readable=readable)
    return found


def _read(connection: Connection, name: TableName, *, new: bool, readable: bool) -> Counter:
    if not readable:
        return Counter(name, 0, 1, 0, 0, denied=connection.info.user)
    query = (_STATE if new else _STATE_96).format(sequence=quoted(name).replace("%", "%%"))
    row: Any = connection.execute(query.encode(), [quoted(name)] if new else []).fetchone()
    last, called, increment, minimum, maximum = row
    return Counter(name, last + increment if called else last, increment, minimum, maximum)


_COLUMNS: Final = """
SELECT n.nspname, c.relname, a.attname, sn.nspname, s.relname, has_table_privilege(s.oid, 'SELECT')
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_attrdef f ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND f.oid = d.objid
JOIN pg_catalog.pg_class s ON d.refclassid = 'pg_catalog.pg_class'::regclass AND s.oid = d.refobjid AND s.relkind = 'S'
JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = f.adrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = f.adnum
"""
_IDENTITIES: Final = """
UNION ALL
SELECT n.nspname, c.relname, a.attname, sn.nspname, s.relname, has_table_privilege(s.oid, 'SELECT')
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_class s ON d.classid = 'pg_catalog.pg_class'::regclass AND s.oid = d.objid AND s.relkind = 'S'
JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_class c ON d.refclassid = 'pg_catalog.pg_class'::regclass AND c.oid = d.refobjid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
WHERE d.deptype = 'i'
"""
_STATE: Final = """
SELECT v.last_value, v.is_called, s.seqincrement, s.seqmin, s.seqmax
FROM {sequence} AS v, pg_catalog.pg_sequence AS s WHERE s.seqrelid = %s::regclass
"""
_STATE_96: Final = "SELECT last_value, is_called, increment_by, min_value, max_value FROM {sequence}"


def judge_counters(sources: Sequence[str], found: Mapping[str, Mapping[ColumnName, Counter]]) -> Iterator[Finding]:
    """Yield the columns whose sequences are not kept apart; `found` are the counters of each source. Pure."""
    columns = dict.fromkeys(column for counters in found.values() for column in counters)
    for table, column in columns:
        counters = {node: found[node][table, column] for node in sources if (table, column) in found.get(node, {})}
        what = f'column "{column}" of table "{table}"'
        denied = {node: counter for node, counter in counters.items() if counter.denied}
        if len(counters) > 1 and denied:
            remedies = (f"on {n}: GRANT SELECT ON SEQUENCE {quoted(c.name)} TO {quote(c.denied)}" for n, c in denied.items())
            yield warning(what, f"its sequence may not be read on {', '.join(denied)}", "; ".join(remedies))
        elif any(_collide(one, other) for one, other in combinations(counters.values(), 2)):
            yield warning(
                what,
                f"its sequences on {', '.join(counters)} give the same numbers: rows inserted on both will collide",
                "; ".join(f"on {node}: {statement}" for node, statement in _remedies(sources, counters)),
            )


def _collide(one: Counter, other: Counter) -> bool:
    """Whether both may give the same number."""
    if one.maximum < other.minimum or other.maximum < one.minimum:
        return False
    return (one.following - other.following) % gcd(one.increment, other.increment) == 0


def _remedies(sources: Sequence[str], counters: Mapping[str, Counter]) -> Iterator[tuple[str, str]]:
    """Give every source the numbers with a remainder of its own, above what any of them has given."""
    sign = -1 if all(counter.increment < 0 for counter in counters.values()) else 1
    free = max(sign * counter.following for counter in counters.values())
    for node, counter in counters.items():
        start = free + (sources.index(node) - free) % len(sources)
        step = sign * len(sources)
        yield node, f"ALTER SEQUENCE {quoted(counter.name)} INCREMENT BY {step} RESTART WITH {sign * start}"
