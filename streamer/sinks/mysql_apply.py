"""Carrying out a group's changes on a MySQL or MariaDB connection, inside the transaction that the sink has begun.

As in sqlite_apply, the net effect is written set-wise; what contradicts itself or is refused is taken back to a savepoint and
replayed one change after the other in source order, so that an error is the server's own and belongs to one change.

The trap: tables are altered by hand while we run. Every few seconds of use a table is looked at again, and after an error about
columns at once, so that the error says what is missing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

import pymysql
from pymysql.constants import ER

from streamer.errors import ApplyError
from streamer.model import Change, Kind, Relation, Row, TableName
from streamer.ports import Written
from streamer.sinks.mysql_bulk import FEW, Bulk, Server
from streamer.sinks.mysql_ddl import Names
from streamer.sinks.mysql_fields import Fields
from streamer.sinks.mysql_plan import BATCH, Plan
from streamer.sinks.mysql_session import Connection, Error, code_of, reason_of
from streamer.sinks.mysql_table import read_target
from streamer.sinks.net import RowWise, SetWise, Step, Truncate, Unfoldable, fold
from streamer.sinks.unrepresentable import Replacements

LOOK_SECONDS: Final = 5.0
"""For how long a table is taken to be as it was."""

_REFUSALS: Final = frozenset(
    {1048, 1062, 1169, 1216, 1217, 1264, 1265, 1292, 1300, 1364, 1366, 1367, 1369, 1406, 1411, 1451, 1452, 1526, 1586, 1644, 1690}
    | {1906, 3105, 3140, 3141, 3143, 3156, 3819, 3988, 4025, 4078}
)
"""Errors that belong to a row: NULLs, duplicates, ranges, lengths, foreign keys, partitions, triggers, JSON, checks.

https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html, https://mariadb.com/kb/en/mariadb-error-code-reference/
"""
_ALTERED: Final = (ER.BAD_FIELD_ERROR, ER.NO_SUCH_TABLE, ER.NO_SUCH_INDEX)
_DONE: Final = {Kind.INSERT: "inserted", Kind.UPDATE: "updated", Kind.DELETE: "deleted"}


def is_refusal(error: Error) -> bool:
    """Whether the server did not take a row, and may take others."""
    return code_of(error) in _REFUSALS


class Applier:
    """Writes changes through one connection; keeps a plan for each relation."""

    def __init__(self, connection: Connection, server: Server, node: str, names: Names, replacements: Replacements) -> None:
        self._connection = connection
        self._server = server
        self._bulk = Bulk(connection, server, replacements)
        self._node = node
        self._names = names
        self._replacements = replacements
        self._plans: dict[Relation, tuple[Plan, float]] = {}
        self._tables: set[TableName] = set()

    def apply(self, changes: Sequence[Change]) -> Written:
        """Apply the changes; some may be done if it fails.

        Raises ApplyError for a row that is refused, SchemaError, pymysql.MySQLError.
        """
        try:
            done = self._apply(changes)
        except pymysql.MySQLError as error:
            if code_of(error) in _ALTERED:
                for relation in {relation for _, relation, _, _ in changes}:
                    self._plan(relation, anew=True)  # says what is missing
            raise
        return Written(done["inserted"], done["updated"], done["deleted"], done["truncated"], done["missing"])

    def _apply(self, changes: Sequence[Change]) -> Counter[str]:
        mark = self._replacements.mark()
        self._connection.run("SAVEPOINT streamer_group")
        try:
            return self._steps(fold(changes, lambda relation: self._plan(relation).key))
        except Unfoldable:
            pass
        except pymysql.MySQLError as error:
            if not is_refusal(error):
                raise
        self._connection.run("ROLLBACK TO SAVEPOINT streamer_group")
        self._replacements.back_to(mark)
        return self._replay(changes)

    def _plan(self, relation: Relation, *, anew: bool = False) -> Plan:
        plan, until = self._plans.get(relation, (None, 0.0))
        if plan is not None and time.monotonic() < until and not anew:
            return plan
        self._tables.add(relation.table)
        self._names.refuse_clashes(self._tables)
        target = read_target(self._connection, self._node, self._names, relation.table)
        if plan is None or plan.target != target:
            plan = Plan(relation, target, self._names, self._server.engine, self._replacements)
        self._plans[relation] = plan, time.monotonic() + LOOK_SECONDS
        return plan

    # -- set-wise ----------------------------------------------------------------------------------------------------------------

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
        plan = self._plan(step.relation)
        if step.deletes:
            found = self._delete(plan, list(step.deletes.values()))
            done.update(deleted=found, missing=len(step.deletes) - found)
        for present, rows in step.updates_by_columns().items():
            found = self._update(plan, present, rows)
            done.update(updated=found, missing=len(rows) - found)
        if step.inserts:
            done.update(inserted=self._bulk.fill(plan.table, plan.rows, list(step.inserts.values())))

    def _delete(self, plan: Plan, rows: Sequence[Row]) -> int:
        if len(rows) < FEW:
            return self._bulk.run(plan.delete_few(rows), plan.table)
        key = plan.key or ()
        self._fill_batch(plan.create_batch(key), plan.batch(key), rows)
        return self._connection.run(plan.delete_batch)

    def _update(self, plan: Plan, present: tuple[int, ...], rows: Sequence[Row]) -> int:
        if len(rows) < FEW:
            return sum(self._bulk.run(plan.update_one(row), plan.table) for row in rows)
        columns = plan.update_columns(present)
        self._fill_batch(plan.create_batch(columns), plan.batch(columns), rows)
        return self._connection.run(plan.update_batch(columns, self._dense(plan, len(rows))))

    def _dense(self, plan: Plan, rows: int) -> str:
        """The condition for the range of keys that the temporary table holds, if it holds at least half of the target's there."""
        if not (key_range := plan.key_range()):
            return ""
        ((low, high),) = self._connection.rows(key_range)
        within = plan.within(low, high)
        ((found,),) = self._connection.rows(plan.count_within(within, 2 * rows + 1))
        return within if found <= 2 * rows else ""

    def _fill_batch(self, create: str, fields: Fields, rows: Sequence[Row]) -> None:
        """Make the temporary table anew: to empty it would be a commit, or slow."""
        self._connection.run(f"DROP TEMPORARY TABLE IF EXISTS {BATCH}")
        self._connection.run(create)
        self._bulk.fill(BATCH, fields, rows)

    # -- one by one --------------------------------------------------------------------------------------------------------------

    def _row_wise(self, changes: Iterable[Change], done: Counter[str]) -> None:
        for (kind, relation), run in groupby(changes, key=itemgetter(0, 1)):
            if kind is Kind.INSERT:
                plan = self._plan(relation)
                done.update(inserted=self._bulk.fill(plan.table, plan.rows, [new for _, _, _, new in run if new]))
            else:
                for change in run:
                    self._one(change, done)

    def _truncate(self, step: Truncate, done: Counter[str]) -> None:
        """Delete all rows: TRUNCATE would be a commit."""
        for relation in step.relations:
            self._connection.run(f"DELETE FROM {self._plan(relation).table}")
            done["truncated"] += 1

    def _replay(self, changes: Iterable[Change]) -> Counter[str]:
        done: Counter[str] = Counter()
        for change in changes:
            try:
                self._one(change, done)
            except pymysql.MySQLError as error:
                if not is_refusal(error):
                    raise
                raise self._refused(change, error) from error
        return done

    def _one(self, change: Change, done: Counter[str]) -> None:
        kind, relation, _, _ = change
        if kind is Kind.TRUNCATE:
            self._truncate(Truncate([relation]), done)
            return
        plan = self._plan(relation)
        found = self._bulk.run(plan.one(change), plan.table)
        done[_DONE[kind] if found else "missing"] += 1

    def _refused(self, change: Change, error: Error) -> ApplyError:
        kind, relation, _, _ = change
        plan = self._plan(relation)
        return ApplyError(
            f'table {relation} on "{self._node}" refused the {kind} of the row with {plan.describe(change)}: {reason_of(error)}',
            f"correct what is in its way in {plan.table}; streamer tries again by itself",
        )
