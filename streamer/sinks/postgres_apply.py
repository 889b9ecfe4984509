"""Carrying out the steps of a group on a PostgreSQL connection, inside the transaction that the sink has begun.

Small groups are prepared statements that travel in one round trip (pipeline mode); steps with many rows use COPY. The same steps
run without a pipeline when a group is replayed row by row, so that an error belongs to one change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import psycopg

from streamer.errors import ApplyError
from streamer.model import UNCHANGED, Change, Kind, Relation, Row
from streamer.ports import Written
from streamer.session import Connection, reason_of
from streamer.sinks.copytext import format_rows
from streamer.sinks.net import RowWise, SetWise, Step, Truncate
from streamer.sinks.postgres_table import TableWriter

FEW_ROWS: Final = 50
"""Up to here single statements are faster than COPY and a join."""
PIPELINED: Final = 500
"""Statements sent before their answers are read."""
REFUSED: Final = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.InternalError,
    psycopg.NotSupportedError,
    psycopg.ProgrammingError,
)
"""The target's no to what we wrote; all else is trouble with the connection or the server."""
COPY_ROWS: Final = 5000
"""Rows formatted at a time: bounds the memory of one block."""


class Applier:
    """Writes steps; `writer` gives the statements of a relation."""

    def __init__(self, connection: Connection, node: str, writer: Callable[[Relation], TableWriter]) -> None:
        self.node = node
        self._connection = connection
        self._writer = writer
        #: whether to wait for the answer to each change, so that it is known which one the target refuses
        self.careful = False
        self._stages: set[str] = set()
        self._filled: set[str] = set()

    def forget_stages(self) -> None:
        """The transaction was rolled back: temporary tables made in it are gone."""
        self._stages.clear()
        self._filled.clear()

    def committed(self) -> None:
        """The transaction is over: its temporary tables are empty again."""
        self._filled.clear()

    def apply(self, steps: Iterable[Step]) -> Outcome:
        """Write the steps in order. Raises psycopg.Error where the target refuses, in a pipeline possibly later."""
        outcome = Outcome()
        for step in steps:
            self.write(step, outcome)
        return outcome

    def replay(self, changes: Sequence[Change]) -> Outcome:
        """Apply the changes one by one; raises ApplyError that names the first one that the target refuses."""
        outcome = Outcome()
        for step in _one_by_one(changes):
            try:
                if isinstance(step, Truncate):
                    self._truncate(step, outcome)
                else:
                    self._change(step.changes[0], outcome)
                    outcome.settle()
            except REFUSED as error:
                raise self._refusal(step, error) from error
        return outcome

    def write(self, step: Step, outcome: Outcome) -> None:
        """Write one step, and count it. Raises psycopg.Error where the target refuses; if `careful`, what is refused for another
        reason than a constraint is an ApplyError that names the change."""
        if isinstance(step, SetWise):
            self._set_wise(step, outcome)
        elif isinstance(step, Truncate):
            self._truncate(step, outcome)
        else:
            self._row_wise(step, outcome)

    def _truncate(self, step: Truncate, outcome: Outcome) -> None:
        tables = ", ".join(self._writer(r).name for r in step.relations)
        self._connection.execute(f"TRUNCATE {tables}")
        outcome.truncated += len(step.relations)

    def _row_wise(self, step: RowWise, outcome: Outcome) -> None:
        """Write the changes in order, without waiting for the answer to one before the next is sent."""
        if self.careful:
            for change in step.changes:
                self._with_care(change, outcome)
            return
        for start in range(0, len(step.changes), PIPELINED):
            with self._connection.pipeline():
                for change in step.changes[start : start + PIPELINED]:
                    self._change(change, outcome)
            outcome.settle()

    def _with_care(self, change: Change, outcome: Outcome) -> None:
        try:
            self._change(change, outcome)
            outcome.settle()
        except psycopg.IntegrityError:
            raise
        except REFUSED as error:
            raise self._refusal(RowWise([change]), error) from error

    def _refusal(self, step: Truncate | RowWise, error: psycopg.Error) -> ApplyError:
        remedy = "cure the row or the rule on the target; streamer tries again by itself"
        if isinstance(step, Truncate):
            return ApplyError(f'truncate of {step.relations[0]} on "{self.node}" is refused: {reason_of(error)}', remedy)
        kind, relation, old, new = step.changes[0]
        row = self._writer(relation).describe(new or old or ())
        return ApplyError(f'table {relation} on "{self.node}" refuses the {kind} of {row}: {reason_of(error)}', remedy)

    # -- many rows ---------------------------------------------------------------------------------------------------------------

    def _set_wise(self, step: SetWise, outcome: Outcome) -> None:
        writer = self._writer(step.relation)
        key = tuple(step.key)
        if step.deletes:
            self._delete(writer, key, list(step.deletes.values()), outcome)
        if step.updates:
            for present, rows in step.updates_by_columns().items():
                self._update(writer, key, present, rows, outcome)
        if step.inserts:
            self._insert(writer, list(step.inserts.values()), outcome)

    def _delete(self, writer: TableWriter, key: tuple[int, ...], rows: Sequence[Row], outcome: Outcome) -> None:
        keys = writer.pick(key, rows)
        if len(rows) <= FEW_ROWS:
            sql = writer.delete_where(writer.by_key(key))
            outcome.deletes += [self._execute(sql, values) for values in keys]
            outcome.expected += len(rows)
        else:
            self._stage(writer, key, keys)
            deleted = self._join(writer, writer.delete_by_stage(key))
            outcome.deleted += deleted
            outcome.missing += max(0, len(rows) - deleted)

    def _update(
        self, writer: TableWriter, key: tuple[int, ...], present: tuple[int, ...], rows: Sequence[Row], outcome: Outcome
    ) -> None:
        assigned = writer.assigned(present, key)
        if not assigned:
            outcome.updated += len(rows)  # nothing that the target stores has changed
        elif len(rows) <= FEW_ROWS:
            sql = writer.update_where(assigned, writer.by_key(key))
            outcome.updates += [self._execute(sql, values) for values in writer.pick(assigned + key, rows)]
            outcome.expected += len(rows)
        else:
            columns = tuple(sorted(assigned + key))
            self._stage(writer, columns, writer.pick(columns, rows))
            updated = self._join(writer, writer.update_from_stage(columns, assigned, key))
            outcome.updated += updated
            outcome.missing += max(0, len(rows) - updated)

    def _insert(self, writer: TableWriter, rows: Sequence[Row], outcome: Outcome) -> None:
        picked = writer.pick(writer.written, rows)
        if len(rows) <= FEW_ROWS:
            for values in picked:
                self._execute(writer.insert, values)
        else:
            self._copy(writer.copy, picked)
        outcome.inserted += len(rows)

    def _stage(self, writer: TableWriter, columns: Sequence[int], rows: Sequence[Row]) -> None:
        """Fill the temporary table with these rows."""
        name = writer.stage(columns)
        if name not in self._stages:
            self._connection.execute(f"DROP TABLE IF EXISTS {name}")
            self._connection.execute(writer.create_stage(columns))
            self._stages.add(name)
        elif name in self._filled:
            self._connection.execute(f"TRUNCATE {name}")
        self._filled.add(name)
        self._copy(writer.copy_stage(columns), rows)

    def _copy(self, sql: str, rows: Sequence[Row]) -> None:
        with self._connection.cursor().copy(sql) as copy:
            for start in range(0, len(rows), COPY_ROWS):
                copy.write(format_rows(rows[start : start + COPY_ROWS]))

    def _join(self, writer: TableWriter, sql: str) -> int:
        """Run a join with a temporary table, by hash where no index has the key."""
        if not writer.indexed:
            self._connection.execute("SET LOCAL enable_hashjoin = on")
        count = self._connection.execute(sql).rowcount
        if not writer.indexed:
            self._connection.execute("SET LOCAL enable_hashjoin = off")
        return count

    # -- one row -----------------------------------------------------------------------------------------------------------------

    def _change(self, change: Change, outcome: Outcome) -> None:
        """Write one change as it is; the row of an update or delete is found by its old key, or by all its old values."""
        kind, relation, old, new = change
        writer = self._writer(relation)
        if kind is Kind.INSERT and new is not None:
            (values,) = writer.pick(writer.written, [new])
            self._execute(writer.insert, values)
            outcome.inserted += 1
            return
        before = old or new or ()
        if writer.key is not None:
            condition, parameters = writer.by_key(writer.key), [before[i] for i in writer.key]
        else:
            condition, parameters = writer.match(before)
        if new is None:
            outcome.deletes.append(self._execute(writer.delete_where(condition), parameters))
            outcome.expected += 1
        elif assigned := writer.assigned([i for i, v in enumerate(new) if v is not UNCHANGED], ()):
            given = [new[i] for i in assigned]
            outcome.updates.append(self._execute(writer.update_where(assigned, condition), [*given, *parameters]))
            outcome.expected += 1
        else:
            outcome.updated += 1  # nothing that the target stores has changed

    def _execute(self, sql: str, parameters: Sequence[Any]) -> psycopg.Cursor[Any]:
        return self._connection.execute(sql, parameters, prepare=True)


def _one_by_one(changes: Iterable[Change]) -> Iterator[RowWise | Truncate]:
    """Every change as a step of its own, but consecutive truncates together: foreign keys may join the tables."""
    truncated: list[Relation] = []
    for change in changes:
        if change[0] is Kind.TRUNCATE:
            truncated.append(change[1])
            continue
        if truncated:
            yield Truncate(truncated)
            truncated = []
        yield RowWise([change])
    if truncated:
        yield Truncate(truncated)


class Outcome:
    """What has been written; the row counts of pipelined statements are known only once the pipeline has been synced."""

    def __init__(self) -> None:
        self.inserted = self.updated = self.deleted = self.truncated = self.missing = self.expected = 0
        self.updates: list[psycopg.Cursor[Any]] = []
        self.deletes: list[psycopg.Cursor[Any]] = []

    def settle(self) -> None:
        """Count what the statements so far have found; they must have been answered."""
        updated = sum(c.rowcount for c in self.updates)
        deleted = sum(c.rowcount for c in self.deletes)
        self.updated += updated
        self.deleted += deleted
        self.missing += max(0, self.expected - updated - deleted)
        self.updates.clear()
        self.deletes.clear()
        self.expected = 0

    def add(self, other: Outcome) -> None:
        """Count what another one has counted, which is settled."""
        self.inserted += other.inserted
        self.updated += other.updated
        self.deleted += other.deleted
        self.truncated += other.truncated
        self.missing += other.missing

    def written(self) -> Written:
        """Return the counts."""
        self.settle()
        return Written(self.inserted, self.updated, self.deleted, self.truncated, self.missing)
