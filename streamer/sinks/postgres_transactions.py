"""Writing to a PostgreSQL database that other nodes and its own applications write too: transaction by transaction.

    small transactions ──> FastWriter: many at once, each on the condition that nothing needs judgement
                             │ one that fails, a large one, a truncate
                             v
    Judge: lock and read what is there (World), apply the rules (Resolver), write the outcome, record the conflicts

Every source transaction is one target transaction, with its own commit time and origin, and is applied only once the target's clock
has passed its commit time. What must be deleted everywhere because of a unique key is deleted by a local transaction of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import psycopg

from streamer.errors import SchemaError
from streamer.model import LSN, Group, Relation, TableName
from streamer.ports import Written
from streamer.sinks.conflict import Handler, Rules
from streamer.sinks.pipeline import Pipeline, undo
from streamer.sinks.postgres_apply import REFUSED
from streamer.sinks.postgres_fast import FastWriter
from streamer.sinks.postgres_judge import BUSY, Judge
from streamer.sinks.postgres_session import EDGE, TargetSession
from streamer.sinks.postgres_table import TableWriter, TargetTable, read_target
from streamer.sinks.postgres_triggers import missing_triggers, require_commit_timestamps
from streamer.sinks.postgres_world import MasterTable
from streamer.sinks.target_clock import TargetClock
from streamer.versions import OriginVersions, Versions, choose_versions

AHEAD: Final = 128
"""Transactions sent at most before their answers are awaited."""


@dataclass(frozen=True, slots=True)
class MultiMaster:
    """What the config says of a sync with several sources."""

    rules: Callable[[TableName], Rules]
    handler: Callable[[str], Handler]
    #: seconds
    max_clock_skew: float
    conflict_days: int
    tombstone_days: int
    #: whether the later write wins anywhere: then commit times must be kept, and waited for
    by_time: bool


class TransactionWriter:
    """Writes transactions on an open session."""

    def __init__(self, session: TargetSession, masters: MultiMaster) -> None:
        self._session = session
        self._masters = masters
        self._connection = session.connection
        self._tables: dict[Relation, MasterTable] = {}
        self._clock = TargetClock(session.edge, session.connection, masters.max_clock_skew)
        with session.errors():
            self._give_way()
            self._versions = self._choose_versions()
            self._versions.joined = self._read_joined()
            self._others = self._read_others()
        self._fast = FastWriter(session, self._versions, Pipeline(session.connection), self._table)
        days = {"conflict_days": masters.conflict_days, "tombstone_days": masters.tombstone_days}
        self._judge = Judge(session, self._versions, self._table, masters.handler, days)
        self._ahead = AHEAD

    def _give_way(self) -> None:
        """Find deadlocks before others do: who finds one is the one whose transaction is undone, and we do ours again. And keep the
        server's log free of conditions that did not hold: what goes wrong here is told by us."""
        for setting in ("deadlock_timeout = '20ms'", "log_min_messages = fatal"):
            try:
                self._connection.execute(f"SET {setting}".encode())
            except psycopg.errors.InsufficientPrivilege:
                self._session.log.debug("setting_denied", setting=setting)

    def _choose_versions(self) -> Versions:
        session, connection = self._session, self._connection
        if self._masters.by_time:
            require_commit_timestamps(connection, session.node)
        return choose_versions(connection, session.node, has_origins=session.follow_origin(session.edge.source))

    def _read_joined(self) -> datetime | None:
        """Since when the target takes part in the sync, by its own clock."""
        query, edge = "SELECT joined FROM streamer.member WHERE sync = %s AND target = %s", self._session.edge
        row = self._connection.execute(query, [edge.sync, edge.target]).fetchone()
        return None if row is None else row[0]

    def _read_others(self) -> dict[str, LSN]:
        """What the target has of each other source, now or from when it was one."""
        query = "SELECT source, position FROM streamer.progress WHERE sync = %s AND target = %s AND source <> %s"
        edge = self._session.edge
        rows = self._connection.execute(query, [edge.sync, edge.target, edge.source])
        return {source: LSN.parse(position) for source, position in rows}

    def _table(self, relation: Relation) -> MasterTable:
        """What is known of a relation's table, looked up when it comes first."""
        table = self._tables.get(relation)
        if table is None:
            table = self._tables[relation] = self._look_up(relation)
        return table

    def _look_up(self, relation: Relation) -> MasterTable:
        target = read_target(self._connection, self._session.node, relation.table)
        writer = TableWriter(relation, target, self._session.node)
        key = self._key(writer, target)
        if key and missing_triggers(self._connection, relation.table):
            raise SchemaError(
                f'table "{relation.table}" on "{self._session.node}" lacks the triggers that remember deleted keys',
                f"run: streamer setup --sync {self._session.edge.sync}",
            )
        return MasterTable(writer, key, writer.others(key), self._masters.rules(relation.table))

    def _key(self, writer: TableWriter, target: TargetTable) -> tuple[int, ...]:
        """The key that rows are told apart by, in the order in which tombstones name it; none if the table has no key."""
        relation = writer.relation
        if writer.key is None or not target.keys:
            return ()
        if {relation.names[i] for i in writer.key} != set(target.keys[0]):
            raise SchemaError(
                f'table "{relation.table}" has another replica identity on "{self._session.node}" than on the source',
                f"ALTER TABLE {writer.name} REPLICA IDENTITY USING INDEX …, as on the source, then: streamer setup",
            )
        return tuple(relation.names.index(name) for name in target.keys[0])

    # -- writing -----------------------------------------------------------------------------------------------------------------

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Apply each transaction in one target transaction."""
        written: list[Written] = []
        with self._session.errors():
            while len(written) < len(groups) and not (written and interrupted()):
                rest = [self._unless_here(group) for group in groups[len(written) : len(written) + AHEAD]]
                if not self._may_come(rest[0], interrupted):
                    break
                written += self._write_some(rest)
                written[-1] = replace(written[-1], skew=self._clock.skew)
        return written

    def _unless_here(self, group: Group) -> Group:
        """A node that is no source of the sync any more may have brought a transaction itself, before another one hands it on."""
        origin = group.origin
        if origin.node == self._session.edge.source or origin.position >= self._others.get(origin.node, LSN(0)):
            return group
        return replace(group, changes=())

    def _may_come(self, group: Group, interrupted: Callable[[], bool]) -> bool:
        """Wait until the target's clock has passed the commit time; False if interrupted."""
        if self._judge.in_transaction or not self._masters.by_time:
            return True
        return self._clock.wait_for(group.origin, interrupted)

    def _write_some(self, groups: Sequence[Group]) -> list[Written]:
        """Write at least one."""
        node = groups[0].origin.node
        if not self._judge.in_transaction:
            self._judge.purge()
            self._follow(node)
            count = 0
            while count < min(self._ahead, len(groups)) and self._may_be_sent(groups[count], node):
                count += 1
            if count:
                return self._send(groups[:count])
        return [self._judge.write(groups[0])]

    def _follow(self, node: str) -> None:
        self._session.follow_origin(node)
        if isinstance(self._versions, OriginVersions) and self._session.origin is not None:
            self._versions.follow(self._session.origin, node)

    def _may_be_sent(self, group: Group, node: str) -> bool:
        """Whether the group can go with those before it."""
        if group.origin.node != node or not self._fast.suits(group):
            return False
        return not self._masters.by_time or self._clock.has_passed(group.origin.commit_time)

    def _send(self, groups: Sequence[Group]) -> list[Written]:
        """Send the transactions at once; the first that needs judgement gets it, and those behind it come again."""
        try:
            written = self._fast.send(groups)
            inserted, clock = self._fast.finish()
        except (*REFUSED, *BUSY):
            undo(self._connection, "ROLLBACK")
            done = self._committed(groups)
            self._ahead = max(1, len(done))
            return [*written[: len(done)], self._judge.write(groups[len(done)])]
        self._ahead = min(AHEAD, 2 * self._ahead)
        self._clock.saw(clock)
        self._session.committed(groups[-1].position, inserted)
        return written

    def _committed(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Those of the groups that are in the target."""
        query = f"SELECT position, {self._session.insert_position} FROM streamer.progress WHERE {EDGE}"
        position, inserted = self._connection.execute(query.encode(), self._session.where).fetchone() or ("0/0", None)
        done = [group for group in groups if group.position <= LSN.parse(position)]
        if done:
            self._session.committed(done[-1].position, inserted)
        return done
