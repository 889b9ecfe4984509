"""Missing tables of a target, made from the source's definition: a part of `streamer setup`.

Between PostgreSQL databases pg_dump is taken where there is one that knows the source's version; if the target refuses what it
wrote, or there is none, the source's catalog is read. Either is one transaction on the target, with the records of what comes after
the rows. Tables that have another name or fewer columns there come from the catalog (`capture.recast`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import psycopg

from streamer.admin import installation
from streamer.admin.foreign import target_of
from streamer.admin.nodes import Say, session
from streamer.capture import keys
from streamer.capture.catalog import SourceTable, read_tables
from streamer.capture.definition import needed_creations, table_structure
from streamer.capture.dump import dump_structure
from streamer.capture.post_data import Selection
from streamer.capture.recast import recast_creations
from streamer.capture.shaped_tables import shaped_tables
from streamer.config import Config, Sync
from streamer.errors import SourceError
from streamer.model import TableName
from streamer.post_data import PostData, Structure
from streamer.session import Connection, reason_of, version
from streamer.sinks import postgres_post_data
from streamer.sinks.postgres_ddl import RefusedTableError, create, create_tables, has_table


def create_missing(config: Config, sync: str, source: str, target: str, say: Say) -> None:
    """Create on `target` the tables that the sync selects on `source` and the target lacks. Raises StreamerError."""
    with session(config, source) as connection:
        tables = keys.on_targets(read_tables(connection, config.syncs[sync].selects, defaults=True), config.syncs[sync].key_for)
        shapes = config.syncs[sync].shapes_for(target)
        wanted = shaped_tables(tables, shapes)
        if (foreign := target_of(config, target)) is not None:
            kept = True
            for what in foreign.create([t.definition for t in wanted]):
                say(f"{target}: created {what}")
                kept = False
            if kept:
                say(f"{target}: kept {foreign.place}")
            return
        with session(config, target) as other:
            for what in postgres_post_data.retry_refused(other, sync, target):
                say(f"{target}: {what} is tried once more")
            missing = [(of, t) for of, t in zip(tables, wanted, strict=True) if not has_table(other, t.table)]
            recast = [(of.table, t.definition) for of, t in missing if (shape := shapes.get(of.table)) and shape.recast]
            plain = [of.table for of, t in missing if of.table not in dict(recast)]
            if plain:
                selection = selection_of(config.syncs[sync], plain, tables, shapes)
                making = _Making(connection, config.nodes[source].url, other, sync, target, lambda line: say(f"{target}: {line}"))
                making.make(selection)
            if recast:
                creations = recast_creations(connection, [of for of, _ in recast], [t for _, t in recast], version(other))
                for line in create(other, target, creations):
                    say(f"{target}: {line}")


def selection_of(
    settings: Sync, missing: Sequence[TableName], tables: Sequence[SourceTable], shapes: Collection[TableName]
) -> Selection:
    """Return what is wanted of a source whose `tables` the sync selects, for a target that lacks some of them.

    Where several nodes write, all unique indexes are there from the beginning: conflicts are found by them.
    """
    by_name = {table.table: table for table in tables}

    def first(table: TableName, columns: Collection[str]) -> bool:
        of = by_name[table]
        named = tuple(settings.key_for(table))
        return settings.multi_master or set(columns) in (set(of.identity_columns), set(keys.delta_key(of, named)))

    return Selection(missing, [table for table in by_name if table not in shapes], first)


def awaited(connection: Connection, selection: Selection) -> Iterator[PostData]:
    """Give what the source itself, as the target of another sync, is still to get for these tables: its own target gets it too."""
    if installation.has_table(connection, "post_data"):
        for one in postgres_post_data.all_listed(connection):
            if one.on in selection.tables and set(selection.complete).issuperset(one.tables):
                yield one


class _Making:
    """Makes tables of a PostgreSQL target."""

    def __init__(self, source: Connection, url: str, target: Connection, sync: str, node: str, say: Say) -> None:
        self._source = source
        self._url = url
        self._target = target
        self._sync = sync
        self._node = node
        self._say = say

    def make(self, selection: Selection) -> None:
        """Make them as pg_dump writes them, or else as the catalog tells."""
        try:
            dumped = dump_structure(self._source, self._url, selection)
            if dumped is not None:
                needed = needed_creations(self._source, selection.tables, version(self._target))
                for line in self._create(selection, Structure([*needed, *dumped.before], dumped.after, dumped.left_out)):
                    self._say(f"{line} (pg_dump)" if line.startswith("created table") else line)
                return
        except SourceError as error:
            self._say(f"{error.message}; taking the definitions from the catalog")
        except RefusedTableError as error:
            self._say(f"what pg_dump writes does not work here ({error.message}); taking the definitions from the catalog")
        except psycopg.Error as error:
            if self._target.broken or self._source.broken:
                raise
            self._say(f"what pg_dump writes does not work here ({reason_of(error)}); taking the definitions from the catalog")
        for line in self._create(selection, table_structure(self._source, selection, version(self._target))):
            self._say(line)

    def _create(self, selection: Selection, structure: Structure) -> list[str]:
        structure.after += awaited(self._source, selection)
        return create_tables(self._target, self._sync, self._node, structure)
