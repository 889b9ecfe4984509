"""Writing what a resolved transaction comes to: plain changes, and beside them tombstones and the versions of merged rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from streamer.errors import ApplyError
from streamer.model import Change, Kind, Relation
from streamer.session import Connection
from streamer.sinks.conflict import Effect, Key
from streamer.sinks.net import RowWise, Step, Unfoldable, fleeting, fold
from streamer.sinks.postgres_apply import Applier, Outcome
from streamer.sinks.postgres_tombstones import bury, unbury
from streamer.sinks.postgres_world import MasterTable

FEW: Final = 200
"""Changes of a transaction up to which they are written one by one, not set by set."""

_KEEP: Final = (
    "INSERT INTO streamer.version (id, xid) SELECT %s::uuid, t.xmin FROM {table} AS t WHERE {key} ON CONFLICT (id) DO NOTHING"
)
_OLDEST: Final = "INSERT INTO streamer.version (id, xid) VALUES (%s::uuid, '2') ON CONFLICT (id) DO UPDATE SET xid = '2'"
"""2 is the transaction id of frozen rows, older than all."""
_FORGET: Final = "DELETE FROM streamer.version WHERE id = %s::uuid"


class Effects:
    """Writes effects in the open transaction."""

    def __init__(self, connection: Connection, applier: Applier, table: Callable[[Relation], MasterTable]) -> None:
        self._connection = connection
        self._applier = applier
        self._table = table

    def write(self, effects: Sequence[Effect], present: Mapping[Relation, set[Key]]) -> Outcome:
        """Write them in order; `present` are the keys that have rows, brought up to date. Raises psycopg.Error where refused."""
        changes: list[Change] = []
        outcome = Outcome()
        for effect in effects:
            table = self._table(effect.change[1])
            if self._is_burial(effect.change, table, present[effect.change[1]]):
                bury(self._connection, effect.change[1].table, table.key_of(effect.change[2] or ()))
            elif table.merges:
                self._write_merged(effect, table, outcome)
            else:
                changes.append(effect.change)
        for step in self._steps(changes):
            self._applier.write(step, outcome)
        outcome.settle()
        for effect in effects:
            if effect.parks:
                table = self._table(effect.change[1])
                unbury(self._connection, effect.change[1].table, [table.key_of(effect.change[2] or ())])
        if outcome.missing:
            raise ApplyError(f'{outcome.missing} rows on "{self._applier.node}" changed while they were locked')
        return outcome

    def _steps(self, changes: list[Change]) -> Sequence[Step]:
        def key_of(relation: Relation) -> tuple[int, ...]:
            return self._table(relation).key

        if len(changes) > FEW and not self._applier.careful and not fleeting(changes, key_of):
            try:
                return fold(changes, key_of)
            except Unfoldable:
                pass
        return [RowWise(changes)] if changes else []

    def _is_burial(self, change: Change, table: MasterTable, keys: set[Key]) -> bool:
        """Keep `keys` up to date; return whether the change deletes a row that is not there."""
        kind, _, old, new = change
        before = None if old is None else table.key_of(old)
        if kind is Kind.DELETE and before not in keys:
            return True
        if new is not None and before is not None:
            keys.discard(before)
        if new is not None:
            keys.add(table.key_of(new))
        elif before is not None:
            keys.discard(before)
        return False

    def _write_merged(self, effect: Effect, table: MasterTable, outcome: Outcome) -> None:
        """Write a change of a table with merged columns; what was merely merged keeps the version of its other columns."""
        kind, _, old, new = effect.change
        execute, writer = self._connection.execute, table.writer
        if kind is Kind.UPDATE and old is not None:
            key = table.key_of(old)
            if effect.merge:
                keep = _KEEP.format(table=writer.place, key=writer.by_key(table.key))
                execute(keep.encode(), [table.id_of(key), *key], prepare=True)
            else:
                execute(_FORGET, [table.id_of(key)], prepare=True)
        self._applier.write(RowWise([effect.change]), outcome)
        if kind is Kind.INSERT and effect.merge and new is not None:
            execute(_OLDEST, [table.id_of(table.key_of(new))], prepare=True)
