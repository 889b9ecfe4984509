"""Carrying out the steps of a group on a PostgreSQL connection, inside the transaction that the sink has begun.

Small groups are prepared statements that travel in one round trip (pipeline mode); steps with many rows use COPY. The same steps
run without a pipeline when a group is replayed row by row, so that an error belongs to one change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from operator import itemgetter
from typing import Final

import psycopg

from streamer.copytext import format_rows
from streamer.errors import ApplyError
from streamer.model import UNCHANGED, Change, Kind, Relation, Row, Value
from streamer.ports import Written
from streamer.session import reason_of, remedy, version
from streamer.sinks.net import RowWise, SetWise, Step, Truncate
from streamer.sinks.postgres_arrays import ARRAY_ROWS, INSERTED_ROWS, MANY_ROWS, SEVERAL_ARRAYS, Together, in_arrays
from streamer.sinks.postgres_pipeline import Answer, Pipeline
from streamer.sinks.postgres_table import quote
from streamer.sinks.postgres_writer import TableWriter

FEW_ROWS: Final = 50
"""Up to here single statements are faster than COPY, and a join where they change rows; they wait for no answer."""
REFUSED: Final = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.InternalError,
    psycopg.NotSupportedError,
    psycopg.ProgrammingError,
)
"""The target's no to what we wrote; all else is trouble with the connection or the server."""
_OF_A_ROW: Final = frozenset(("21", "22", "23", "27", "44", "P0", "09", "38", "39"))
"""Classes of errors that belong to a row: its values, constraints, what functions and triggers say of it."""
_OF_THE_SERVER: Final = "00 01 02 03 08 0A 0B 0F 0L 0P 0Z 10 20 24 25 26 28 2B 2D 2F 34 3B 3D 3F 40 42 53 54 55 57 58 72 F0 HV XX"
"""All other classes that the server has; one that is in neither was made up by a trigger.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""
_TOO_LARGE: Final = "54000"  # an index entry
_WAITING: Final = """
SELECT DISTINCT n.nspname, c.conname FROM pg_catalog.pg_constraint c
JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace
WHERE c.condeferred AND (c.conrelid = ANY (%(tables)s::regclass[]) OR c.confrelid = ANY (%(tables)s::regclass[]))
"""
STAGES: Final = 50
"""Temporary tables that are kept. A commit after the use of one empties all of them, whether they hold rows or not."""
COPY_ROWS: Final = 5000
"""Rows formatted at a time: bounds the memory of one block."""


def refusal_of_a_row(error: Exception) -> str | None:
    """Return why the target did not take a row, if that is what the error says, and it may take others."""
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ("22000" if isinstance(error, psycopg.DataError) else "08000")  # without one, it is psycopg's own
    ours = state == _TOO_LARGE or state[:2] in _OF_A_ROW or state[:2] not in _OF_THE_SERVER
    return reason_of(error) if ours else None


def is_refusal(error: psycopg.Error) -> bool:
    """Whether the target says no to what we wrote; all else is trouble with the connection or the server."""
    return isinstance(error, REFUSED) or refusal_of_a_row(error) is not None


class Applier:
    """Writes steps; `writer` gives the statements of a relation."""

    def __init__(self, pipeline: Pipeline, node: str, writer: Callable[[Relation], TableWriter]) -> None:
        self.node = node
        self._pipeline = pipeline
        self._connection = pipeline.connection
        self._writer = writer
        #: whether to wait for the answer to each change, so that it is known which one the target refuses
        self.careful = False
        #: the temporary tables, the last used last
        self._stages: dict[str, None] = {}
        self._filled: set[str] = set()
        #: whether statements wait in the pipeline until it is left
        self._gathers = False

    @contextmanager
    def pipelined(self) -> Iterator[None]:
        """Send statements without waiting for the answer to one before the next is sent; only a COPY waits, as the protocol wants.

        On leaving all have been answered. Raises psycopg.Error where one was refused.
        """
        before, self._gathers = self._gathers, True
        try:
            yield
            self._pipeline.sync()
        finally:
            self._pipeline.clear()
            self._gathers = before

    def execute(self, statement: str, values: Sequence[Value] | None = None, *, prepare: bool = True) -> Answer:
        """Execute a statement of a transaction, as `Pipeline.add` takes it. Raises psycopg.Error, in a pipeline possibly later."""
        answer = self._pipeline.add(statement, values, prepare=prepare)
        if not self._gathers:
            self._pipeline.sync()
        return answer

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
            except psycopg.Error as error:
                if not is_refusal(error):
                    raise
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
        self._pipeline.sync()  # what is asked of the catalog may be refused, amid the transaction
        tables = ", ".join(self._writer(r).rows for r in step.relations)
        waiting = self._waiting(step.relations)
        if waiting:  # to check what was written before: PostgreSQL truncates no table of which rows still wait for their check
            self.execute(f"SET CONSTRAINTS {waiting} IMMEDIATE")
        self.execute(f"TRUNCATE {tables}")
        if waiting:
            self.execute(f"SET CONSTRAINTS {waiting} DEFERRED")
        outcome.truncated += len(step.relations)

    def _waiting(self, relations: Iterable[Relation]) -> str:
        """The constraints on these tables, and on references to them, that wait for the commit."""
        names = [self._writer(relation).name for relation in relations]
        found = self._connection.execute(_WAITING, {"tables": names}).fetchall()
        return ", ".join(f"{quote(schema)}.{quote(name)}" for schema, name in found)

    def _row_wise(self, step: RowWise, outcome: Outcome) -> None:
        """Write the changes in order, without waiting for the answer to one before the next is sent."""
        if self.careful:
            for change in step.changes:
                self._with_care(change, outcome)
            return
        with self.pipelined():
            for change in step.changes:
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

    def complaint(self, change: Change, error: Exception) -> ApplyError:
        """Return what stops the edge where this change was refused with this error, which is psycopg's."""
        assert isinstance(error, psycopg.Error)
        return self._refusal(Truncate([change[1]]) if change[0] is Kind.TRUNCATE else RowWise([change]), error)

    def _refusal(self, step: Truncate | RowWise, error: psycopg.Error) -> ApplyError:
        way_on = remedy(self.node, error, "cure the row or the rule on the target; streamer tries again by itself")
        if isinstance(step, Truncate):
            return ApplyError(f'truncate of {step.relations[0]} on "{self.node}" is refused: {reason_of(error)}', way_on)
        kind, relation, old, new = step.changes[0]
        row = self._writer(relation).describe(new or old or ())
        return ApplyError(f'table {relation} on "{self.node}" refuses the {kind} of {row}: {reason_of(error)}', way_on)

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
        if (together := self._together(writer, key, key, rows)) is not None:
            outcome.deletes.append((self._join(writer, writer.delete_by(together.rows, key), together.parameters), len(rows)))
        else:
            sql = writer.delete_where(writer.by_key(key))
            outcome.deletes += [(self.execute(sql, values), 1) for values in writer.pick(key, rows)]

    def _update(
        self, writer: TableWriter, key: tuple[int, ...], present: tuple[int, ...], rows: Sequence[Row], outcome: Outcome
    ) -> None:
        assigned = writer.assigned(present, key)
        if not assigned:
            outcome.updated += len(rows)  # nothing that the target stores has changed
            return
        if (together := self._together(writer, key, tuple(sorted(assigned + key)), rows)) is not None:
            sql = writer.update_from(together.rows, assigned, key)
            outcome.updates.append((self._join(writer, sql, together.parameters), len(rows)))
        else:
            sql = writer.update_where(assigned, writer.by_key(key))
            outcome.updates += [(self.execute(sql, values), 1) for values in writer.pick(assigned + key, rows)]

    def _insert(self, writer: TableWriter, rows: Sequence[Row], outcome: Outcome) -> None:
        picked = writer.pick(writer.written, rows)
        if (together := self._in_arrays(writer, writer.written, picked, INSERTED_ROWS)) is not None:
            self.execute(writer.insert_from(together.rows), together.parameters)
        elif len(rows) > FEW_ROWS:
            self._copy(writer.copy, picked)
        else:
            for values in picked:
                self.execute(writer.insert, values)
        outcome.inserted += len(rows)

    def _together(
        self, writer: TableWriter, key: tuple[int, ...], columns: tuple[int, ...], rows: Sequence[Row]
    ) -> Together | None:
        """Bring these columns of rows to where one statement can read them; None where single statements are faster."""
        if len(rows) < ARRAY_ROWS and len(rows) <= FEW_ROWS:
            return None
        picked = writer.pick(columns, _in_order(writer, key, rows))
        if writer.indexed and (together := self._in_arrays(writer, columns, picked, MANY_ROWS)) is not None:
            return together
        return Together(self._stage(writer, columns, picked)) if len(rows) > FEW_ROWS else None

    def _in_arrays(self, writer: TableWriter, columns: Sequence[int], rows: Sequence[Row], most: int) -> Together | None:
        """The rows as the arrays of one statement, where that takes them, and they are not too few or more than `most`."""
        if not ARRAY_ROWS <= len(rows) <= most or not columns or writer.own_casts or not self._takes_arrays:
            return None
        return in_arrays(writer, columns, rows)

    @cached_property
    def _takes_arrays(self) -> bool:
        return version(self._connection) >= SEVERAL_ARRAYS

    def _stage(self, writer: TableWriter, columns: Sequence[int], rows: Sequence[Row]) -> str:
        """Fill the temporary table with these rows; return its name."""
        name = writer.stage(columns)
        if name not in self._stages:
            unused = [] if len(self._stages) < STAGES else [next(iter(self._stages))]
            self.execute(f"DROP TABLE IF EXISTS {', '.join([name, *unused])}")
            self.execute(writer.create_stage(columns))
            for dropped in unused:
                del self._stages[dropped]
                self._filled.discard(dropped)
        elif name in self._filled:
            self.execute(f"TRUNCATE {name}")
        self._stages[name] = self._stages.pop(name, None)
        self._filled.add(name)
        self._copy(writer.copy_stage(columns), rows)
        return name

    def _copy(self, sql: str, rows: Sequence[Row]) -> None:
        self._pipeline.sync()
        with self._connection.cursor().copy(sql) as copy:
            for start in range(0, len(rows), COPY_ROWS):
                copy.write(format_rows(rows[start : start + COPY_ROWS]))

    def _join(self, writer: TableWriter, sql: str, parameters: Sequence[str]) -> Answer:
        """Run a join with rows that came together, by hash where no index has the key."""
        if not writer.indexed:
            self.execute("SET LOCAL enable_hashjoin = on")
        # a plan for a temporary table would stay that for the few rows of the first time
        answer = self.execute(sql, parameters, prepare=bool(parameters))
        if not writer.indexed:
            self.execute("SET LOCAL enable_hashjoin = off")
        return answer

    # -- one row -----------------------------------------------------------------------------------------------------------------

    def _change(self, change: Change, outcome: Outcome) -> None:
        """Write one change as it is; the row of an update or delete is found by its old key, or by all its old values."""
        kind, relation, old, new = change
        writer = self._writer(relation)
        if kind is Kind.INSERT and new is not None:
            (values,) = writer.pick(writer.written, [new])
            self.execute(writer.insert, values)
            outcome.inserted += 1
            return
        before = old or new or ()
        writer.require_assignable(before, new or before)
        if writer.key is not None:
            condition, parameters = writer.by_key(writer.key), [before[i] for i in writer.key]
        else:
            condition, parameters = writer.match(before)
        if new is None:
            outcome.deletes.append((self.execute(writer.delete_where(condition), parameters), 1))
        elif assigned := writer.assigned([i for i, v in enumerate(new) if v is not UNCHANGED], ()):
            given = [new[i] for i in assigned]
            outcome.updates.append((self.execute(writer.update_where(assigned, condition), [*given, *parameters]), 1))
        else:
            outcome.updated += 1  # nothing that the target stores has changed


def _in_order(writer: TableWriter, key: Sequence[int], rows: Sequence[Row]) -> Sequence[Row]:
    """The rows in the order of their keys, as text, so that neighbours in the index are looked up one after the other.

    Not where another unique key might be handed from row to row: that goes well in the order of the source.
    """
    if len(rows) <= FEW_ROWS or not writer.indexed or writer.others(key):
        return rows
    try:
        return sorted(rows, key=itemgetter(*key))
    except TypeError:  # a NULL in the key of one that has only that of the target
        return rows


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
        self.inserted = self.updated = self.deleted = self.truncated = self.missing = 0
        #: statements, and how many rows each should find
        self.updates: list[tuple[Answer, int]] = []
        self.deletes: list[tuple[Answer, int]] = []

    def settle(self) -> None:
        """Count what the statements so far have found; they must have been answered."""
        self.updated += sum(c.rowcount for c, _ in self.updates)
        self.deleted += sum(c.rowcount for c, _ in self.deletes)
        self.missing += sum(max(0, rows - c.rowcount) for c, rows in (*self.updates, *self.deletes))
        self.updates.clear()
        self.deletes.clear()

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
