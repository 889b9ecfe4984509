"""What `streamer check` says of a MySQL or MariaDB target: the server's settings, our rights, and the tables.

Rights are tried, not read: EXPLAIN asks for those of the statement that it explains, and a temporary table leaves nothing behind.
The trap: what SHOW GRANTS prints has patterns, roles and columns in it, and tells no program what is allowed.

https://dev.mysql.com/doc/refman/8.4/en/explain.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pymysql

from streamer.admin.findings import Finding, error, narrower, ok, warning
from streamer.errors import SchemaError
from streamer.model import TableDefinition
from streamer.sinks.extremes import lost
from streamer.sinks.mysql_ddl import Names, declared_column, declared_types, fold_case, missing_column, quote, safe_name, text
from streamer.sinks.mysql_session import RIGHTS, Connection, code_of, reason_of
from streamer.sinks.mysql_table import TargetTable, read_target, require_key
from streamer.sinks.mysql_types import Engine
from streamer.sinks.mysql_values import converter
from streamer.sinks.postgres_types import SourceType

OLDEST: Final = {"mariadb": (10, 6, 0), "mysql": (8, 0, 0)}
NAMES: Final = {"mariadb": "MariaDB", "mysql": "MySQL"}
SMALL_PACKET: Final = 16 << 20
_VARIABLES: Final = (
    "SELECT version(), @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog, @@local_infile, @@max_allowed_packet, "
    "@@global.read_only"
)
_WANTS_KEYS: Final = (
    "SHOW VARIABLES WHERE variable_name IN ('sql_require_primary_key', 'innodb_force_primary_key') AND value = 'ON'"
)
KEYLESS_REMEDY: Final = (
    "give the table a primary key on the source, or exclude it; or there, as an administrator: SET GLOBAL {} = 0, until it is made"
)
_TRIGGERS: Final = "SELECT trigger_name FROM information_schema.triggers WHERE event_object_schema = %s AND event_object_table = %s"


@dataclass(frozen=True, slots=True)
class Facts:
    """What matters of a server's settings."""

    engine: Engine
    flush: int
    log_bin: bool
    sync_binlog: int
    local_infile: bool
    packet: int
    read_only: bool


def read_server(connection: Connection) -> Facts:
    """Ask the server. Raises pymysql.MySQLError."""
    ((version, flush, log_bin, sync_binlog, local_infile, packet, read_only),) = connection.rows(_VARIABLES)
    return Facts(Engine.of(version), int(flush), bool(log_bin), int(sync_binlog), bool(local_infile), int(packet), bool(read_only))


def judge_server(node: str, facts: Facts) -> Iterator[Finding]:
    """What is wrong with the server's settings. Pure."""
    what, flavour, oldest = f'node "{node}"', facts.engine.flavour, OLDEST[facts.engine.flavour]
    version = ".".join(map(str, facts.engine.version))
    if facts.engine.version < oldest:
        yield error(
            what,
            f"is {NAMES[flavour]} {version}; streamer needs {'.'.join(map(str, oldest[:2]))} or later",
            "upgrade that server, or point the node at another one",
        )
        return
    yield ok(what, f"is {NAMES[flavour]} {version}")
    if facts.read_only:
        yield warning(what, "is read only for users without special rights", "point the node at the server that takes writes")
    if facts.flush != 1:
        yield warning(
            what,
            f"loses commits when it crashes (innodb_flush_log_at_trx_commit = {facts.flush}), and the source has forgotten them",
            "there: SET GLOBAL innodb_flush_log_at_trx_commit = 1, and the same in its configuration",
        )
    if facts.log_bin and facts.sync_binlog != 1:
        yield warning(
            what,
            f"may lose commits when its machine crashes (it has a binary log, and sync_binlog = {facts.sync_binlog})",
            "there: SET GLOBAL sync_binlog = 1, and the same in its configuration",
        )
    if not facts.local_infile:
        yield warning(
            what,
            "does not allow LOAD DATA LOCAL, so that rows go in INSERTs, which is slower",
            "there: SET GLOBAL local_infile = 1, and the same in its configuration",
        )
    if facts.packet < SMALL_PACKET:
        yield warning(
            what,
            f"takes no statement of more than {facts.packet} bytes, so no row that is longer (max_allowed_packet)",
            "there: SET GLOBAL max_allowed_packet = 1073741824, and the same in its configuration",
        )


def check_rights(node: str, database: str, connection: Connection) -> Iterator[Finding]:
    """Try whether we may make a temporary table."""
    try:
        connection.run("CREATE TEMPORARY TABLE streamer_check (n INT PRIMARY KEY) ENGINE = InnoDB")
        connection.run("DROP TEMPORARY TABLE streamer_check")
    except pymysql.MySQLError as problem:
        grant = f"there, as an administrator: GRANT {RIGHTS} ON {quote(database)}.* TO {account(connection)}"
        yield error(f'node "{node}"', f"{reason_of(problem)} (error {code_of(problem)})", grant)


def check_databases(node: str, connection: Connection, databases: Iterable[str]) -> Iterator[Finding]:
    """Tell of databases for schemas that are not there, as far as we may see. Raises pymysql.MySQLError."""
    for name in sorted(databases):
        if not connection.rows("SELECT 1 FROM information_schema.schemata WHERE schema_name = %s", (name,)):
            yield warning(
                f'node "{node}"',
                f"database {quote(name)} does not exist, or streamer has no rights there",
                f"there, as an administrator: CREATE DATABASE IF NOT EXISTS {quote(name)} CHARACTER SET utf8mb4; "
                f"GRANT {RIGHTS} ON {quote(name)}.* TO {account(connection)}",
            )


def account(connection: Connection) -> str:
    """Return the account that the server takes us for, as GRANT wants it. Raises pymysql.MySQLError."""
    ((name,),) = connection.rows("SELECT CURRENT_USER()")
    user, _, host = str(name).rpartition("@")
    return f"{text(user)}@{text(host)}"


def wants_keys(connection: Connection) -> str:
    """Return the setting by which the server makes no table without a primary key; empty if it does. Raises pymysql.MySQLError."""
    return next((str(name) for name, _ in connection.rows(_WANTS_KEYS)), "")


def check_table(node: str, connection: Connection, names: Names, definition: TableDefinition) -> Iterator[Finding]:
    """What is wrong with the table on the target. Raises pymysql.MySQLError."""
    what, engine = f'table "{definition.table}" on "{node}"', Engine.of(connection.rows("SELECT version()")[0][0])
    try:
        wanted = declared_types(definition, engine)
    except SchemaError as problem:
        yield error(what, problem.message, problem.hint)
        return
    try:
        target = read_target(connection, node, names, definition.table)
    except SchemaError as problem:
        yield warning(f'node "{node}"', problem.message.removeprefix(f'node "{node}" '), problem.hint)
        if not definition.primary_key and (setting := wants_keys(connection)):
            yield error(what, f"the server makes no table without a primary key ({setting})", KEYLESS_REMEDY.format(setting))
        return
    yield from _judge_columns(what, engine, names, definition, target)
    yield from _judge_widths(what, names, definition, target, wanted)
    if definition.primary_key:
        try:
            require_key(target, names, definition.table, definition.primary_key)
        except SchemaError as problem:
            yield error(what, problem.message, problem.hint)
        yield from _judge_collations(what, names, definition, target)
    yield from _try_writing(what, node, connection, names.sql(definition.table), target)
    triggers = [str(name) for (name,) in connection.rows(_TRIGGERS, names.of(definition.table))]
    if triggers:
        yield warning(
            what,
            f"has triggers, which fire for the rows that streamer writes: {', '.join(triggers)}",
            f"there: DROP TRIGGER {quote(triggers[0])}, or let them do nothing for the user that streamer connects as",
        )


def _judge_columns(what: str, engine: Engine, names: Names, definition: TableDefinition, target: TargetTable) -> Iterator[Finding]:
    travelling = [c for c in definition.columns if not c.generated]
    for column in travelling:
        if target.column(column.name) is None:
            lack = missing_column(definition.table, column, engine, names)
            yield error(what, f'has no column "{column.name}"', lack.hint)
    for name in sorted(target.required - {fold_case(safe_name(c.name)) for c in travelling}):
        there = target.columns[name]
        yield error(
            what,
            f'column "{there.name}" is NOT NULL without a default, and the source does not have it',
            f"there: ALTER TABLE {names.sql(definition.table)} MODIFY {quote(there.name)} {there.column_type} NULL, "
            "or give it a default",
        )


def _judge_widths(
    what: str, names: Names, definition: TableDefinition, target: TargetTable, wanted: Mapping[str, str]
) -> Iterator[Finding]:
    """Columns that hold less than the source's, by what writing would say of their greatest values."""
    for name, column in ((c.name, c) for c in definition.columns if c.name in wanted):
        there = target.column(name)
        if there is None or target.is_generated(name):
            continue
        made = converter(column.type_oid, declared_column(name, wanted[name]))
        if (problem := lost(SourceType.of(column), converter(column.type_oid, there), made)) is not None:
            not_null = "" if there.nullable else " NOT NULL"
            yield narrower(
                what,
                f'column "{there.name}" is {there.column_type}',
                column.type_name,
                problem,
                f"ALTER TABLE {names.sql(definition.table)} MODIFY {quote(there.name)} {wanted[name]}{not_null}",
            )


def _judge_collations(what: str, names: Names, definition: TableDefinition, target: TargetTable) -> Iterator[Finding]:
    """Two keys that differ on the source may be one where case, accents or trailing blanks don't count."""
    for name in definition.primary_key:
        column = target.column(name)
        collation = target.collations.get(fold_case(safe_name(name)), "")
        if column is None or not collation or collation.endswith("_nopad_bin") or collation == "utf8mb4_0900_bin":
            continue
        if column.charset == "ascii" and collation == "ascii_bin":
            continue
        differs = "trailing blanks do" if collation.endswith("_bin") else "case, accents or trailing blanks may"
        yield warning(
            what,
            f'key column "{name}" has the collation {collation}: to it {differs} not count, so keys of the source may collide',
            f"there: ALTER TABLE {names.sql(definition.table)} MODIFY {quote(column.name)} {column.column_type} "
            "CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL (utf8mb4_0900_bin on MySQL)",
        )


def _try_writing(what: str, node: str, connection: Connection, table: str, target: TargetTable) -> Iterator[Finding]:
    columns = [quote(c.name) for folded, c in target.columns.items() if folded not in target.generated]
    if not columns:
        return
    all_of_them = ", ".join(columns)
    for statement in (
        f"INSERT INTO {table} ({all_of_them}) SELECT {all_of_them} FROM {table} WHERE 1 = 0",
        f"UPDATE {table} SET {columns[0]} = {columns[0]} WHERE 1 = 0",
        f"DELETE FROM {table} WHERE 1 = 0",
    ):
        try:
            connection.rows(f"EXPLAIN {statement}")
        except pymysql.MySQLError as problem:
            grant = f"there, as an administrator: GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {account(connection)}"
            yield error(what, f"{reason_of(problem)} (error {code_of(problem)})", grant)
            return
