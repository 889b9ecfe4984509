"""`streamer check`, the server of a node: what it offers and what our role may do there. Facts are read first; verdicts are pure.

https://www.postgresql.org/docs/current/logical-replication-config.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from streamer.admin import installation
from streamer.admin.check_rest import IDLE_LIMIT, WAL_LIMIT
from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.keyless import TRIGGER
from streamer.admin.nodes import LOGICAL
from streamer.admin.same_database import identity
from streamer.capture import delta_objects
from streamer.capture.diagnose import ALLOW_WAL2JSON
from streamer.capture.publication import TRUNCATES
from streamer.session import Connection, version
from streamer.sinks.postgres_session import ORIGIN_REMEDY, ORIGINS
from streamer.sinks.postgres_table import quote

OLDEST_SOURCE: Final = 90400  # logical decoding
INSTEAD: Final = '(where that cannot be had, set its capture to "trigger")'
OLDEST: Final = 80400
OLDEST_MASTER: Final = 90400  # where nothing captures the changes of the target by triggers
STANDBYS: Final = 90000  # standbys that can be asked, and has_sequence_privilege(): version 9.0
REPLICATION: Final = 90100  # the right to replicate, and the view of walsenders: version 9.1
REPLICA_SUFFICES: Final = 190000  # from here on wal_level = replica becomes logical by itself
SETTING_GRANTS: Final = 150000  # GRANT SET ON PARAMETER
OWN_ORIGIN_LIMIT: Final = 180000  # max_active_replication_origins
ORIGIN_FUNCTIONS: Final = (
    "pg_replication_origin_oid(text)",
    "pg_replication_origin_create(text)",
    "pg_replication_origin_drop(text)",
    "pg_replication_origin_session_setup(text)",
    "pg_replication_origin_session_reset()",
    "pg_replication_origin_xact_setup(pg_lsn,timestamptz)",
)
_SETTINGS: Final = (
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "max_active_replication_origins",
    "output_plugin_libraries",
    "server_encoding",
    WAL_LIMIT,
    IDLE_LIMIT,
)


@dataclass(frozen=True, slots=True)
class Server:
    """A node's server and database as our role sees them."""

    version: int
    role: str
    superuser: bool
    replication: bool
    database: str
    #: tells databases apart, whatever address they are reached under
    identity: tuple[str, str]
    in_recovery: bool
    #: the settings that matter, those that the server knows
    settings: dict[str, str]
    slots: int
    senders: int
    origins: int
    may_create: bool
    has_schema: bool
    #: whether the schema streamer lacks what this version keeps in it
    outdated: bool
    #: whether the tables of the schema streamer are ours to write
    may_use_schema: bool
    may_temp: bool
    may_be_replica: bool
    #: functions for replication origins that the role may not call
    denied_functions: tuple[str, ...]

    def allows(self, plugin: str) -> bool:
        """Return whether the setting output_plugin_libraries, where there is one, names the plugin."""
        allowed = self.settings.get("output_plugin_libraries")
        return allowed is None or plugin in library_names(allowed)


@dataclass(frozen=True, slots=True)
class Needs:
    """What the config asks of a node."""

    source: bool
    target: bool
    #: slots that are still to be made
    new_slots: int
    #: slots that nobody reads now
    idle_streams: int
    #: whether a sync from here copies rows, which takes a slot and a sender for the time
    copies: bool
    #: edges that end here and have no origin yet
    new_origins: int
    #: whether a sync has two or more sources, this node among them
    multi_master: bool
    #: the output plugins that its streams use
    plugins: frozenset[str]


def read_server(connection: Connection) -> Server:
    """Ask the server. Raises psycopg.Error."""
    number, ask = version(connection), partial(_ask, connection)
    is_target, is_source = installation.is_there(connection), delta_objects.is_there(connection)
    has_schema = is_target or is_source
    superuser = bool(ask("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
    return Server(
        version=number,
        role=connection.info.user,
        superuser=superuser,
        replication=number >= REPLICATION and bool(ask("SELECT rolreplication FROM pg_roles WHERE rolname = current_user")),
        database=str(ask("SELECT current_database()")),
        identity=identity(connection),
        in_recovery=number >= STANDBYS and bool(ask("SELECT pg_is_in_recovery()")),
        settings=dict(connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(_SETTINGS)])),
        slots=_count(connection, "pg_replication_slots") if number >= OLDEST_SOURCE else 0,
        senders=_count(connection, "pg_stat_replication") if number >= REPLICATION else 0,
        origins=_count(connection, "pg_replication_origin") if number >= ORIGINS else 0,
        may_create=bool(ask("SELECT has_database_privilege(current_database(), 'CREATE')")),
        has_schema=has_schema,
        outdated=is_target and not installation.is_complete(connection),
        may_use_schema=has_schema and _may_use_schema(connection),
        may_temp=bool(ask("SELECT has_database_privilege(current_database(), 'TEMP')")),
        may_be_replica=superuser
        or (number >= SETTING_GRANTS and bool(ask("SELECT has_parameter_privilege('session_replication_role', 'SET')"))),
        denied_functions=tuple(_denied_functions(connection)) if number >= ORIGINS else (),
    )


def _ask(connection: Connection, query: str) -> object:
    """The one value of a query."""
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def _count(connection: Connection, view: str) -> int:
    return int(str(_ask(connection, f"SELECT count(*) FROM {view}")))


def _may_use_schema(connection: Connection) -> bool:
    if not _ask(connection, "SELECT has_schema_privilege('streamer', 'USAGE')"):
        return False
    if connection.execute(_DENIED_TABLES).fetchone():
        return False
    return version(connection) < STANDBYS or not connection.execute(_DENIED_SEQUENCES).fetchone()


_DENIED_TABLES: Final = """
SELECT 1 FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS r
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'streamer') AND c.relkind = 'r'
  AND NOT has_table_privilege(c.oid, r)
"""
_DENIED_SEQUENCES: Final = """
SELECT 1 FROM pg_class c
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'streamer')
  AND CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'USAGE') END
"""


def _denied_functions(connection: Connection) -> Iterator[str]:
    for function in ORIGIN_FUNCTIONS:
        if not _ask(connection, f"SELECT has_function_privilege('pg_catalog.{function}', 'EXECUTE')"):
            yield function


def judge_server(node: str, server: Server, needs: Needs) -> Iterator[Finding]:
    """Yield what is to be said of the server. Pure."""
    what = f'node "{node}"'
    yield ok(what, f"PostgreSQL {_version_text(server.version)}, database {server.database}, role {server.role}")
    if server.version < OLDEST:
        yield error(what, "is older than 8.4, the first version that streamer works with", "upgrade that server")
    if server.in_recovery:
        yield error(what, "is a standby, which can not be written to", f"name its primary in nodes.{node}.url")
    yield from _judge_schema(what, server)
    if needs.source:
        yield from _judge_source(what, server, needs)
    if needs.target:
        yield from _judge_target(what, server, needs)


def _judge_schema(what: str, server: Server) -> Iterator[Finding]:
    if server.has_schema:
        if not server.may_use_schema:
            yield error(
                what,
                f"role {server.role} may not use the schema streamer",
                f"GRANT USAGE ON SCHEMA streamer TO {quote(server.role)}; "
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA streamer TO {quote(server.role)}; "
                f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA streamer TO {quote(server.role)}",
            )
        elif server.outdated:
            yield error(what, "its schema streamer was made by an older version", "run: streamer setup")
    elif not server.may_create:
        yield error(
            what,
            f"role {server.role} may not create the schema streamer",
            f"GRANT CREATE ON DATABASE {quote(server.database)} TO {quote(server.role)}",
        )


def _judge_source(what: str, server: Server, needs: Needs) -> Iterator[Finding]:
    if server.settings.get("server_encoding") == "SQL_ASCII":
        yield warning(
            what,
            "the database has the encoding SQL_ASCII: it takes any bytes, and a text that is not UTF-8 stops its stream",
            f"correct those that there are, found by: pg_dump --data-only {server.database} | iconv -f UTF-8 -t UTF-8 > /dev/null",
        )
    if TRIGGER in needs.plugins:
        return
    if server.version < OLDEST_SOURCE:
        yield error(what, f"PostgreSQL {_version_text(server.version)} has no logical decoding", 'set its capture to "trigger"')
        return
    level = server.settings.get("wal_level", "")
    enough = ("logical", "replica") if server.version >= REPLICA_SUFFICES else ("logical",)
    if level not in enough:
        yield error(what, f"wal_level is {level}, it must be logical {INSTEAD}", LOGICAL)
    if not (server.superuser or server.replication):
        yield error(what, f"role {server.role} may not replicate {INSTEAD}", f"ALTER ROLE {quote(server.role)} REPLICATION")
    yield from _judge_limits(what, server, needs)
    if server.version < TRUNCATES:
        yield warning(
            what,
            "does not tell of TRUNCATE before version 11: what is truncated there stays on the targets",
            "empty replicated tables with DELETE, or truncate them on the targets too",
        )
    if "wal2json" in needs.plugins and not server.allows("wal2json"):
        allowed = server.settings["output_plugin_libraries"]
        yield error(what, f"refuses the plugin wal2json (output_plugin_libraries = {allowed})", ALLOW_WAL2JSON)
    if "pgoutput" in needs.plugins and needs.new_slots and not server.may_create:
        yield error(
            what,
            f"role {server.role} may not create publications",
            f"GRANT CREATE ON DATABASE {quote(server.database)} TO {quote(server.role)}",
        )


def library_names(setting: str) -> set[str]:
    """Return the elements of output_plugin_libraries; a quoted one is a single name, whatever commas it holds."""
    names, name, quoted = [], "", False
    for character in setting:
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            names.append(name)
            name = ""
        else:
            name += character
    return {n.strip() for n in (*names, name) if n.strip()}


def _judge_limits(what: str, server: Server, needs: Needs) -> Iterator[Finding]:
    slots = needs.new_slots + needs.copies
    senders = needs.idle_streams + needs.copies
    for setting, used, wanted in (
        ("max_replication_slots", server.slots, slots),
        ("max_wal_senders", server.senders, senders),
    ):
        limit = int(server.settings.get(setting, "0"))
        if limit - used < wanted:
            yield error(
                what,
                f"{used} of {limit} {setting} are in use, {wanted} more are needed" + (", one of them for the copy" * needs.copies),
                f"ALTER SYSTEM SET {setting} = {used + wanted + 4}, then restart that server",
            )


def _judge_target(what: str, server: Server, needs: Needs) -> Iterator[Finding]:
    role = quote(server.role)
    if needs.multi_master and TRIGGER not in needs.plugins and server.version < OLDEST_MASTER:
        yield error(
            what,
            f"PostgreSQL {_version_text(server.version)} can be a source among several, but not their target only: that needs 9.4",
            "make it a source, or give the sync one source",
        )
    if not server.may_temp:
        yield error(
            what,
            f"role {server.role} may not create temporary tables",
            f"GRANT TEMPORARY ON DATABASE {quote(server.database)} TO {role}",
        )
    if not server.may_be_replica:
        grant = f"GRANT SET ON PARAMETER session_replication_role TO {role}"
        yield warning(
            what,
            f"role {server.role} may not set session_replication_role: triggers and foreign keys will fire for replicated rows",
            grant if server.version >= SETTING_GRANTS else "use a superuser as the role of this target",
        )
    if server.version >= ORIGINS:
        yield from _judge_origins(what, server, needs)


def _judge_origins(what: str, server: Server, needs: Needs) -> Iterator[Finding]:
    if server.denied_functions:
        instead = "; where a row comes from is kept in a table beside it, which takes longer" if needs.multi_master else ""
        yield warning(
            what,
            f"role {server.role} may not use replication origins: rows will not carry the time of their original commit{instead}",
            ORIGIN_REMEDY.format(role=quote(server.role)).partition("; and")[0],
        )
        return
    setting = "max_active_replication_origins" if server.version >= OWN_ORIGIN_LIMIT else "max_replication_slots"
    limit = int(server.settings.get(setting, "0"))
    if limit - server.origins < needs.new_origins:
        yield warning(
            what,
            f"{server.origins} replication origins of {limit} ({setting}) exist, {needs.new_origins} more are wanted: "
            "without one, rows will not carry the time of their original commit",
            f"ALTER SYSTEM SET {setting} = {server.origins + needs.new_origins + 4}, then restart that server",
        )


def _version_text(number: int) -> str:
    if number >= 100000:
        return f"{number // 10000}.{number % 10000}"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
