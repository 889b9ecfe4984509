"""Writing a large transaction set by set where several nodes write, on the condition that nothing in it needs judgement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from psycopg import sql

from streamer.model import Change, Group, Kind, Relation
from streamer.sinks.net import SetWise, Unfoldable, fleeting, fold
from streamer.sinks.postgres_apply import REFUSED, Applier, Outcome
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_world import MasterTable, World
from streamer.sinks.postgres_writer import GuardedWriter
from streamer.versions import Versions

AT_ONCE: Final = 10_000
"""Tombstones asked for in one query."""


class BulkWriter:
    """Tries large groups."""

    def __init__(self, session: TargetSession, versions: Versions, world: World, table: Callable[[Relation], MasterTable]) -> None:
        self._session = session
        self._connection = session.connection
        self._node = session.node
        self._versions = versions
        self._world = world
        self._table = table

    def suits(self, group: Group) -> bool:
        """Whether the group consists of changes that are found by key, merge nothing, and leave no tombstone but those of rows."""
        relations = {change[1] for change in group.changes}
        if any(not self._table(r).key or self._table(r).merges for r in relations):
            return False
        if any(change[0] is Kind.TRUNCATE for change in group.changes):
            return False
        return not fleeting(group.changes, lambda relation: self._table(relation).key)  # else it would leave no tombstone

    def write(self, group: Group) -> Outcome | None:
        """Write the group in the open transaction; None, and nothing written, if something in it needs judgement."""
        try:
            steps = fold(group.changes, lambda relation: self._table(relation).key)
        except Unfoldable:
            return None
        if not all(isinstance(step, SetWise) for step in steps):
            return None
        self._connection.execute("SAVEPOINT streamer_bulk")
        if (note := self._versions.note_nested(group.origin, self._session.where)) is not None:
            for statement, values in (self._session.tag(group), note):
                self._connection.execute(statement.encode(), values)
        guard = self._versions.guard.replace("%s", sql.Literal(self._versions.mark(group.origin)).as_string(self._connection))
        applier = Applier(self._session.pipeline, self._node, partial(self._guarded, guard))
        try:
            outcome = applier.apply(steps)
            outcome.settle()
        except REFUSED:
            outcome = None
        if outcome is None or outcome.missing or self._were_deleted(group.changes):
            outcome = None
            self._session.undo("ROLLBACK TO SAVEPOINT streamer_bulk")
        self._connection.execute("RELEASE SAVEPOINT streamer_bulk")  # it outlives the rollback, and what follows would be behind it
        return outcome

    def _guarded(self, guard: str, relation: Relation) -> GuardedWriter:
        return self._table(relation).writer.guarded(guard)

    def _were_deleted(self, changes: Sequence[Change]) -> bool:
        """Whether a key that was inserted has a tombstone, or its table was truncated."""
        for relation in {change[1] for change in changes}:
            table = self._table(relation)
            keys = [table.key_of(new) for kind, r, _, new in changes if r is relation and kind is Kind.INSERT and new is not None]
            if any(self._world.deletions(table, block) for block in _blocks(keys)):
                return True
        return False


def _blocks(keys: Sequence[tuple[str, ...]]) -> Iterator[Sequence[tuple[str, ...]]]:
    for start in range(0, len(keys), AT_ONCE):
        yield keys[start : start + AT_ONCE]
