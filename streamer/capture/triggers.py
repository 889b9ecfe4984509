"""The triggers of captured tables: what is installed, what differs from what is wanted, and the statements that bring it into line.

Everything is read with two queries, whatever the number of tables; each table is altered in a transaction of its own (by
admin/capture_triggers.py), so that writers wait for one table at a time and no change slips through between old and new triggers.
The trap: rows of a partitioned table are changed in its partitions. From version 11 on these inherit the triggers, new partitions
too, but not everywhere that they fire ALWAYS; in version 10 each partition needs its own. TRUNCATE is told by the table itself.

https://www.postgresql.org/docs/current/sql-createtrigger.html
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from streamer import statements
from streamer.capture.catalog import SourceTable
from streamer.capture.definition_types import quote
from streamer.capture.trigger_functions import FILE, Event, Function, Marker, functions
from streamer.errors import SchemaError
from streamer.model import TableName
from streamer.session import Connection, version

CHANNEL: Final = "streamer_delta"
"""What LISTEN hears when a reader that sleeps is to wake up."""
EXCLUSIONS: Final = 90000  # exclusion constraints: version 9.0
INHERITED: Final = 110000  # row triggers on partitioned tables
PARENTS: Final = 130000  # pg_trigger.tgparentid

ROWS: Final[Mapping[str, Event]] = {
    "zzz_streamer_insert": "insert",
    "zzz_streamer_update": "update",
    "zzz_streamer_delete": "delete",
}
TRUNCATE: Final = "zzz_streamer_truncate"
_TRUNCATES: Final = "delta_truncate"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A table whose changes are to be captured."""

    table: SourceTable
    #: what tells its rows apart
    key: tuple[str, ...]
    #: updates that change none of these columns, nor the key, are passed over; None: none is
    columns: frozenset[str] | None = None
    #: what unique indexes and exclusion constraints compare
    unique: frozenset[str] = frozenset()
    #: whether several nodes write it
    masters: bool = False


class Condition(enum.StrEnum):
    """How the triggers of a table are."""

    COMPLETE = "complete"
    MISSING = "missing"
    #: they are there, and do not fire, or not for every session
    DISABLED = "disabled"
    #: another version of streamer, or another config, made them
    OUTDATED = "outdated"


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger of ours."""

    #: pg_trigger.tgenabled
    enabled: str
    function: str
    #: whether it belongs to one of the table above
    inherited: bool


@dataclass(frozen=True, slots=True)
class Installed:
    """What a database has."""

    #: by table and name of the trigger
    triggers: Mapping[TableName, Mapping[str, Trigger]]
    functions: frozenset[str]
    #: the server's version
    server: int

    def tables(self) -> list[TableName]:
        """Return the tables that have triggers of their own."""
        return sorted((table for table, found in self.triggers.items() if _own(found)), key=str)


def read_installed(connection: Connection) -> Installed:
    """Return what is installed. Raises psycopg.Error."""
    triggers: dict[TableName, dict[str, Trigger]] = defaultdict(dict)
    for schema, name, trigger, enabled, function, inherited in connection.execute(_triggers_query(version(connection)).encode()):
        triggers[TableName(schema, name)][trigger] = Trigger(enabled, function, inherited)
    made = frozenset(name for (name,) in connection.execute(_FUNCTIONS))
    return Installed(dict(triggers), made, version(connection))


def read_unique(connection: Connection) -> dict[TableName, frozenset[str]]:
    """Return, by table, the columns that unique indexes and exclusion constraints compare, also in expressions and conditions.

    Raises psycopg.Error.
    """
    found: dict[TableName, set[str]] = defaultdict(set)
    exclusive = "i.indisexclusion" if version(connection) >= EXCLUSIONS else "false"
    for schema, name, column in connection.execute(_UNIQUE.format(exclusive=exclusive).encode()):
        found[TableName(schema, name)].add(column)
    return {table: frozenset(columns) for table, columns in found.items()}


def captured(connection: Connection) -> dict[int, tuple[str, ...]]:
    """Return the relations (oids) all of whose changes of rows are captured, with their keys in the order of `delta.key`.

    Partitions are among them, and from version 11 on the tables above. Raises psycopg.Error.
    """
    keys: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for oid, comment in connection.execute(_FIRING, [list(ROWS)]):
        keys[oid].append(Marker.parse(comment or "").key)
    return {oid: found[0] for oid, found in keys.items() if len(found) == len(ROWS) and len(set(found)) == 1}


# -- what differs ------------------------------------------------------------------------------------------------------------------


def condition(wanted: Wanted, installed: Installed) -> Condition:
    """Return how the triggers of the table are. Pure."""
    made = {event: function.name for event, function in _functions(wanted, installed.server).items()}
    return max((_condition(installed, *need) for need in _needs(wanted, made, installed.server)), key=_SEVERITY.index)


_SEVERITY: Final = [Condition.COMPLETE, Condition.DISABLED, Condition.OUTDATED, Condition.MISSING]


def _condition(installed: Installed, table: TableName, trigger: str, function: str) -> Condition:
    found = installed.triggers.get(table, {}).get(trigger)
    if found is None:
        return Condition.MISSING
    if found.function != function:
        return Condition.OUTDATED
    return Condition.COMPLETE if found.enabled == "A" else Condition.DISABLED


def _needs(wanted: Wanted, made: Mapping[Event, str], server: int) -> Iterator[tuple[TableName, str, str]]:
    """The triggers that there must be: table, name, function."""
    for table in {*_places(wanted.table, server), *wanted.table.leaves}:
        yield from ((table, trigger, made[event]) for trigger, event in ROWS.items())
    yield wanted.table.table, TRUNCATE, _TRUNCATES


def _places(table: SourceTable, server: int) -> tuple[TableName, ...]:
    """The tables on which triggers for rows are made."""
    return table.leaves if table.partitioned and server < INHERITED else (table.table,)


def _functions(wanted: Wanted, server: int) -> dict[Event, Function]:
    columns = wanted.columns
    if columns is not None:
        columns = columns & {c.name for c in wanted.table.travelling}
    return functions(wanted.table.definition, wanted.key, wanted.unique, columns, server, masters=wanted.masters)


def _own(found: Mapping[str, Trigger]) -> list[str]:
    return [name for name, trigger in found.items() if not trigger.inherited]


# -- the statements ----------------------------------------------------------------------------------------------------------------


def missing_functions(wanted: Iterable[Wanted], installed: Installed) -> str:
    """Return the statements that make the functions that the tables need and that are not there; empty if all are. Pure."""
    needed = {function.name: function.script for one in wanted for function in _functions(one, installed.server).values()}
    return "\n".join(script for name, script in needed.items() if name not in installed.functions)


def making(wanted: Wanted, installed: Installed) -> str:
    """Return the statements that give the table its triggers, in the place of those that it has. Pure."""
    parts, table = statements.parts(FILE), wanted.table
    names = {str(event): function.name for event, function in _functions(wanted, installed.server).items()}
    lines = [removing(place, installed) for place in dict.fromkeys((table.table, *table.leaves))]
    lines += [
        statements.fill(parts["triggers rows"], names | {"table": _quoted(place)}) for place in _places(table, installed.server)
    ]
    lines.append(statements.fill(parts["triggers truncate"], {"table": _quoted(table.table)}))
    if table.partitioned and installed.server >= INHERITED:
        lines += [f"ALTER TABLE {_quoted(leaf)} ENABLE ALWAYS TRIGGER {name};" for leaf in table.leaves for name in ROWS]
    return "\n".join(line for line in lines if line)


def removing(table: TableName, installed: Installed) -> str:
    """Return the statements that remove the table's triggers; empty if it has none. Pure."""
    found = _own(installed.triggers.get(table, {}))
    return "\n".join(f"DROP TRIGGER {name} ON {_quoted(table)};" for name in found)


def remove_idle_functions(connection: Connection) -> None:
    """Remove the functions of tables that no trigger uses any more. Raises psycopg.Error."""
    for (name,) in connection.execute(_IDLE_FUNCTIONS).fetchall():
        connection.execute(f"DROP FUNCTION streamer.{quote(name)}()".encode())


def require_disjoint(node: str, wanted: Iterable[Wanted]) -> None:
    """Refuse a partition beside the table that it belongs to: its changes would be noted twice. Raises SchemaError."""
    wanted = list(wanted)
    above = {leaf: one.table.table for one in wanted for leaf in one.table.leaves}
    for one in wanted:
        if (root := above.get(one.table.table)) is not None:
            raise SchemaError(
                f'table "{one.table.table}" on "{node}" is a partition of "{root}", and syncs capture the changes of both',
                f'select "{root}" in each of these syncs',
            )


def _quoted(table: TableName) -> str:
    return f"{quote(table.schema)}.{quote(table.name)}"


# -- the catalogs ------------------------------------------------------------------------------------------------------------------

_FUNCTIONS: Final = r"""
SELECT p.proname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = 'streamer' AND p.proname ~ '^delta_(insert|update|delete)_'
"""
_IDLE_FUNCTIONS: Final = f"{_FUNCTIONS} AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid)"

# an index depends on the columns of its expressions and its condition; one that belongs to a constraint on no others
_UNIQUE: Final = """
SELECT n.nspname, c.relname, a.attname
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum > 0
WHERE (i.indisunique OR {exclusive}) AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema')
  AND (a.attnum = ANY (i.indkey::pg_catalog.int2[])
       OR EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = i.indexrelid
                    AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = a.attrelid
                    AND d.refobjsubid = a.attnum))
"""

_OURS: Final = """
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace o ON o.oid = p.pronamespace AND o.nspname = 'streamer'
"""
_FIRING: Final = f"""
SELECT t.tgrelid::bigint, pg_catalog.obj_description(p.oid, 'pg_proc')
{_OURS} WHERE t.tgenabled = 'A' AND t.tgname = ANY(%s)
"""


def _triggers_query(server: int) -> str:
    inherited = "false"
    if server >= INHERITED:
        inherited = "t.tgparentid <> 0" if server >= PARENTS else "t.tgisinternal"
    return rf"""
SELECT n.nspname, c.relname, t.tgname, t.tgenabled::text, p.proname, {inherited}
{_OURS} JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE t.tgname LIKE 'zzz\_streamer\_%' AND n.nspname <> 'streamer'
"""
