"""Carrying out a group's changes on an SQLite connection, inside the transaction that the sink has begun.

The net effect is written set-wise; what contradicts itself or hits a constraint is taken back to a savepoint and replayed one
change after the other in source order, so that an error is the database's own and belongs to one change.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from streamer.errors import ApplyError
from streamer.model import Change, Kind, Relation, TableName
from streamer.ports import Written
from streamer.sinks.net import RowWise, SetWise, Step, Truncate, Unfoldable, fold
from streamer.sinks.sqlite_ddl import quote, read_target, refuse_clashes, target_name
from streamer.sinks.sqlite_plan import Plan
from streamer.sinks.unrepresentable import Replacements

REFUSED = (sqlite3.IntegrityError, sqlite3.DataError)
"""What SQLite raises for a row that it does not take."""

_DONE = {Kind.INSERT: "inserted", Kind.UPDATE: "updated", Kind.DELETE: "deleted", Kind.TRUNCATE: "truncated"}


class Applier:
    """Writes changes through one connection; keeps a plan for each relation."""

    def __init__(self, connection: sqlite3.Connection, node: str, replacements: Replacements) -> None:
        self._connection = connection
        self._node = node
        self._replacements = replacements
        self._plans: dict[Relation, Plan] = {}
        self._tables: set[TableName] = set()

    def apply(self, changes: Sequence[Change]) -> Written:
        """Apply the changes. Raises ApplyError for a row that is refused, SchemaError, sqlite3.Error; some may be done then."""
        self._connection.execute("SAVEPOINT streamer_group")
        mark = self._replacements.mark()
        try:
            done = self._steps(fold(changes, lambda relation: self._plan(relation).key))
        except (Unfoldable, *REFUSED):
            self._connection.execute("ROLLBACK TO streamer_group")
            self._replacements.back_to(mark)
            done = self._replay(changes)
        self._connection.execute("RELEASE streamer_group")
        replaced = self._replacements.take()
        return Written(done["inserted"], done["updated"], done["deleted"], done["truncated"], done["missing"], replaced=replaced)

    def _plan(self, relation: Relation) -> Plan:
        plan = self._plans.get(relation)
        if plan is None:
            self._tables.add(relation.table)
            refuse_clashes(self._tables)
            target = read_target(self._connection, self._node, relation.table)
            plan = self._plans[relation] = Plan(self._connection, relation, target, self._replacements)
        return plan

    def _steps(self, steps: Iterable[Step]) -> Counter[str]:
        done: Counter[str] = Counter()
        for step in steps:
            if isinstance(step, SetWise):
                self._set_wise(step, done)
            elif isinstance(step, RowWise):
                self._row_wise(step.changes, done)
            else:
                self._truncate(step, done)
        return done

    def _set_wise(self, step: SetWise, done: Counter[str]) -> None:
        plan, connection = self._plan(step.relation), self._connection
        if step.deletes:
            found = plan.delete.run(connection, step.deletes.values())
            done.update(deleted=found, missing=len(step.deletes) - found)
        for present, rows in step.updates_by_columns().items():
            found = plan.update(present).run(connection, rows)
            done.update(updated=found, missing=len(rows) - found)
        if step.inserts:
            done.update(inserted=plan.insert.run(connection, step.inserts.values()))

    def _row_wise(self, changes: Iterable[Change], done: Counter[str]) -> None:
        for (kind, relation), run in groupby(changes, key=itemgetter(0, 1)):
            if kind is Kind.INSERT:
                done.update(inserted=self._plan(relation).insert.run(self._connection, (new for _, _, _, new in run if new)))
            else:
                for change in run:
                    self._one(change, done)

    def _truncate(self, step: Truncate, done: Counter[str]) -> None:
        for relation in step.relations:
            self._plan(relation)
            self._connection.execute(f"DELETE FROM {quote(target_name(relation.table))}")
            done["truncated"] += 1

    def _replay(self, changes: Iterable[Change]) -> Counter[str]:
        done: Counter[str] = Counter()
        for change in changes:
            try:
                self._one(change, done)
            except REFUSED as error:
                raise self._refused(change, error) from error
        return done

    def _one(self, change: Change, done: Counter[str]) -> None:
        kind, relation, _, _ = change
        if kind is Kind.TRUNCATE:
            self._truncate(Truncate([relation]), done)
            return
        found = self._connection.execute(*self._plan(relation).one(change)).rowcount
        done[_DONE[kind] if found else "missing"] += 1

    def _refused(self, change: Change, error: sqlite3.Error) -> ApplyError:
        kind, relation, _, _ = change
        row = self._plan(relation).describe(change)
        return ApplyError(
            f'table {relation} on "{self._node}" refused the {kind} of the row with {row}: {error}',
            f"correct what is in its way in {quote(target_name(relation.table))}; streamer tries again by itself",
        )
