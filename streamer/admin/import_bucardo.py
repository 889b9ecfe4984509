"""`streamer import-bucardo`: read Bucardo's control database, and make a config and a report of it.

Nothing is changed there, and everything is read in one transaction, so that it belongs together. The trap: what libpq says of a
connection string that it does not understand may hold the password.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn, TypeAlias

import psycopg
from psycopg import conninfo, errors, sql
from psycopg.rows import dict_row

from streamer.bucardo import reading
from streamer.bucardo.control import Control
from streamer.bucardo.translation import Translation, translate
from streamer.errors import ConnectError, SourceError, UsageError
from streamer.session import CONNECT_TIMEOUT, reason_of

Connection: TypeAlias = psycopg.Connection[dict[str, Any]]

SCHEMA: Final = "bucardo"
_READABLE: Final = "-c datestyle=ISO -c intervalstyle=postgres"
"""The text of times that psycopg reads; a server or database may have others by default."""
_WHERE: Final = "give the database of the command bucardo: streamer import-bucardo postgresql://bucardo@HOST:PORT/bucardo"
_GRANTS: Final = "GRANT USAGE ON SCHEMA bucardo TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA bucardo TO {role}"


def import_bucardo(dsn: str) -> Translation:
    """Return what becomes of the control database that a connection string leads to.

    Raises UsageError if it is no connection string, ConnectError, and SourceError if there is no Bucardo 5, or it may not be read.
    """
    try:
        with _connect(dsn) as connection:
            return translate(_read(connection))
    except psycopg.Error as error:
        raise ConnectError(f"Bucardo's control database: {reason_of(error)}", _WHERE) from None


def _connect(dsn: str) -> Connection:
    try:
        parameters: dict[str, Any] = {"dbname": SCHEMA, "connect_timeout": CONNECT_TIMEOUT, **conninfo.conninfo_to_dict(dsn)}
    except psycopg.Error:
        raise UsageError("DSN is not a connection string", _WHERE) from None
    options = f"{parameters.get('options') or ''} {_READABLE}".strip()
    parameters |= {"application_name": "streamer import-bucardo", "client_encoding": "UTF8", "options": options}
    connection = psycopg.connect(row_factory=dict_row, **parameters)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection


def _read(connection: Connection) -> Control:
    place = f'database "{connection.info.dbname}"'
    query = "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname = %s AND relkind = 'r'"
    present = {row["relname"] for row in connection.execute(query, [SCHEMA])}
    if "bucardo_config" not in present:
        delta = "a database that Bucardo replicates" if "bucardo_delta_targets" in present else "no schema of Bucardo's"
        raise SourceError(f"{place} is not Bucardo's control database: it holds {delta}", _WHERE)
    version = reading.version_of(_rows(connection, "bucardo_config"))
    if not version.startswith("5."):
        _refuse_version(place, version)
    if missing := sorted(set(reading.TABLES) - present):
        raise SourceError(
            f'{place} lacks the table "bucardo.{missing[0]}" of Bucardo {version}', "bring it up to date: bucardo upgrade"
        )
    rows = {table: _rows(connection, table) for table in reading.TABLES}
    return reading.from_rows(rows)


def _rows(connection: Connection, table: str) -> list[dict[str, Any]]:
    try:
        return connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(SCHEMA, table))).fetchall()
    except errors.InsufficientPrivilege as error:
        role = connection.info.user
        remedy = f"as its owner: {_GRANTS.format(role=sql.Identifier(role).as_string())}"
        raise SourceError(f'role "{role}" may not read Bucardo\'s control database: {reason_of(error)}', remedy) from None


def _refuse_version(place: str, version: str) -> NoReturn:
    found = f"Bucardo {version}" if version else "a Bucardo that tells no version"
    remedy = "write the config by hand: docs/from-bucardo.md tells what is what, and streamer init writes one to begin with"
    if version.startswith("4.99"):  # what came to be 5
        remedy = "bring it up to date: bucardo upgrade"
    raise SourceError(f"{place} is of {found}, and only Bucardo 5 is read", remedy)
