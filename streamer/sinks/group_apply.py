"""Carrying out a group's changes in the transaction that a sink has begun, whatever the engine; for targets that only receive.

The net effect is written set-wise; what contradicts itself or is refused is taken back to a savepoint and replayed one change after
the other in source order, so that an error is the engine's own and belongs to one change; or, where the target has a quarantine,
written but for what must be held back. What engines differ in is behind `Table`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final, Protocol

from streamer.errors import ApplyError
from streamer.model import Change, Group, Kind, Relation, Row
from streamer.ports import Written
from streamer.sinks.net import RowWise, SetWise, Step, Unfoldable, fold
from streamer.sinks.quarantine import Care, Quarantine
from streamer.sinks.unrepresentable import Replacements

_DONE: Final = {Kind.INSERT: "inserted", Kind.UPDATE: "updated", Kind.DELETE: "deleted"}


class Table(Protocol):
    """The table of a relation. What writes returns how many rows it found or wrote, and raises what the driver raises."""

    @property
    def name(self) -> str:
        """The name, as SQL writes it."""

    @property
    def key(self) -> tuple[int, ...] | None:
        """The columns of the relation that address a row; None if nothing does."""

    def delete(self, rows: Sequence[Row]) -> int:
        """Delete rows by their key."""

    def update(self, present: tuple[int, ...], rows: Sequence[Row]) -> int:
        """Update rows by their key; all of them carry the columns `present`."""

    def insert(self, rows: Sequence[Row]) -> int:
        """Insert whole rows."""

    def write(self, change: Change) -> int:
        """Write one change of one row. Raises SchemaError if nothing tells which row."""

    def empty(self) -> None:
        """Delete all rows, inside the transaction."""

    def describe(self, change: Change) -> str:
        """Return the row's key, or its first columns, for people."""


class Applier:
    """Writes changes to tables of a node, which `table_of` finds; it raises SchemaError if one is not there, or lacks something.

    `run` executes a statement. `refusal` tells why a row was refused, if that is what an error of the driver says.
    """

    def __init__(
        self,
        node: str,
        table_of: Callable[[Relation], Table],
        run: Callable[[str], object],
        refusal: Callable[[Exception], str | None],
        replacements: Replacements,
    ) -> None:
        self._node = node
        self._table_of = table_of
        self._run = run
        self._refusal = refusal
        self._replacements = replacements

    def apply(self, group: Group, quarantine: Quarantine) -> Written:
        """Apply the changes; some may be done if it fails.

        Raises ApplyError for a row that is refused and not held back, SchemaError, and what the driver raises.
        """
        if quarantine.holding:
            return self._apply_with_care(group, quarantine)
        try:
            done = self._attempt(group.changes, last=group.complete)
        except Exception as error:
            if not isinstance(error, Unfoldable) and self._reason(error) is None:
                raise
            if quarantine.takes(group):
                return self._apply_with_care(group, quarantine)
            if isinstance(error, ApplyError):
                raise
            done = self._replay(group.changes)
        return _written(done)

    def _attempt(self, changes: Sequence[Change], *, last: bool = False) -> Counter[str]:
        """Write the net effect, or raise, having undone what was written if it contradicts itself or is refused.

        Savepoints would pile up in a long transaction; the commit, if this is the `last` work before it, ends them all.
        """
        self._run("SAVEPOINT streamer_group")
        mark = self._replacements.mark()
        try:
            done = self._steps(fold(changes, self._key_of))
        except Exception as error:
            if isinstance(error, Unfoldable) or self._reason(error) is not None:
                self._run("ROLLBACK TO SAVEPOINT streamer_group")
                self._run("RELEASE SAVEPOINT streamer_group")
                self._replacements.back_to(mark)
            raise
        if not last:
            self._run("RELEASE SAVEPOINT streamer_group")
        return done

    def _apply_with_care(self, group: Group, quarantine: Quarantine) -> Written:
        done: Counter[str] = Counter()
        hold = quarantine.hold(group.changes, self._key_of)
        care = Care(hold, lambda changes: done.update(self._attempt(changes)), self._reason, self._complaint, quarantine.on)
        care.write(group.changes)
        return quarantine.keep(hold, group, _written(done))

    def _key_of(self, relation: Relation) -> tuple[int, ...] | None:
        return self._table_of(relation).key

    def _reason(self, error: Exception) -> str | None:
        """Why a row was refused: by the engine, or by us because the column cannot hold a value."""
        return error.message if isinstance(error, ApplyError) else self._refusal(error)

    def _complaint(self, change: Change, error: Exception) -> ApplyError:
        return error if isinstance(error, ApplyError) else self._refused(change, self._refusal(error) or "")

    # -- set-wise ----------------------------------------------------------------------------------------------------------------

    def _steps(self, steps: Iterable[Step]) -> Counter[str]:
        done: Counter[str] = Counter()
        for step in steps:
            if isinstance(step, SetWise):
                self._set_wise(step, done)
            elif isinstance(step, RowWise):
                self._row_wise(step.changes, done)
            else:
                self._truncate(step.relations, done)
        return done

    def _set_wise(self, step: SetWise, done: Counter[str]) -> None:
        table = self._table_of(step.relation)
        if step.deletes:
            found = table.delete(list(step.deletes.values()))
            done.update(deleted=found, missing=len(step.deletes) - found)
        for present, rows in step.updates_by_columns().items():
            found = table.update(present, rows)
            done.update(updated=found, missing=len(rows) - found)
        if step.inserts:
            done.update(inserted=table.insert(list(step.inserts.values())))

    # -- one by one --------------------------------------------------------------------------------------------------------------

    def _row_wise(self, changes: Iterable[Change], done: Counter[str]) -> None:
        for (kind, relation), run in groupby(changes, key=itemgetter(0, 1)):
            if kind is Kind.INSERT:
                done.update(inserted=self._table_of(relation).insert([new for _, _, _, new in run if new is not None]))
            else:
                for change in run:
                    self._one(change, done)

    def _truncate(self, relations: Iterable[Relation], done: Counter[str]) -> None:
        for relation in relations:
            self._table_of(relation).empty()
            done["truncated"] += 1

    def write(self, changes: Sequence[Change]) -> Written:
        """Write the net effect; if it is refused, the changes one after the other, to see which. Raises what `apply` raises."""
        try:
            return _written(self._attempt(changes))
        except Exception as error:
            if not isinstance(error, Unfoldable) and self._reason(error) is None:
                raise
        return _written(self._replay(changes))

    def _replay(self, changes: Iterable[Change]) -> Counter[str]:
        done: Counter[str] = Counter()
        for change in changes:
            try:
                self._one(change, done)
            except Exception as error:
                if (reason := self._refusal(error)) is None:
                    raise
                raise self._refused(change, reason) from error
        return done

    def _one(self, change: Change, done: Counter[str]) -> None:
        kind, relation, _, _ = change
        if kind is Kind.TRUNCATE:
            self._truncate([relation], done)
        else:
            done[_DONE[kind] if self._table_of(relation).write(change) else "missing"] += 1

    def _refused(self, change: Change, reason: str) -> ApplyError:
        kind, relation, _, _ = change
        table = self._table_of(relation)
        row = "" if kind is Kind.TRUNCATE else f" of the row with {table.describe(change)}"
        return ApplyError(
            f'table {relation} on "{self._node}" refused the {kind}{row}: {reason}',
            f"correct what is in its way in {table.name}; streamer tries again by itself",
        )


def _written(done: Counter[str]) -> Written:
    return Written(done["inserted"], done["updated"], done["deleted"], done["truncated"], done["missing"])
