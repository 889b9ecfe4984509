"""Writing a group to a PostgreSQL target but for what must be held back, and storing that, in the group's open transaction.

What was refused before is tried in parts, each behind a savepoint. A constraint that may be deferred is asked before the commit
asks it: what it refuses is a transaction of the source as a whole, and all changes of that are held.

https://www.postgresql.org/docs/current/sql-set-constraints.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg

from streamer.model import Change, EdgeName, Group
from streamer.ports import Written
from streamer.session import Connection
from streamer.sinks.net import fold
from streamer.sinks.postgres_apply import Applier, Outcome, refusal_of_a_row
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_writer import TableWriters
from streamer.sinks.quarantine import Care, Quarantine
from streamer.sinks.quarantine_table import POSTGRES, QuarantineTable


def quarantine_table(edge: EdgeName, connection: Connection) -> QuarantineTable:
    """Return what keeps the edge's quarantine in the database."""

    def execute(statement: str, parameters: Sequence[object]) -> list[tuple[object, ...]]:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    return QuarantineTable(edge, execute, POSTGRES, "%s")


class CarefulWriter:
    """Writes groups on a session; `applier` writes there."""

    def __init__(self, session: TargetSession, applier: Applier, tables: TableWriters, quarantine: Quarantine) -> None:
        self._session = session
        self._connection = session.connection
        self._applier = applier
        self._tables = tables
        self._quarantine = quarantine
        #: what was written of the group in hand
        self._outcomes: list[Outcome] = []

    def write(self, group: Group, *, whole: bool) -> Written:
        """Write the group; if it is `whole`, it consists of whole transactions, and a commit follows.

        Raises ApplyError where a refused change may not be held back, SchemaError, psycopg.Error.
        """
        self._outcomes.clear()
        hold = self._quarantine.hold(group.changes, self._tables.key_of)
        care = Care(hold, self._attempt, refusal_of_a_row, self._applier.complaint, self._quarantine.on)
        if whole:
            care.write_whole(_transactions(group), self._together)
        else:
            care.write(group.changes)
        outcome = Outcome()
        for one in self._outcomes:
            outcome.add(one)
        return self._quarantine.keep(hold, group, outcome.written())

    def _attempt(self, changes: Sequence[Change]) -> None:
        """Write the changes, or raise; what is refused is undone."""
        steps = fold(changes, self._tables.key_of)
        try:
            with self._applier.pipelined():
                self._applier.execute("SAVEPOINT streamer_attempt")
                outcome = self._applier.apply(steps)
                self._applier.execute("RELEASE SAVEPOINT streamer_attempt")
            outcome.settle()
        except psycopg.Error as error:
            self._undo("streamer_attempt", error)
            raise
        self._outcomes.append(outcome)

    def _together(self, work: Callable[[], None]) -> None:
        """Do the work and have all constraints look at it, or raise; what is refused is undone.

        That they were made to look now is undone in either case: they are to look at the commit.
        """
        written = len(self._outcomes)
        self._connection.execute("SAVEPOINT streamer_transactions")
        work()
        self._connection.execute("SAVEPOINT streamer_constraints")
        try:
            self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg.Error as error:
            self._undo("streamer_transactions", error)
            del self._outcomes[written:]
            raise
        self._session.undo("ROLLBACK TO SAVEPOINT streamer_constraints")
        self._connection.execute("RELEASE SAVEPOINT streamer_transactions")

    def _undo(self, savepoint: str, error: psycopg.Error) -> None:
        """Go back to the savepoint, if the target has refused a row; else the transaction is lost anyway."""
        if refusal_of_a_row(error) is not None:
            self._session.undo(f"ROLLBACK TO SAVEPOINT {savepoint}")
            self._connection.execute(f"RELEASE SAVEPOINT {savepoint}")
            self._applier.forget_stages()


def _transactions(group: Group) -> Sequence[Sequence[Change]]:
    """The changes of each transaction; all in one where nobody has said where they end."""
    ends = list(group.ends) or [len(group.changes)]
    return [group.changes[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
