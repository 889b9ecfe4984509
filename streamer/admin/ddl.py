"""`streamer ddl`: the statements that make the tables of a sync on a target. Nothing is changed.

They are what `streamer setup` executes, but that it prefers pg_dump's between PostgreSQL databases, and what `streamer run` does
when the rows are there. The trap: some depend on the target's server and its version, so it must be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamer.admin.create_tables import awaited, selection_of
from streamer.admin.foreign import target_of
from streamer.admin.nodes import chosen_syncs, session
from streamer.capture import keys
from streamer.capture.catalog import SourceTable, read_tables
from streamer.capture.definition import table_structure
from streamer.capture.recast import recast_creations
from streamer.capture.shaped_tables import shaped_tables
from streamer.config import Config
from streamer.errors import UsageError
from streamer.model import TableName
from streamer.post_data import Structure, rounds
from streamer.session import Connection, version
from streamer.shape_config import Shape
from streamer.sinks.postgres_ddl import exists, has_table


@dataclass(frozen=True, slots=True)
class Statements:
    """What makes tables: before their rows, and after them."""

    before: list[str]
    after: list[str]

    @property
    def all(self) -> list[str]:
        """All of them, in order."""
        return self.before + self.after


def statements(config: Config, sync: str, target: str, *, existing: bool = False) -> Statements:
    """Return the statements for the tables that the target lacks; with `existing` for all, as if it had none.

    Raises UsageError if the sync does not write there, StreamerError.
    """
    chosen_syncs(config, sync)
    source = next(iter(config.feeders(sync, target)), None) if target in config.nodes else None
    settings = config.syncs[sync]
    if source is None or target not in settings.sources + settings.targets:
        raise UsageError(
            f'sync "{sync}" has no target "{target}"', f"its targets are {', '.join(settings.targets or settings.sources)}"
        )
    with session(config, source) as connection:
        tables = keys.on_targets(read_tables(connection, settings.selects, defaults=True), settings.key_for)
        shapes = settings.shapes_for(target)
        wanted = shaped_tables(tables, shapes)
        foreign = target_of(config, target)
        if foreign is None:
            return _on_server(config, sync, target, connection, tables, shapes, existing=existing)
        there = frozenset[TableName]() if existing else foreign.existing([t.table for t in wanted])
        return Statements(foreign.statements([t.definition for t in wanted if t.table not in there]), [])


def _on_server(
    config: Config,
    sync: str,
    target: str,
    source: Connection,
    tables: Sequence[SourceTable],
    shapes: dict[TableName, Shape],
    *,
    existing: bool,
) -> Statements:
    """The statements for a PostgreSQL target."""
    with session(config, target) as other:
        pairs = list(zip(tables, shaped_tables(tables, shapes), strict=True))
        missing = [(of, t) for of, t in pairs if existing or not has_table(other, t.table)]
        recast = [(of, t) for of, t in missing if (shape := shapes.get(of.table)) and shape.recast]
        plain = [of.table for of, t in missing if (of, t) not in recast]
        made = Structure()
        if plain:
            selection = selection_of(config.syncs[sync], plain, tables, shapes)
            made = table_structure(source, selection, version(other))
            made.after += awaited(source, selection)
        if recast:
            definitions = [t.definition for _, t in recast]
            made.before += recast_creations(source, [of.table for of, _ in recast], definitions, version(other))
        before = [c.statement for c in made.before if existing or not exists(other, c)]
        return Statements(before, [one.statement for objects in rounds(made.after) for one in objects])
