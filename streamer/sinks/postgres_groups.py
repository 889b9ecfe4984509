"""Writing groups of transactions to a PostgreSQL target: the net effect of each, in one target transaction.

What the target refuses is done again change by change, so that the error names the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import psycopg

from streamer.model import Group, Relation
from streamer.ports import Written
from streamer.sinks.in_order import write_in_order
from streamer.sinks.net import SetWise, Step, Unfoldable, fold
from streamer.sinks.postgres_apply import FEW_ROWS, REFUSED, Applier
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_table import TableWriter, read_target


class GroupWriter:
    """Writes groups on a session."""

    def __init__(self, session: TargetSession) -> None:
        self._session = session
        self._connection = session.connection
        self._writers: dict[Relation, TableWriter] = {}
        self._applier = Applier(session.connection, session.node, self._writer)
        self._in_transaction = False

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Apply each group and its progress in one target transaction."""
        return write_in_order(groups, interrupted, self._write)

    def _write(self, group: Group) -> Written:
        with self._session.errors():
            fresh = not self._in_transaction
            if fresh:
                self._session.follow_origin(group.origin.node)
            with suppress(Unfoldable):
                steps = fold(group.changes, lambda relation: self._writer(relation).key)
                try:
                    return self._write_steps(group, fresh, steps)
                except REFUSED:
                    self._undo(fresh)
            return self._write_one_by_one(group, fresh)

    def _write_steps(self, group: Group, fresh: bool, steps: Sequence[Step]) -> Written:
        """Write the net effect; a small group travels in one round trip, commit included."""
        with self._connection.pipeline() if all(map(_is_small, steps)) else nullcontext():
            self._enter(group, fresh)
            outcome = self._applier.apply(steps)
            commit = self._leave(group, fresh)
        self._committed(group, commit)
        return outcome.written()

    def _write_one_by_one(self, group: Group, fresh: bool) -> Written:
        """Write the changes as they were made; what is refused is then known."""
        self._enter(group, fresh)
        outcome = self._applier.replay(group.changes)
        self._committed(group, self._leave(group, fresh))
        return outcome.written()

    def _enter(self, group: Group, fresh: bool) -> None:
        """Begin the transaction, or mark where this group of an open one begins, and write its tag."""
        self._connection.execute("BEGIN" if fresh else "SAVEPOINT streamer_group")
        self._in_transaction = True
        statement, values = self._session.tag(group)
        self._connection.execute(statement.encode(), values, prepare=True)

    def _leave(self, group: Group, fresh: bool) -> psycopg.Cursor[Any] | None:
        """Commit if the group is complete; the cursor will tell how far the target's WAL must be flushed for it."""
        if group.complete:
            self._connection.execute("COMMIT")
            return self._connection.execute(f"SELECT {self._session.insert_position}")
        if not fresh:
            self._connection.execute("RELEASE SAVEPOINT streamer_group")
        return None

    def _committed(self, group: Group, commit: psycopg.Cursor[Any] | None) -> None:
        if commit is None:
            return
        self._in_transaction = False
        self._applier.committed()
        (inserted,) = commit.fetchone() or (None,)
        self._session.committed(group.position, inserted)

    def _undo(self, fresh: bool) -> None:
        self._session.undo("ROLLBACK" if fresh else "ROLLBACK TO SAVEPOINT streamer_group")
        self._in_transaction = not fresh
        self._applier.forget_stages()

    def _writer(self, relation: Relation) -> TableWriter:
        writer = self._writers.get(relation)
        if writer is None:
            writer = TableWriter(relation, read_target(self._connection, self._session.node, relation.table), self._session.node)
            self._writers[relation] = writer
        return writer


def _is_small(step: Step) -> bool:
    return isinstance(step, SetWise) and max(len(step.deletes), len(step.updates), len(step.inserts)) <= FEW_ROWS
