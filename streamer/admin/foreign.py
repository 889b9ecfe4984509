"""What commands ask of a target that is not PostgreSQL: one protocol, with an implementation for each engine.

A target of PostgreSQL is asked in SQL by the commands themselves, because it may be a source too, and has a server's worth of
settings. All others only receive, and this is all that anybody wants to know of them. `target_of` chooses the implementation.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Protocol

from streamer.admin.event_files import EventFiles
from streamer.admin.findings import Finding
from streamer.admin.mysql_database import MysqlDatabase
from streamer.admin.sqlite_files import SqliteFile
from streamer.config import Config
from streamer.model import EdgeName, TableDefinition, TableName


class ForeignTarget(Protocol):
    """A target that is not PostgreSQL. Nothing is kept open between calls; all of them raise StreamerError."""

    @property
    def place(self) -> str:
        """What and where it is, for people, without a password: `file "/var/lib/shop.sqlite"`."""

    def identity(self) -> Hashable:
        """Return what is the same for two nodes exactly if they are one database."""

    def check(self, definitions: Sequence[TableDefinition]) -> list[Finding]:
        """Return what `streamer check` says of it as a target for these tables. Changes nothing."""

    def create(self, definitions: Sequence[TableDefinition]) -> Iterator[str]:
        """Make streamer's own tables and those of `definitions` that are missing; give the name of each when it is made."""

    def statements(self, definitions: Sequence[TableDefinition]) -> list[str]:
        """Return what would make the tables of `definitions`, as `create` would make them where they are missing."""

    def existing(self, tables: Sequence[TableName]) -> frozenset[TableName]:
        """Return those of the tables that are there."""

    def filled(self, tables: Sequence[TableName]) -> frozenset[TableName]:
        """Return those of the tables, which all exist, that have rows."""

    def has_ours(self) -> bool:
        """Return whether streamer keeps something there."""

    def position(self, edge: EdgeName) -> str | None:
        """Return the position that an edge has written, None if nothing is known of the edge."""

    def quarantined(self, edge: EdgeName) -> int | None:
        """Return how many changes of an edge it holds in quarantine, None if it is not set up for that."""

    def copied(self, edge: EdgeName) -> frozenset[TableName]:
        """Return the tables whose initial copy is done or was not needed."""

    def forget(self, syncs: Sequence[str], source: str | None = None) -> list[str]:
        """Forget these syncs, and take streamer's own tables away with the last one; return what was removed.

        With `source`, only forget what came from there.
        """


def target_of(config: Config, node: str) -> ForeignTarget | None:
    """Return the node as a target that is not PostgreSQL; None if it is PostgreSQL."""
    settings = config.nodes[node]
    if settings.kind == "sqlite":
        return SqliteFile(node, settings.path)
    if settings.kind == "mysql":
        return MysqlDatabase(node, settings)
    if settings.kind == "jsonl":
        return EventFiles(node, settings)
    return None
