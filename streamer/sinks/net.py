"""The net effect of a group: what remains to be written when every key is written once. Pure.

Changes are folded per relation and key into rows to delete, to update and to insert, which a sink writes set-wise in that
order. What cannot be folded (a changed key, a truncate, an update or delete of a table without a key, a new version of a
relation) keeps its place: `fold` returns steps, to be applied one after the other.

The trap: two inserts of one key are an error of the target, not something to fold; `fold` raises Unfoldable and the sink
replays the group row by row, so that the error is the database's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, TypeAlias

from streamer.model import UNCHANGED, Change, Kind, Relation, Row, TableName, newest

KeyOf: TypeAlias = Callable[[Relation], Sequence[int] | None]
"""Tells which columns address a row of the relation on the target (by index); None if nothing does."""

_INSERT, _UPDATE, _DELETE, _TRUNCATE = Kind.INSERT, Kind.UPDATE, Kind.DELETE, Kind.TRUNCATE  # attributes of an enum are slow

MANY: Final = 500
"""Changes from which on it is worth a look whether they are all of one kind."""

Key: TypeAlias = Any
"""What a row is folded by: one value, or a tuple of several."""

_Rows: TypeAlias = dict[Key, Row]


class Unfoldable(Exception):
    """The changes contradict each other and must be replayed one by one to see why."""


@dataclass(slots=True)
class SetWise:
    """Rows of one relation to delete, then update, then insert. `deletes` are old rows, the others new ones.

    A relation without a key has inserts only, under running numbers.
    """

    relation: Relation
    key: Sequence[int]
    deletes: dict[Key, Row] = field(default_factory=dict)
    updates: dict[Key, Row] = field(default_factory=dict)
    inserts: dict[Key, Row] = field(default_factory=dict)

    def updates_by_columns(self) -> dict[tuple[int, ...], list[Row]]:
        """Return the updated rows grouped by which columns they carry; the key is always among them."""
        whole = tuple(range(len(self.relation.columns)))
        groups: dict[tuple[int, ...], list[Row]] = {}
        for row in self.updates.values():
            present = tuple(i for i in whole if row[i] is not UNCHANGED) if UNCHANGED in row else whole
            groups.setdefault(present, []).append(row)
        return groups


@dataclass(slots=True)
class RowWise:
    """Changes to apply one by one, in this order."""

    changes: list[Change] = field(default_factory=list)


@dataclass(slots=True)
class Truncate:
    """Relations to empty in one statement: together, because foreign keys may join them."""

    relations: list[Relation]


Step: TypeAlias = SetWise | RowWise | Truncate


def fold(changes: Sequence[Change], key_of: KeyOf) -> list[Step]:
    """Return the steps that have the same effect as `changes`.

    Raises Unfoldable if they contradict each other (a key inserted twice).
    """
    if len(changes) >= MANY and (step := _at_once(changes, key_of)) is not None:
        return [step]
    return _Fold(key_of).run(changes)


def fleeting(changes: Iterable[Change], key_of: KeyOf) -> bool:
    """Return whether a key is made by one change and left by a later one.

    That comes to nothing, or to the last row of the key; but where deleted keys are remembered it is a deletion besides.
    """
    made: set[tuple[TableName, Key]] = set()
    for kind, relation, old, new in changes:
        columns = key_of(relation)
        if not columns:
            continue
        before = None if old is None else tuple(old[i] for i in columns)
        after = None if new is None else tuple(new[i] for i in columns)
        if before == after:
            continue
        if before is not None and (relation.table, before) in made:
            return True
        if after is not None and (before is not None or kind is _INSERT):
            made.add((relation.table, after))
    return False


def _at_once(changes: Sequence[Change], key_of: KeyOf) -> SetWise | None:
    """The step for changes that are all of one kind and of one row each, as a large statement makes them; None if they are not.

    Looking at them column by column, so to speak, takes a quarter of the time of looking at each.
    """
    kinds, relations = set(map(itemgetter(0), changes)), set(map(itemgetter(1), changes))
    if len(kinds) > 1 or len(relations) > 1:
        return None
    (kind,), (relation,) = kinds, relations
    columns = key_of(relation)
    if columns is None or kind is Kind.TRUNCATE:
        return None
    key = itemgetter(*columns)
    rows = [row for _, _, old, new in changes if (row := old if kind is Kind.DELETE else new) is not None]
    before = [old for _, _, old, _ in changes if old is not None] if kind is Kind.UPDATE else []
    if before and list(map(key, before)) != list(map(key, rows)):
        return None
    by_key = dict(zip(map(key, rows), rows, strict=True))
    if len(by_key) < len(rows):
        return None
    step = SetWise(relation, columns)
    if kind is Kind.INSERT:
        step.inserts = by_key
    elif kind is Kind.UPDATE:
        step.updates = by_key
    else:
        step.deletes = by_key
    return step


class _Fold:
    """The steps so far, and the tables that are still being folded."""

    def __init__(self, key_of: KeyOf) -> None:
        self._key_of = key_of
        self._steps: list[Step] = []
        self._open: dict[Relation, tuple[Callable[[Row], Key], SetWise, _Rows, _Rows] | tuple[None, _Keyless, _Rows, _Rows]] = {}
        self._versions: dict[TableName, Relation] = {}

    def run(self, changes: Iterable[Change]) -> list[Step]:
        opened = self._open
        for change in changes:
            kind, relation, old, new = change
            key, step, inserts, updates = opened.get(relation) or self._enter(relation)
            if kind is _TRUNCATE:
                self._truncate(relation)
            elif key is None:
                assert isinstance(step, _Keyless)
                step.add(change)
            elif kind is _UPDATE:
                assert new is not None
                found = key(new)
                if old is not None and key(old) != found:
                    self._in_place(change)
                else:
                    _update(inserts if found in inserts else updates, found, new)
            elif kind is _INSERT:
                assert new is not None
                found = key(new)
                if found in inserts or found in updates:
                    raise Unfoldable
                inserts[found] = new
            else:
                assert isinstance(step, SetWise)
                assert old is not None
                _delete(step, key(old), old)
        self._close()
        return self._steps

    def _enter(
        self, relation: Relation
    ) -> tuple[Callable[[Row], Key], SetWise, _Rows, _Rows] | tuple[None, _Keyless, _Rows, _Rows]:
        """Begin to fold a relation; another version of the same table must be written before."""
        if relation.table in self._versions:
            self._close()
        self._versions[relation.table] = relation
        key = self._key_of(relation)
        if key is None:
            self._open[relation] = (None, _Keyless(), {}, {})
        else:
            step = SetWise(relation, key)
            self._open[relation] = (itemgetter(*key), step, step.inserts, step.updates)
        return self._open[relation]

    def _close(self) -> None:
        """Put down what has been folded so far: what follows must come after it."""
        for _, step, _, _ in self._open.values():
            if isinstance(step, _Keyless):
                self._steps += step.steps
            elif step.deletes or step.updates or step.inserts:
                self._steps.append(step)
        self._open.clear()
        self._versions.clear()

    def _truncate(self, relation: Relation) -> None:
        self._close()
        if self._steps and isinstance(last := self._steps[-1], Truncate) and relation not in last.relations:
            last.relations.append(relation)
        else:
            self._steps.append(Truncate([relation]))

    def _in_place(self, change: Change) -> None:
        """A changed key: the row must be updated where it is (columns that only the target has stay), after all before it."""
        self._close()
        if self._steps and isinstance(last := self._steps[-1], RowWise):
            last.changes.append(change)
        else:
            self._steps.append(RowWise([change]))


class _Keyless:
    """The changes of a relation without a key: runs of inserts, which can be written at once, between all others, in order."""

    def __init__(self) -> None:
        self.steps: list[SetWise | RowWise] = []

    def add(self, change: Change) -> None:
        """Append the change to the last step, or begin another."""
        kind, relation, _, new = change
        last = self.steps[-1] if self.steps else None
        if kind is Kind.INSERT and new is not None:
            if not isinstance(last, SetWise):
                last = SetWise(relation, ())
                self.steps.append(last)
            last.inserts[len(last.inserts)] = new
        elif isinstance(last, RowWise):
            last.changes.append(change)
        else:
            self.steps.append(RowWise([change]))


def _update(rows: _Rows, key: Key, row: Row) -> None:
    before = rows.get(key)
    rows[key] = row if before is None else newest(before, row)


def _delete(step: SetWise, key: Key, old: Row) -> None:
    if step.inserts.pop(key, None) is None:
        step.updates.pop(key, None)
        step.deletes[key] = old
