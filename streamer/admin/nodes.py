"""What all commands need of the config and its databases: which syncs are meant, and sessions that fail with a remedy.

A command is run by a person who waits for an answer: unlike in the daemon nothing is tried again, so an error says what to do.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import psycopg

from streamer.config import Config
from streamer.errors import ConnectError, SourceError, StreamerError, UsageError
from streamer.session import Connection, connect, reason_of, remedy
from streamer.sinks.postgres_table import quote

Say: TypeAlias = Callable[[str], None]
"""Tells the person one thing that was done."""

APPLICATION: Final = "streamer command"
"""What pg_stat_activity shows."""

LOGICAL: Final = "ALTER SYSTEM SET wal_level = logical, then restart that server"

_REMEDIES: Final = (
    (r"permission denied for database (\S+)", "GRANT CREATE ON DATABASE {0} TO {role}"),
    (r"permission denied for schema (\S+)", "GRANT USAGE, CREATE ON SCHEMA {0} TO {role}"),
    (
        r"must be owner of (?:relation|table|partitioned table) (\S+)",
        "only the owner can publish a table: GRANT its owner's role TO {role}; or, unless an application needs it, "
        "ALTER TABLE {0} OWNER TO {role}",
    ),
    (r"must be owner of (\S+ \S+)", "ALTER {0} OWNER TO {role}, or run this command as its owner"),
    (r"permission denied for (?:table|relation) (\S+)", "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {0} TO {role}"),
    (r"permission denied for function (\S+)", "GRANT EXECUTE ON FUNCTION {0} TO {role}"),
    (
        r"permission denied to (?:use replication slots|start WAL sender)|superuser or replication role",
        "ALTER ROLE {role} REPLICATION",
    ),
    (r"requires wal_level", LOGICAL),
    (
        r'unique constraint "pg_\w+"|tuple concurrently (?:updated|deleted)',
        "another command is at work on the same things: when it has ended, run this one again",
    ),
    (r"all replication slots are in use", "raise max_replication_slots and restart that server, or drop a slot that nobody reads"),
)


def chosen_syncs(config: Config, only: str | None) -> list[str]:
    """Return the names of the syncs that a command is for: all, or the one named. Raises UsageError if there is none such."""
    if only is None:
        return list(config.syncs)
    if only not in config.syncs:
        raise UsageError(f'the config has no sync "{only}"', f"it has {', '.join(config.syncs)}")
    return [only]


@contextmanager
def session(config: Config, node: str) -> Iterator[Connection]:
    """Connect to a PostgreSQL node in autocommit mode; errors of the server inside name the node and the remedy.

    Raises ConnectError, StreamerError.
    """
    with connect(node, config.nodes[node].url, application=APPLICATION) as connection:
        try:
            connection.execute("SET search_path = pg_catalog")  # names of types come qualified, and nobody's functions are called
            yield connection
        except psycopg.Error as error:
            raise explained(node, connection, error) from error


def explained(node: str, connection: Connection, error: psycopg.Error) -> StreamerError:
    """Return what the server says, with the statement that cures it where one is known."""
    if connection.broken or error.sqlstate is None:
        return ConnectError(f'node "{node}": {reason_of(error)}', remedy(node, error, "run the command again"))
    reason, role = reason_of(error), quote(connection.info.user)
    for pattern, cure in _REMEDIES:
        if match := re.search(pattern, reason):
            return SourceError(f'node "{node}": {reason}', cure.format(*(g.strip('"') for g in match.groups()), role=role))
    return SourceError(f'node "{node}": {reason}', error.diag.message_hint or "")
