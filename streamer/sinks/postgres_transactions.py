"""Writing to a PostgreSQL database that other nodes and its own applications write too: transaction by transaction.

    small transactions ──> FastWriter: many at once, each on the condition that nothing needs judgement
                             │ one that does, a large one, a truncate; all of them on servers before 11
                             v
    Judge: lock and read what is there (World), apply the rules (Resolver), write the outcome, record the conflicts

Every source transaction is one target transaction, with its own commit time and origin, and is applied only once the target's clock
has passed its commit time. What must be deleted everywhere because of a unique key is deleted by a local transaction of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import psycopg

from streamer.errors import SchemaError
from streamer.model import LSN, Group, Relation, TableName
from streamer.ports import Written
from streamer.session import version
from streamer.sinks.conflict import Handler, Rules
from streamer.sinks.postgres_apply import REFUSED
from streamer.sinks.postgres_fast import FastWriter
from streamer.sinks.postgres_judge import BUSY, Judge
from streamer.sinks.postgres_procedure import SINCE, Batch, Procedure
from streamer.sinks.postgres_session import EDGE, TargetSession
from streamer.sinks.postgres_table import TargetTable, read_target
from streamer.sinks.postgres_triggers import missing_triggers, require_commit_timestamps
from streamer.sinks.postgres_world import MasterTable
from streamer.sinks.postgres_writer import TableWriter
from streamer.sinks.target_clock import TargetClock
from streamer.versions import OriginVersions, Versions, choose_versions

AHEAD: Final = 512
"""Transactions sent at most before their answers are awaited: between two batches the server has nothing to do."""
BEGIN: Final = 64
"""Transactions in the first batch at most: while it is gathered the server has nothing to do either."""


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
            self._find_by_index()
            self._versions = self._choose_versions()
            self._versions.joined = self._read_joined()
            self._others = self._read_others()
        procedure = Procedure(session.connection, session.insert_position)
        has_procedures = version(session.connection) >= SINCE
        self._fast = FastWriter(session, self._versions, procedure, self._table) if has_procedures else None
        days = {"conflict_days": masters.conflict_days, "tombstone_days": masters.tombstone_days}
        self._judge = Judge(session, self._versions, self._table, masters.handler, days)
        self._ahead = AHEAD

    def _give_way(self) -> None:
        """Find deadlocks before others do: who finds one is the one whose transaction is undone, and we do ours again."""
        try:
            self._connection.execute("SET deadlock_timeout = '20ms'")
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.CantChangeRuntimeParam):  # before 9.1 nobody may
            self._session.log.debug("setting_denied", setting="deadlock_timeout")

    def _find_by_index(self) -> None:
        """Have rows found by their keys in small tables too: a plan lasts, and looks at every row that the table has got since, and
        at every dead one. What that seems to cost where there is no index must not have anything compiled."""
        self._connection.execute("SET enable_seqscan = off")
        if version(self._connection) >= SINCE:
            self._connection.execute("SET jit = off")

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
        return MasterTable(writer, key, writer.others(key), self._masters.rules(relation.table), writer.nulls_alike)

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
        groups = [self._unless_here(group) for group in groups]
        written: list[Written] = []
        with self._session.errors():
            while len(written) < len(groups) and not (written and interrupted()):
                if not self._may_come(groups[len(written)], interrupted):
                    break
                written += self._write_some(groups, len(written), interrupted)
                written[-1] = replace(written[-1], skew=self._clock.skew, waited=self._clock.take_waited())
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

    def _write_some(self, groups: Sequence[Group], start: int, interrupted: Callable[[], bool]) -> list[Written]:
        """Write at least one of the groups from `start` on."""
        if not self._judge.in_transaction:
            self._judge.purge()
            self._follow(groups[start].origin.node)
            if self._fast is not None and (written := self._send(self._fast, groups, start, interrupted)):
                return written
        return [self._judge.write(groups[start])]

    def _follow(self, node: str) -> None:
        self._session.follow_origin(node)
        if isinstance(self._versions, OriginVersions) and self._session.origin is not None:
            self._versions.follow(self._session.origin, node)

    def _send(self, fast: FastWriter, groups: Sequence[Group], start: int, interrupted: Callable[[], bool]) -> list[Written]:
        """Send transactions by the batch, and gather the next one while the server is at work; the first that needs judgement gets
        it, and those behind it come again."""

        def gather(begin: int, most: int, suits: Callable[[Group], bool]) -> Batch:
            return fast.gather(self._leading(groups[begin : begin + most], groups[start].origin.node, suits))

        written: list[Written] = []
        batch = gather(start, min(self._ahead, BEGIN), fast.suits)
        while batch.written and not (written and interrupted()):
            begin = start + len(written)
            end = begin + len(batch.written)
            fast.send(batch)
            following = gather(end, self._ahead, lambda group: fast.knows(group) and fast.suits(group))
            done = self._receive(fast, groups[begin:end])
            written += batch.written[:done]
            if begin + done < end:
                self._ahead = max(1, done)
                return [*written, self._judge.write(groups[begin + done])]
            self._ahead = min(AHEAD, 2 * self._ahead)
            batch = following
        return written

    def _leading(self, groups: Sequence[Group], node: str, suits: Callable[[Group], bool]) -> Iterator[Group]:
        """Give the first of the groups, as far as they were made on `node`, in the target's past, and suit."""
        for group in groups:
            if group.origin.node != node or not suits(group):
                return
            if self._masters.by_time and not self._clock.has_passed(group.origin.commit_time):
                return
            yield group

    def _receive(self, fast: FastWriter, groups: Sequence[Group]) -> int:
        """Wait until the groups are written, and return how many are."""
        try:
            answer = fast.receive()
        except (*REFUSED, *BUSY):
            return self._committed(groups)
        self._clock.saw(answer.clock)
        if answer.done:
            self._session.committed(groups[answer.done - 1].position, answer.written)
        return answer.done

    def _committed(self, groups: Sequence[Group]) -> int:
        """How many of the groups are in the target."""
        query = f"SELECT position, {self._session.insert_position} FROM streamer.progress WHERE {EDGE}"
        position, inserted = self._connection.execute(query.encode(), self._session.where).fetchone() or ("0/0", None)
        done = sum(group.position <= LSN.parse(position) for group in groups)
        if done:
            self._session.committed(groups[done - 1].position, inserted)
        return done
