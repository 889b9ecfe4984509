"""Writing groups of transactions to a PostgreSQL target: the net effect of each, in one target transaction.

What the target refuses is done again change by change, so that the error names the row; or, where it has a quarantine, written but
for what must be held back (`postgres_care`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import psycopg
from psycopg import pq

from streamer.errors import ApplyError
from streamer.model import Group
from streamer.ports import Written
from streamer.session import reason_of
from streamer.sinks.in_order import write_in_order
from streamer.sinks.net import Step, Unfoldable, fold
from streamer.sinks.postgres_apply import Applier, is_refusal
from streamer.sinks.postgres_care import CarefulWriter
from streamer.sinks.postgres_pipeline import Answer
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_writer import TableWriters
from streamer.sinks.quarantine import Quarantine


class GroupWriter:
    """Writes groups on a session."""

    def __init__(self, session: TargetSession, quarantine: Quarantine) -> None:
        self._session = session
        self._connection = session.connection
        self._position = f"SELECT {session.insert_position}"
        self._quarantine = quarantine
        self._tables = TableWriters(session.connection, session.node)
        self._applier = Applier(session.pipeline, session.node, self._tables.of)
        self._careful = CarefulWriter(session, self._applier, self._tables, quarantine)
        self._in_transaction = False

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Apply each group and its progress in one target transaction."""
        return write_in_order(groups, interrupted, self._write)

    def _write(self, group: Group) -> Written:
        with self._session.errors():
            fresh = not self._in_transaction
            if fresh:
                self._session.follow_origin(group.origin.node)
            if not self._quarantine.holding:
                self._tables.meet({change[1] for change in group.changes})
                with suppress(Unfoldable):
                    steps = fold(group.changes, self._tables.key_of)
                    try:
                        return self._write_steps(group, fresh, steps)
                    except psycopg.Error as error:
                        if not is_refusal(error):
                            raise
                        self._undo(fresh, error)
                if not self._quarantine.takes(group):
                    return self._write_one_by_one(group, fresh)
            return self._write_with_care(group, fresh)

    def _write_steps(self, group: Group, fresh: bool, steps: Sequence[Step]) -> Written:
        """Write the net effect; a small group travels in one round trip, commit included, and a large one in few."""
        with self._applier.pipelined():
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

    def _write_with_care(self, group: Group, fresh: bool) -> Written:
        """Write what is not held back, and store what is."""
        self._enter(group, fresh)
        written = self._careful.write(group, whole=fresh and group.complete)
        self._committed(group, self._leave(group, fresh))
        return written

    def _enter(self, group: Group, fresh: bool) -> None:
        """Begin the transaction, or mark where this group of an open one begins, and write its tag."""
        self._applier.execute("BEGIN" if fresh else "SAVEPOINT streamer_group", ())
        self._in_transaction = True
        self._applier.execute(*self._session.checked_tag(group))

    def _leave(self, group: Group, fresh: bool) -> Answer | None:
        """Commit if the group is complete; the answer will tell how far the target's WAL must be flushed for it."""
        if group.complete:
            self._applier.execute("COMMIT", ())
            return self._applier.execute(self._position, ())
        if not fresh:
            self._applier.execute("RELEASE SAVEPOINT streamer_group", ())
        return None

    def _committed(self, group: Group, commit: Answer | None) -> None:
        if commit is None:
            return
        self._in_transaction = False
        self._applier.committed()
        self._session.committed(group.position, commit.cell)

    def _undo(self, fresh: bool, error: psycopg.Error) -> None:
        if not fresh and self._connection.info.transaction_status == pq.TransactionStatus.IDLE:
            where = f'edge {self._session.edge}: node "{self._session.node}"'
            raise ApplyError(
                f"{where} refuses the commit of a large transaction: {reason_of(error)}",
                "cure the rows or the rule on the target; streamer tries again by itself",
            ) from error
        self._session.undo("ROLLBACK" if fresh else "ROLLBACK TO SAVEPOINT streamer_group")
        self._in_transaction = not fresh
        self._applier.forget_stages()
