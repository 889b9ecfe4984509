"""Missing tables of a target, made from the source's definition: a part of `streamer setup`.

Between PostgreSQL databases pg_dump is taken where there is one that knows the source's version; if the target refuses what it
wrote, or there is none, the source's catalog is read. Either is one transaction on the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from streamer.admin import sqlite_files
from streamer.admin.nodes import Say, session
from streamer.capture.catalog import read_tables
from streamer.capture.definition import needed_creations, table_creations
from streamer.capture.dump import dump_creations
from streamer.config import Config
from streamer.errors import SourceError
from streamer.model import TableName
from streamer.session import Connection, reason_of, version
from streamer.sinks.postgres_ddl import create, has_table


def create_missing(config: Config, sync: str, source: str, target: str, say: Say) -> None:
    """Create on `target` the tables that the sync selects on `source` and the target lacks. Raises StreamerError."""
    with session(config, source) as connection:
        tables = read_tables(connection, config.syncs[sync].selects)
        if config.nodes[target].kind == "sqlite":
            made = sqlite_files.create(config, target, [t.definition for t in tables])
            for what in made:
                say(f"{target}: created {what}")
            if not made:
                say(f'{target}: kept file "{config.nodes[target].path}"')
            return
        with session(config, target) as other:
            if missing := [t.table for t in tables if not has_table(other, t.table)]:
                _create(connection, config.nodes[source].url, other, missing, lambda line: say(f"{target}: {line}"))


def _create(source: Connection, url: str, target: Connection, tables: Sequence[TableName], say: Say) -> None:
    try:
        dumped = dump_creations(source, url, tables)
        if dumped is not None:
            for line in create(target, [*needed_creations(source, tables, version(target)), *dumped]):
                say(f"{line} (pg_dump)" if line.startswith("created table") else line)
            return
    except SourceError as error:
        say(f"{error.message}; taking the definitions from the catalog")
    except psycopg.Error as error:
        if target.broken or source.broken:
            raise
        say(f"what pg_dump writes does not work here ({reason_of(error)}); taking the definitions from the catalog")
    for line in create(target, table_creations(source, tables, version(target))):
        say(line)
