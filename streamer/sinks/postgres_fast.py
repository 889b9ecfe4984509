"""Applying many small transactions at once, each in one of its own, as long as nothing needs judgement.

Every statement carries the condition under which it needs none: the row was last written by the same origin, a merge finds its
row, an inserted key was not deleted later. Where that does not hold the transaction is undone, and those after it are not begun
(postgres_procedure); the transactions before it are committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cached_property
from operator import itemgetter
from typing import Final, TypeAlias

from streamer.model import UNCHANGED, Change, Group, Kind, Relation, Row, Value
from streamer.ports import Written
from streamer.sinks.net import fleeting
from streamer.sinks.postgres_effects import FEW
from streamer.sinks.postgres_procedure import Answer, Batch, Procedure
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_world import MasterTable
from streamer.versions import OLDEST, Versions

BATCH_BYTES: Final = 4 << 20
"""The size of values after which a batch ends."""

_DELETED: Final = "PERFORM 1 FROM streamer.tombstone AS t WHERE t.id = ANY(%s::uuid[])"
_SINCE: Final = (
    " AND coalesce(pg_catalog.pg_xact_commit_timestamp(t.xmin) >= %s::timestamptz "
    f"OR pg_catalog.pg_xact_commit_timestamp(t.xmin) <= '{OLDEST.isoformat()}', false)"
)
"""For tombstones that are not older than the insert, or were copied: when they were really made is not asked here."""
_NOT_MERGED: Final = " AND NOT EXISTS (SELECT FROM streamer.version AS s WHERE s.id = %s::uuid)"
_MERGE: Final = (
    "WITH l AS (SELECT t.xmin AS xid FROM {table} AS t WHERE {key} FOR UPDATE), "
    "v AS (INSERT INTO streamer.version (id, xid) SELECT %s::uuid, l.xid FROM l ON CONFLICT (id) DO NOTHING) "
    "{statement} AND EXISTS (SELECT FROM l)"
)

Values: TypeAlias = list[str | None]


class FastWriter:
    """Writes transactions by a procedure; `table` gives what is known of a relation's table."""

    def __init__(
        self, session: TargetSession, versions: Versions, procedure: Procedure, table: Callable[[Relation], MasterTable]
    ) -> None:
        self._session = session
        self._versions = versions
        self._procedure = procedure
        self._table = table
        self._plans: dict[Relation, _Plan] = {}

    def suits(self, group: Group) -> bool:
        """Whether the group can be written so: a whole small transaction of changes that are found by key."""
        if not group.complete or len(group.changes) > FEW:
            return False
        plans = [(self._plan(change[1]), change) for change in group.changes]
        for plan, change in plans:
            if not plan.suits(change):
                return False
        leaves = len(plans) > 1 and any([change[2] is not None for change in group.changes])
        if leaves and fleeting(group.changes, lambda relation: self._plans[relation].key):
            return False  # its own tombstone would hide the one that is looked for
        # what the origin had seen of a third node must be here first: that is looked after elsewhere
        return set(group.origin.seen) <= {self._session.node} or not any(plan.waits(change) for plan, change in plans)

    def knows(self, group: Group) -> bool:
        """Whether nothing need be asked of the target to say whether it suits."""
        return all(change[1] in self._plans for change in group.changes)

    def gather(self, groups: Iterable[Group]) -> Batch:
        """Return as many of the groups as one batch takes."""
        batch = Batch()
        for group in groups:
            self._add(batch, group)
            if batch.size > BATCH_BYTES:
                break
        return batch

    def send(self, batch: Batch) -> None:
        """Have the server begin with the transactions; until `receive` nothing else may be asked of it."""
        self._procedure.send(batch)

    def receive(self) -> Answer:
        """Wait until it has written them, up to the first that needs judgement. Raises psycopg.Error, with those before it
        committed."""
        return self._procedure.receive()

    def _add(self, batch: Batch, group: Group) -> None:
        """Add what is in one transaction, commit included."""
        add, number = batch.add, self._procedure.number
        tag, values = self._session.tag(group)
        add(number(tag, finds=True), values)
        if (note := self._versions.note(group.origin)) is not None:
            add(number(note[0]), note[1])
        mark = self._versions.mark(group.origin)
        inserted, updated, deleted = 0, 0, 0
        appearing: tuple[list[str], list[str]] = [], []
        for change in group.changes:
            kind, relation, old, new = change
            plan = self._plans[relation]
            if kind is Kind.INSERT and new is not None:
                add(*plan.insert(new))
                inserted += 1
            elif kind is Kind.DELETE and old is not None:
                add(*plan.delete(old, mark))
                deleted += 1
            elif new is not None:
                if (statement := plan.update(old, new, mark)) is not None:
                    add(*statement)
                updated += 1
            appearing[plan.by_time and self._versions.exact].extend(plan.appearing(change))
        for ids, since in zip(appearing, (None, group.origin.commit_time), strict=True):
            if ids:
                self._add_check(batch, ids, since)
        batch.commit(Written(inserted, updated, deleted))

    def _plan(self, relation: Relation) -> _Plan:
        plan = self._plans.get(relation)
        if plan is None:
            plan = self._plans[relation] = _Plan(self._table(relation), self._versions.guard, self._procedure)
        return plan

    def _add_check(self, batch: Batch, ids: Sequence[str], since: datetime | None) -> None:
        """Make sure that none of these keys has a tombstone, or none that is not older than `since`."""
        array = f"{{{','.join(ids)}}}"
        if since is None:
            batch.add(self._procedure.number(_DELETED, finds=False), [array])
        else:
            batch.add(self._procedure.number(_DELETED + _SINCE, finds=False), [array, since.isoformat()])


def _are_known(*values: Value) -> bool:
    return not any(v is None or v is UNCHANGED for v in values)


class _Plan:
    """The statements for one relation, by their numbers."""

    def __init__(self, table: MasterTable, guard: str, procedure: Procedure) -> None:
        self._table = table
        self._procedure = procedure
        self._writer = table.writer
        #: the columns of the key; none if the table has no key
        self.key = table.key
        merged = table.rules.merged
        self._latest = table.rules.policy == "latest"
        #: whether a tombstone that is older than an insert does not matter: not where columns are merged, there deletes win
        self.by_time = self._latest and not merged
        names = table.writer.relation.names
        self._merged = tuple(i for i, name in enumerate(names) if name in merged)
        self._ordinary = tuple(i for i, name in enumerate(names) if name not in merged)
        self._all = tuple(range(len(names)))
        self._own_casts = table.writer.own_casts
        self._guard = f" AND {guard}" + (_NOT_MERGED if merged else "")
        self._updates: dict[tuple[tuple[int, ...], bool], tuple[tuple[int, ...], int]] = {}

    def suits(self, change: Change) -> bool:
        """Whether the change can be sent as a statement."""
        kind, _, old, new = change
        if self._own_casts or kind is Kind.TRUNCATE or (not self.key and kind is not Kind.INSERT):
            return False
        if not self._merged or kind is not Kind.UPDATE:
            return True
        if old is None or new is None or any(old[i] != new[i] for i in self.key):
            return False  # what the row here has merged must not move along
        return all(_are_known(old[i], new[i]) for i in self._merged)

    def waits(self, change: Change) -> bool:
        """Whether the change must come after all that its origin had seen: where time does not decide, or columns are merged into a
        new row."""
        return bool(self.key) and (not self._latest or (bool(self._merged) and change[0] is Kind.INSERT))

    def insert(self, new: Row) -> tuple[int, Values]:
        """INSERT; what is there already makes it fail."""
        (values,) = self._writer.pick(self._writer.written, [new])
        return self._insert, list(values)  # type: ignore[arg-type]

    @cached_property
    def _insert(self) -> int:
        return self._procedure.number(self._writer.insert)

    def delete(self, old: Row, mark: str) -> tuple[int, Values]:
        """DELETE, if the row is there and needs no judgement."""
        return self._delete, [*self._keys(old), *self._guards(old, mark)]

    @cached_property
    def _delete(self) -> int:
        return self._procedure.number(self._writer.delete_where(self._writer.by_key(self.key) + self._guard), finds=True)

    def update(self, old: Row | None, new: Row, mark: str) -> tuple[int, Values] | None:
        """UPDATE, if the row is there and needs no judgement; None if nothing is to be set."""
        before = new if old is None else old
        if self._merged and old is not None and all(old[i] == new[i] for i in self._ordinary):
            return self._merge(old, new)
        moved = old is not None and any(old[i] != new[i] for i in self.key)
        if moved:
            self._writer.require_assignable(before, new)
        whole = UNCHANGED not in new
        if whole and not moved and not self._merged:
            number, pick = self._whole
            return (number, [*pick(new), mark]) if number else None
        present = self._all if whole else tuple(i for i, v in enumerate(new) if v is not UNCHANGED)
        assigned, number = self._updates.get((present, moved)) or self._make_update(present, moved)
        if not assigned:
            return None
        values: Values = []
        for i in assigned:
            values += self._setting(i, old, new)
        return number, [*values, *self._keys(before), *self._guards(before, mark)]

    @cached_property
    def _whole(self) -> tuple[int, Callable[[Row], tuple[str | None, ...]]]:
        """The update of a whole row whose key stays, where no columns are merged, and what picks its values but for the mark."""
        assigned, number = self._make_update(self._all, moved=False)
        return number, itemgetter(*assigned, *self.key)

    def _make_update(self, present: tuple[int, ...], moved: bool) -> tuple[tuple[int, ...], int]:
        assigned = self._writer.assigned(present, () if moved else self.key)
        condition = self._writer.by_key(self.key) + self._guard
        statement = self._writer.update_setting([self._assignment(i) for i in assigned], condition)
        number = self._procedure.number(statement, finds=True) if assigned else 0
        made = self._updates[present, moved] = assigned, number
        return made

    def _merge(self, old: Row, new: Row) -> tuple[int, Values] | None:
        """Add to, or raise, or lower what is there; the row keeps the version of its other columns."""
        changed = tuple(i for i in self._merged if old[i] != new[i])
        if not changed:
            return None
        values: Values = []
        for i in changed:
            values += self._setting(i, old, new)
        key = self._writer.by_key(self.key)
        statement = self._writer.update_setting([self._assignment(i) for i in changed], key)
        keys = self._keys(new)
        id_ = self._table.id_of(self._table.key_of(new))
        merge = _MERGE.format(table=self._writer.place, key=key, statement=statement)
        return self._procedure.number(merge, finds=True), [*keys, id_, *values, *keys]

    def _assignment(self, column: int) -> str:
        """How a column is set: to the new value, or merged with what is there."""
        name, rules = self._writer.column(column), self._table.rules
        what, kind = self._writer.relation.names[column], self._writer.base_type(column)
        if what in rules.delta:
            merged = f"coalesce(t.{name}, 0) + (%s::{kind} - %s::{kind})"
        elif what in rules.max | rules.min:
            merged = f"{'greatest' if what in rules.max else 'least'}(t.{name}, %s::{kind})"
        else:
            return f"{name} = {self._writer.placeholder(column)}"
        # where nobody else has written, the new value is taken as it is
        return f"{name} = CASE WHEN t.{name} = %s::{kind} THEN %s::{kind} ELSE {merged} END"

    def _setting(self, column: int, old: Row | None, new: Row) -> Values:
        """The parameters of a column's assignment."""
        value = new[column]
        assert value is not UNCHANGED
        if column not in self._merged or old is None:
            return [value]
        before = old[column]
        assert before is not UNCHANGED
        is_delta = self._writer.relation.names[column] in self._table.rules.delta
        return [before, value, value, before] if is_delta else [before, value, value]

    def _keys(self, row: Row) -> Values:
        return list(self._table.key_of(row))

    def _guards(self, row: Row, mark: str) -> Values:
        return [mark, self._table.id_of(self._table.key_of(row))] if self._merged else [mark]

    def appearing(self, change: Change) -> list[str]:
        """The id of a key whose tombstone must be looked at, and that of the whole table: of a key that the change makes."""
        kind, _, old, new = change
        if not self.key or new is None:
            return []
        # where columns are merged, a change may be of a row that was deleted before the one that is here was inserted
        if kind is Kind.UPDATE and not self._merged and (old is None or all(old[i] == new[i] for i in self.key)):
            return []
        return [self._table.id_of(self._table.key_of(new)), self._table.id_of(())]
