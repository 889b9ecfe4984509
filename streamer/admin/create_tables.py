"""Missing tables of a target, made from the source's definition: a part of `streamer setup`.

Between PostgreSQL databases pg_dump is taken where there is one that knows the source's version; if the target refuses what it
wrote, or there is none, the source's catalog is read. Either is one transaction on the target. Tables that have another name or
fewer columns there come from the catalog (`capture.recast`).
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from streamer.admin.foreign import target_of
from streamer.admin.nodes import Say, session
from streamer.capture.catalog import read_tables
from streamer.capture.definition import needed_creations, table_creations
from streamer.capture.dump import dump_creations
from streamer.capture.recast import recast_creations
from streamer.capture.shaped_tables import shaped_tables
from streamer.config import Config
from streamer.errors import SourceError
from streamer.model import TableName
from streamer.session import Connection, reason_of, version
from streamer.sinks.postgres_ddl import create, has_table


def create_missing(config: Config, sync: str, source: str, target: str, say: Say) -> None:
    """Create on `target` the tables that the sync selects on `source` and the target lacks. Raises StreamerError."""
    with session(config, source) as connection:
        tables = read_tables(connection, config.syncs[sync].selects)
        shapes = config.syncs[sync].shapes_for(target)
        wanted = shaped_tables(tables, shapes)
        if (foreign := target_of(config, target)) is not None:
            made = foreign.create([t.definition for t in wanted])
            for what in made:
                say(f"{target}: created {what}")
            if not made:
                say(f"{target}: kept {foreign.place}")
            return
        with session(config, target) as other:
            missing = [(of, t) for of, t in zip(tables, wanted, strict=True) if not has_table(other, t.table)]
            recast = [(of.table, t.definition) for of, t in missing if (shape := shapes.get(of.table)) and shape.recast]
            plain = [of.table for of, t in missing if of.table not in dict(recast)]
            if plain:
                _create(connection, config.nodes[source].url, other, plain, lambda line: say(f"{target}: {line}"))
            if recast:
                creations = recast_creations(connection, [of for of, _ in recast], [t for _, t in recast], version(other))
                for line in create(other, creations):
                    say(f"{target}: {line}")


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
