"""Writing one transaction with care: what is there is locked and read, the rules are applied, the outcome is written.

A large transaction is first tried set by set, on condition that every row was last written by the same origin. When a unique
key collides, the loser's key is deleted by a local transaction, so that every node hears of it, and all is judged again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import psycopg

from streamer.errors import ApplyError
from streamer.model import Change, Group, Kind, Origin, Relation
from streamer.ports import Written
from streamer.session import Connection, reason_of, version
from streamer.sinks.conflict import Handler, Key, Premature, Removal, Resolution, Resolver, Table, Unresolved
from streamer.sinks.conflict_log import ConflictLog
from streamer.sinks.net import RowWise
from streamer.sinks.postgres_apply import REFUSED, Applier, Outcome
from streamer.sinks.postgres_bulk import BulkWriter
from streamer.sinks.postgres_collisions import Collisions
from streamer.sinks.postgres_effects import FEW, Effects
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_tombstones import remove, unbury
from streamer.sinks.postgres_triggers import LOCK_TIMEOUT
from streamer.sinks.postgres_truncate import truncate
from streamer.sinks.postgres_world import MasterTable, World
from streamer.versions import Versions

ATTEMPTS: Final = 20
"""How often a transaction is judged anew because what it was judged by has changed meanwhile."""
BUSY: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable)
"""Somebody else was in the way; trying again helps."""
PATIENCE_SECONDS: Final = 5.0
"""How long to wait for what the origin of a transaction had seen of other nodes."""
LOOK_SECONDS: Final = 0.02

_APPLIED: Final = "SELECT source, origin, origin_time FROM streamer.progress WHERE sync = %s AND target = %s"


class _Again(Exception):
    """What the transaction was judged by is no longer so."""


class _OursAlone(Exception):
    """A row that must be removed is not there for anybody but the open transaction, an earlier part of which may have made it."""


class _Collided(Exception):
    """A unique key has two holders; the loser must be removed first."""

    def __init__(self, resolution: Resolution) -> None:
        self.resolution = resolution


@dataclass(slots=True)
class _Case:
    """A group that is to be written, and what its earlier attempts have taught."""

    group: Group
    #: it begins its transaction
    fresh: bool
    #: keys that lost a unique value, deleted everywhere meanwhile
    removed: set[tuple[Relation, Key]] = field(default_factory=set)
    #: tables that must be locked
    locked: set[Relation] = field(default_factory=set)
    #: rows that are out of the way until their own last change comes
    parked: list[tuple[Relation, Key]] = field(default_factory=list)
    #: the target has refused something: find out what
    careful: bool = False


class Judge:
    """Writes transactions one by one; `table` gives what is known of a relation's table."""

    def __init__(
        self,
        session: TargetSession,
        versions: Versions,
        table: Callable[[Relation], MasterTable],
        handler: Callable[[str], Handler],
        days: dict[str, int],
    ) -> None:
        self._session = session
        self._connection = session.connection
        self._versions = versions
        self._table = table
        self._resolver = Resolver(session.node, handler)
        self._world = World(session.connection, versions)
        self._applier = Applier(session.pipeline, session.node, lambda relation: table(relation).writer)
        self._effects = Effects(session.connection, self._applier, table)
        self._bulk = BulkWriter(session, versions, self._world, table)
        self._collisions = Collisions(session.connection, self._world, handler)
        self._log = ConflictLog(session.edge, days, self._key_names)
        #: a transaction of which only a part has come is open
        self.in_transaction = False
        self._vain: dict[str, datetime] = {}

    def _key_names(self, relation: Relation) -> Sequence[str]:
        return [relation.names[i] for i in self._table(relation).key]

    def purge(self) -> None:
        """Now and then remove what the config says is too old."""
        self._log.purge(self._connection)

    def write(self, group: Group) -> Written:
        """Write the group, and commit if it is complete. Raises ApplyError, psycopg.Error."""
        case = _Case(group, fresh=not self.in_transaction)
        refused: psycopg.Error | None = None
        deadline = time.monotonic() + PATIENCE_SECONDS
        attempts = 0
        while attempts < ATTEMPTS:
            try:
                return self._attempt(case)
            except (_Again, psycopg.errors.IntegrityError, *BUSY) as error:
                refused = error if isinstance(error, psycopg.Error) else refused
                self._undo(case)
                if isinstance(error, psycopg.errors.IntegrityError) and len(group.changes) > FEW and not case.careful:
                    case.careful = True  # values that follow one another in a row collide when they are written set by set
                    continue
                settled = isinstance(error, psycopg.errors.UniqueViolation) and self._settle(error, case)
                attempts += not settled  # else it comes farther each time
            except REFUSED:
                self._undo(case)
                if case.careful:
                    raise
                case.careful = True
            except _Collided as collision:
                self._undo(case)
                attempts += 1
                self._remove(collision.resolution, group.origin, case)
            except Premature:
                self._undo(case)
                self._wait_for_others(group.origin, deadline)
            except Unresolved as error:
                self._undo(case)
                with closing(self._session.connect()) as connection:
                    self._log.record_once(connection, error.conflict, group.origin)
                raise
        raise ApplyError(
            f'the transaction of "{group.origin.node}" at {group.origin.position} cannot be written to "{self._session.node}": '
            + (reason_of(refused) if refused else "its rows change all the time"),
            "cure the row or the rule there; streamer tries again by itself",
        )

    def _attempt(self, case: _Case) -> Written:
        group = case.group
        self._enter(case)
        conflicts: Counter[str] = Counter()
        large = len(group.changes) > FEW and not case.careful
        outcome = self._bulk.write(group) if large and self._bulk.suits(group) else None
        if outcome is None:
            outcome = Outcome()
            for part in _parts(group.changes):
                if isinstance(part, _Truncates):
                    truncate(self._connection, self._world, self._versions, [self._table(r) for r in part], group.origin)
                    outcome.truncated += len(part)
                else:
                    done, found = self._judge(part, group.origin, case)
                    outcome.add(done)
                    conflicts.update(found)
        self._leave(case)
        return replace(outcome.written(), conflicts=conflicts)

    # -- judging -----------------------------------------------------------------------------------------------------------------

    def _judge(self, changes: Sequence[Change], origin: Origin, case: _Case) -> tuple[Outcome, list[str]]:
        """Resolve and write changes without truncates; return what was written, and the kinds of conflicts."""
        keyless = [change for change in changes if not self._table(change[1]).key]
        keyed = [change for change in changes if self._table(change[1]).key]
        tables = self._load(keyed, origin)
        present = {r: {key for key, stored in table.rows.items() if stored.row is not None} for r, table in tables.items()}
        absent = {r: table.rows.keys() - present[r] for r, table in tables.items()}
        resolution = self._resolver.resolve(keyed, origin, tables, case.removed, patient=self._misses(origin))
        if resolution.removals:
            raise _Collided(resolution)
        self._lock_what_is_absent(resolution, present, case)
        outcome = self._effects.write(resolution.effects, present)
        self._check_tombstones(resolution, tables, absent, origin)
        if keyless:
            self._applier.write(RowWise(keyless), outcome)
            outcome.settle()
        self._log.record(self._connection, resolution.conflicts, origin)
        return outcome, [conflict.kind.value for conflict in resolution.conflicts]

    def _lock_what_is_absent(self, resolution: Resolution, present: Mapping[Relation, set[Key]], case: _Case) -> None:
        """Judge again with the table locked where a key that is left has no row yet: another edge may be inserting or deleting it
        just now, and neither would see the other."""
        burials = set()
        for effect in resolution.effects:
            _, relation, old, new = effect.change
            key_of = self._table(relation).key_of
            if old is not None and key_of(old) not in present[relation] and (new is None or key_of(new) != key_of(old)):
                burials.add(relation)
        if not burials <= case.locked:
            case.locked |= burials
            raise _Again

    def _load(self, changes: Sequence[Change], origin: Origin) -> dict[Relation, Table]:
        by_relation: dict[Relation, list[Change]] = {}
        for change in changes:
            by_relation.setdefault(change[1], []).append(change)
        return {relation: self._world.load(self._table(relation), own, origin) for relation, own in by_relation.items()}

    def _wait_for_others(self, origin: Origin, deadline: float) -> None:
        """A change rests on what has not come from a third node: give that a moment, but do not wait for ever."""
        if time.monotonic() > deadline:
            self._vain.update(origin.seen)
        time.sleep(LOOK_SECONDS)

    def _misses(self, origin: Origin) -> bool:
        """Whether the origin had seen transactions of other nodes that are not here yet, and may still come."""
        vain = self._vain
        awaited = {n: t for n, t in origin.seen.items() if n != self._session.node and (n not in vain or t > vain[n])}
        if not awaited:
            return False
        edge = self._session.edge
        applied = {node: at for _, node, at in self._connection.execute(_APPLIED, [edge.sync, edge.target])}
        return any(node in applied and applied[node] < seen for node, seen in awaited.items())

    def _settle(self, refusal: psycopg.errors.UniqueViolation, case: _Case) -> bool:
        """Remove the losers of collisions that only the server sees; return whether anything more is out of the way now."""
        group, before = case.group, len(case.removed) + len(set(case.parked))
        for relation in {change[1] for change in group.changes}:
            table = self._table(relation)
            if table.key and self._collisions.is_of(refusal, relation.table):
                removed = {key for other, key in case.removed if other is relation}
                gone = removed | {key for other, key in case.parked if other is relation}
                ours = [change for change in group.changes if change[1] is relation and change[0] is not Kind.TRUNCATE]
                changes = [c for c in ours if c[3] is None or table.key_of(c[3]) not in removed]
                resolution = self._collisions.settle(refusal, table, changes, group.origin, gone)
                if resolution is not None and resolution.parked:
                    case.parked += resolution.parked
                elif resolution is not None:
                    self._remove(resolution, group.origin, case)
        return len(case.removed) + len(set(case.parked)) > before

    def _check_tombstones(
        self, resolution: Resolution, tables: Mapping[Relation, Table], absent: Mapping[Relation, Set[Key]], origin: Origin
    ) -> None:
        """Make sure that no key which was inserted has been deleted since it was looked up: an absent row cannot be locked."""
        inserted: dict[Relation, list[Key]] = {}
        for effect in resolution.effects:
            _, relation, _, new = effect.change
            if new is not None and (key := self._table(relation).key_of(new)) in absent[relation]:
                inserted.setdefault(relation, []).append(key)
        for relation, keys in inserted.items():
            known = tables[relation].deletions
            for key, deletions in self._world.deletions(self._table(relation), keys).items():
                since = [version for version in deletions if version not in known.get(key, ())]
                if any(version.node != origin.node and version.time is not None for version in since):  # else we are at it
                    raise _Again

    def _remove(self, resolution: Resolution, origin: Origin, case: _Case) -> None:
        """Delete the losers of unique keys as local writes, which every node hears of; the conflicts belong to that."""
        absent = {self._table(removal.relation).writer.name for removal in resolution.removals if not removal.stored}
        locks = case.fresh  # else our own transaction is open, and in the way
        waits = version(self._connection) >= LOCK_TIMEOUT
        limit, passed = ("lock_timeout", BUSY) if waits else ("statement_timeout", (*BUSY, psycopg.errors.QueryCanceled))
        try:
            with closing(self._session.connect()) as connection, connection.transaction():
                connection.execute(f"SET LOCAL {limit} = '{5 if case.fresh else 1}s'".encode())
                _lock(connection, absent if locks else ())
                for removal in resolution.removals:
                    self._remove_key(connection, removal, locks=locks)
                self._log.record(connection, resolution.conflicts, origin)
        except (_OursAlone, *passed):
            if not case.fresh:
                self._begin_anew(resolution, origin, case)
            return  # the transaction is judged again, and collides again
        case.removed |= {(removal.relation, removal.key) for removal in resolution.removals}

    def _begin_anew(self, resolution: Resolution, origin: Origin, case: _Case) -> None:
        """Undo the whole transaction, of which earlier parts have written what must be removed. Raises ApplyError: it must come
        again from its beginning."""
        self._session.undo("ROLLBACK")
        self.in_transaction = False
        self._remove(resolution, origin, replace(case, fresh=True))
        keys = ", ".join(f"{removal.relation} ({', '.join(removal.key)})" for removal in resolution.removals)
        raise ApplyError(
            f'the transaction of "{origin.node}" at {case.group.position} is undone on "{self._session.node}": what it had written '
            f"there has lost a unique value: {keys}",
            "streamer applies it again by itself, from its beginning",
        )

    def _remove_key(self, connection: Connection, removal: Removal, *, locks: bool) -> None:
        """Delete a key, even if it had no row when it was judged: another edge may have brought one meanwhile, or be about to, for
        which a lock waits."""
        table = self._table(removal.relation)
        statement = table.writer.delete_where(table.writer.by_key(table.key)).encode()
        if connection.execute(statement, removal.key).rowcount:
            return
        if removal.stored and not locks:
            raise _OursAlone
        if removal.stored:  # somebody else has deleted it
            _lock(connection, [table.writer.name])
            if connection.execute(statement, removal.key).rowcount:
                return
        remove(connection, removal.relation.table, self._key_names(removal.relation), removal.key)

    # -- transactions ------------------------------------------------------------------------------------------------------------

    def _enter(self, case: _Case) -> None:
        """Begin the transaction, or mark where this group of an open one begins, and write its tag."""
        self._applier.careful = case.careful
        self._connection.execute("BEGIN" if case.fresh else "SAVEPOINT streamer_group")
        self.in_transaction = True
        origin, edge = case.group.origin, self._session.where
        note = self._versions.note(origin) if case.fresh else self._versions.note_nested(origin, edge)
        self._applier.execute(*self._session.checked_tag(case.group))
        if note is not None:
            self._connection.execute(note[0].encode(), note[1], prepare=True)
        _lock(self._connection, {self._table(relation).writer.name for relation in case.locked})
        for relation, key in case.parked:
            table = self._table(relation)
            self._connection.execute(table.writer.delete_where(table.writer.by_key(table.key)).encode(), key)
            unbury(self._connection, relation.table, [key])

    def _leave(self, case: _Case) -> None:
        if not case.group.complete:
            if not case.fresh:
                self._connection.execute("RELEASE SAVEPOINT streamer_group")
            return
        self._connection.execute("COMMIT")
        self.in_transaction = False
        self._applier.committed()
        (inserted,) = self._connection.execute(f"SELECT {self._session.insert_position}".encode()).fetchone() or (None,)
        self._session.committed(case.group.position, inserted)

    def _undo(self, case: _Case) -> None:
        self._session.undo("ROLLBACK" if case.fresh else "ROLLBACK TO SAVEPOINT streamer_group")
        self.in_transaction = not case.fresh
        self._applier.forget_stages()


def _lock(connection: Connection, places: Collection[str]) -> None:
    """Keep others from writing these tables, so that no row comes to a key that has none."""
    for place in sorted(places):
        connection.execute(f"LOCK TABLE {place} IN SHARE ROW EXCLUSIVE MODE".encode())


class _Truncates(list[Relation]):
    """Relations that were truncated together."""


def _parts(changes: Sequence[Change]) -> Iterator[_Truncates | list[Change]]:
    """The changes cut at truncates: what comes before one must be written before it."""
    part: _Truncates | list[Change] = []
    for change in changes:
        if (change[0] is Kind.TRUNCATE) != isinstance(part, _Truncates):
            if part:
                yield part
            part = _Truncates() if change[0] is Kind.TRUNCATE else []
        part.append(change[1] if isinstance(part, _Truncates) else change)  # type: ignore[arg-type]
    if part:
        yield part
