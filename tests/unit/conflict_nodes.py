"""Nodes of a multi-master sync without servers: they write one small table at once and resolve each other's writes.

The Resolver is the real one; the rest does what the transaction writer, the triggers and the readers do: versions of rows,
tombstones, the side version of a row that was merged, local removals, waiting for the clock, and what an origin had seen.
Each rule can be switched off (`Rule`), to show that it is needed.
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Final

from streamer.model import LSN, UNCHANGED, Change, Column, Identity, Kind, Origin, Relation, Row, TableName
from streamer.sinks.conflict import Conflict, Effect, Handler, Key, Premature, Removal, Resolver, Stored, Table, Version
from tests.unit.conflict_model import NAMES, History, Shape, Transaction, Write, history

START: Final = datetime(2026, 1, 1, tzinfo=UTC)


class Rule(enum.Enum):
    """What makes the nodes agree, beside the Resolver."""

    TOMBSTONE = "deletes leave tombstones"
    WAIT = "nothing is applied before its commit time"
    EMIT = "the loser of a unique value is deleted as a local write"
    EMIT_INCOMING = "... also when it is the incoming row, which never was there"
    SIDE_VERSION = "a merge does not move the version of the row"
    OLDEST = "a row that was made of a mere merge has the oldest version"
    UNDER = "the tombstone under a row that was inserted again is known"
    PATIENCE = "what rests on another node's change waits for it"


@dataclass
class Node:
    """A database: its rows with the versions of their ordinary columns, its tombstones, and its WAL."""

    name: str
    skew: int
    rows: dict[Key, tuple[Row, Version]] = field(default_factory=dict)
    tombstones: dict[Key, Version] = field(default_factory=dict)
    #: of the whole table
    truncated: Version | None = None
    wal: list[tuple[Origin, tuple[Change, ...]]] = field(default_factory=list)
    #: how many transactions of each other node are applied, and the commit time of the last one
    applied: dict[str, int] = field(default_factory=dict)
    seen: dict[str, datetime] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)

    def copy(self) -> Node:
        """A node that goes its own way from here."""
        parts = (dict(self.rows), dict(self.tombstones), self.truncated, list(self.wal), dict(self.applied), dict(self.seen))
        return Node(self.name, self.skew, *parts, list(self.conflicts))


class World:
    """Some nodes, the time, and everything that they have not yet told each other."""

    def __init__(self, shape: Shape, nodes: Sequence[Node], off: frozenset[Rule] = frozenset(), steps: int = 400) -> None:
        self.shape, self.off = shape, off
        self.nodes = {node.name: node for node in nodes}
        identity = Identity.FULL if shape.full else Identity.DEFAULT
        described = (Column(c, 1700 if c in "nm" else 25, shape.full or c == "k") for c in shape.columns)
        self.relation = Relation(TableName("public", "t"), tuple(described), identity)
        self.removal = Relation(self.relation.table, (Column("k", 25, True),), Identity.DEFAULT)
        #: what changes may come of
        self.relations = [self.relation, self.removal]
        self.uniques = tuple((shape.columns.index(c),) for c in shape.uniques)
        self.merge_columns = {c for c in "nm" if c in shape.columns}
        self.resolvers = {name: Resolver(name, _no_handler) for name in self.nodes}
        self.time = 0
        self.steps_left = steps
        self.story: list[str] = []
        #: what was added to the delta column of each key, and the greatest value of its max column
        self.added: Counter[str] = Counter()
        self.greatest: Counter[str] = Counter()

    def copy(self) -> World:
        """The same, to try another order from here."""
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        other.nodes = {name: node.copy() for name, node in self.nodes.items()}
        other.story = list(self.story)
        return other

    # -- time --------------------------------------------------------------------------------------------------------------------

    def clock(self, node: Node) -> datetime:
        return START + timedelta(seconds=self.time + node.skew)

    def step(self) -> None:
        self.time += 1
        self.steps_left -= 1
        assert self.steps_left > 0, "the nodes never come to rest"

    # -- what applications write -------------------------------------------------------------------------------------------------

    def write(self, name: str, writes: Sequence[Write]) -> None:
        """One transaction of an application."""
        self.step()
        node = self.nodes[name]
        version = Version(self.clock(node), name)
        changes = [change for write in writes for change in self._statement(node, write, version)]
        self.story.append(f"{self.time:3} {name} writes {'; '.join(map(str, writes))}{'' if changes else '  (nothing)'}")
        if changes:
            self._commit(node, version, changes)

    def _commit(self, node: Node, version: Version, changes: Sequence[Change]) -> None:
        assert version.time is not None
        node.wal.append((Origin(node.name, LSN(len(node.wal) + 1), version.time, dict(node.seen)), tuple(changes)))

    def _statement(self, node: Node, write: Write, version: Version) -> Iterator[Change]:
        if write.kind is Kind.TRUNCATE:
            node.rows.clear()
            node.truncated = version
            yield (Kind.TRUNCATE, self.relation, None, None)
            return
        stored = node.rows.get((write.key,))
        if write.kind is Kind.DELETE:
            if stored is not None:
                self._delete(node, (write.key,), version)
                yield (Kind.DELETE, self.relation, self._as_old(stored[0], True), None)
            return
        if (stored is None) != (write.kind is Kind.INSERT):
            return
        values = dict.fromkeys(self.shape.columns) | {"k": write.key} if stored is None else self._named(stored[0])
        before, values = dict(values), values | dict(write.values)
        if self.merge_columns:
            values["n"] = str(int(values["n"] or 0) + write.add)
            values["m"] = str(max(int(values["m"] or 0), write.raise_to))
        row = tuple(values[c] for c in self.shape.columns)
        key = (str(row[0]),)
        if self._refused(node, key, row, None if stored is None else (write.key,)):
            return
        self.added[write.key] += write.add
        self.greatest[write.key] = max(self.greatest[write.key], write.raise_to)
        if stored is None:
            node.rows[key] = (row, version)
            yield (Kind.INSERT, self.relation, None, row)
            return
        if key != (write.key,):
            self._delete(node, (write.key,), version)
        mere = bool(self.merge_columns) and all(values[c] == before[c] for c in self.shape.columns if c not in self.merge_columns)
        node.rows[key] = (row, stored[1] if mere and Rule.SIDE_VERSION not in self.off else version)
        moved = key != (write.key,)
        sent = tuple(UNCHANGED if c == "t" and values[c] == before[c] else values[c] for c in self.shape.columns)
        yield (Kind.UPDATE, self.relation, self._as_old(stored[0], moved), sent)

    def _named(self, row: Row) -> dict[str, str | None]:
        return {c: None if value is UNCHANGED else value for c, value in zip(self.shape.columns, row, strict=True)}

    def _as_old(self, row: Row, key_matters: bool) -> Row | None:
        """An old row as the WAL has it."""
        if self.shape.full:
            return row
        return (row[0], *(UNCHANGED for _ in row[1:])) if key_matters else None

    def _refused(self, node: Node, key: Key, row: Row, moved_from: Key | None) -> bool:
        """Whether a primary or unique key stands against the row."""
        if key != moved_from and key in node.rows:
            return True
        others = [other for at, (other, _) in node.rows.items() if at not in (key, moved_from)]
        return any(row[i] is not None and any(other[i] == row[i] for other in others) for (i,) in self.uniques)

    def _delete(self, node: Node, key: Key, version: Version) -> None:
        node.rows.pop(key, None)
        if Rule.TOMBSTONE not in self.off:
            node.tombstones[key] = version

    # -- what the nodes tell each other ------------------------------------------------------------------------------------------

    def waiting(self) -> list[tuple[str, str]]:
        """The edges (source, target) on which there is something to apply."""
        pairs = product(self.nodes.values(), self.nodes.values())
        return [(s.name, t.name) for s, t in pairs if s is not t and t.applied.get(s.name, 0) < len(s.wal)]

    def deliver(self, source: str, target: str) -> bool:
        """Apply the next transaction of an edge; False if it must wait for the clock, or for another node."""
        self.step()
        node = self.nodes[target]
        origin, changes = self._next(source, node)
        if Rule.WAIT not in self.off and self.clock(node) <= origin.commit_time:
            return False
        if changes and changes[0][0] is Kind.TRUNCATE:
            self._truncate(node, origin)
        elif not self._resolve(node, origin, changes):
            return False
        node.applied[source] = node.applied.get(source, 0) + 1
        node.seen[source] = origin.commit_time
        self.story.append(f"{self.time:3} {target} applies #{node.applied[source]} of {source}: {self._shown(node)}")
        return True

    def _resolve(self, node: Node, origin: Origin, changes: Sequence[Change]) -> bool:
        """Apply a transaction; False if it must wait for another node."""
        removed: set[tuple[Relation, Key]] = set()
        behind = any(n != node.name and (n not in node.seen or node.seen[n] < at) for n, at in origin.seen.items())
        patient = behind and Rule.PATIENCE not in self.off
        while True:
            tables = {relation: self._load(node, relation) for relation in self.relations}
            try:
                resolution = self.resolvers[node.name].resolve(changes, origin, tables, removed, patient)
            except Premature:
                return False
            node.conflicts += resolution.conflicts
            if not resolution.removals:
                break
            self.story.append(f"{self.time:3} {node.name} removes {', '.join(r.key[0] for r in resolution.removals)}")
            self._remove(node, resolution.removals, origin)
            removed |= {(removal.relation, removal.key) for removal in resolution.removals}
            self.step()
        for effect in resolution.effects:
            self._apply(node, effect, Version(origin.commit_time, origin.node))
        if len(relations := {change[1] for change in changes}) == 1 and self.removal not in relations:
            expected = {key: stored.row for key, stored in tables[relations.pop()].rows.items() if stored.row is not None}
            assert expected == {key: row for key, (row, _) in node.rows.items()}, "the effects do not give what was resolved"
        return True

    def _truncate(self, node: Node, origin: Origin) -> None:
        """Apply a TRUNCATE, which is a transaction of its own here."""
        version, known = Version(origin.commit_time, origin.node), node.truncated
        late = known is not None and version.precedes(known)
        for key, (_, written) in list(node.rows.items()):
            later = node.tombstones.get(key) if self.merge_columns else written
            if not (later is not None and version.precedes(later)) and not (late and self.merge_columns):
                self._delete(node, key, version)
        node.truncated = known if late else version

    def _next(self, source: str, target: Node) -> tuple[Origin, Sequence[Change]]:
        """The next transaction of an edge."""
        return self.nodes[source].wal[target.applied.get(source, 0)]

    def _load(self, node: Node, relation: Relation) -> Table:
        width = len(relation.columns)
        buried = dict(node.tombstones)
        if node.truncated is not None:
            for key in {(k,) for k in self.shape.keys}:
                known = buried.get(key)
                buried[key] = node.truncated if known is None or known.precedes(node.truncated) else known
        under = {} if Rule.UNDER in self.off else buried
        rows = {key: Stored(None, version) for key, version in buried.items()}
        rows |= {key: Stored(row[:width], version, under.get(key)) for key, (row, version) in node.rows.items()}
        return Table(relation, (0,), () if relation is self.removal else self.uniques, self.shape.rules, rows)

    def _remove(self, node: Node, removals: Sequence[Removal], origin: Origin) -> None:
        """What the writer does in a local transaction, and the readers make of it."""
        version = Version(self.clock(node), node.name)
        changes: list[Change] = []
        for removal in removals:
            stored = node.rows.get(removal.key)
            assert removal.stored == (stored is not None)
            silent = Rule.EMIT in self.off or (Rule.EMIT_INCOMING in self.off and not removal.stored)
            self._delete(node, removal.key, Version(origin.commit_time, origin.node) if silent else version)
            if not silent and stored is not None:
                changes.append((Kind.DELETE, self.relation, self._as_old(stored[0], True), None))
            elif not silent:
                changes.append((Kind.DELETE, self.removal, removal.key, None))
        if changes:
            self._commit(node, version, changes)

    def _apply(self, node: Node, effect: Effect, version: Version) -> None:
        """What the writer and the database do with an effect."""
        (kind, _, old, new), merge = effect.change, effect.merge
        before: Key | None = None
        if kind is not Kind.INSERT:
            assert old is not None
            before = (str(old[0]),)
        if kind is Kind.DELETE:
            assert before is not None
            self._delete(node, before, version)
            if effect.parks:
                node.tombstones.pop(before, None)
            return
        assert new is not None
        assert UNCHANGED not in new
        assert before is None or node.rows[before][0] == old
        key = (str(new[0]),)
        assert not self._refused(node, key, new, before), "the database refuses the row"
        if merge and before is not None:
            version = version if Rule.SIDE_VERSION in self.off else node.rows[before][1]
        elif merge and Rule.OLDEST not in self.off:
            version = Version(None, node.name)
        if before is not None and before != key:
            self._delete(node, before, version)
        node.rows[key] = (new, version)

    # -- the end -----------------------------------------------------------------------------------------------------------------

    def settle(self, choose: Callable[[list[tuple[str, str]]], tuple[str, str]]) -> None:
        """Deliver everything."""
        while waiting := self.waiting():
            self.deliver(*choose(waiting))

    def contents(self) -> list[dict[Key, Row]]:
        """The rows of each node."""
        return [{key: row for key, (row, _) in sorted(node.rows.items())} for node in self.nodes.values()]

    def equal(self) -> bool:
        first, *others = self.contents()
        return all(other == first for other in others)

    def _shown(self, node: Node) -> str:
        return " ".join("/".join(str(value) for value in row) for row, _ in node.rows.values()) or "nothing"

    def told(self) -> str:
        """The story, to find out what went wrong."""
        ends = [f"    {node.name} has {self._shown(node)}" for node in self.nodes.values()]
        return "\n".join([f"skew { ({n.name: n.skew for n in self.nodes.values()}) }", *self.story, *ends])


def _no_handler(policy: str) -> Handler:
    raise AssertionError(policy)


# -- playing histories -------------------------------------------------------------------------------------------------------------


def play(
    seed: int, shape: Shape, nodes: int = 3, off: frozenset[Rule] = frozenset(), prefilled: Transaction | None = None
) -> World:
    """Play the history of a seed in a random order, with wrong clocks, until everything is delivered."""
    return replay(history(seed, shape, nodes), seed, shape, nodes, off, prefilled)


def replay(
    writes: History,
    seed: int,
    shape: Shape,
    nodes: int,
    off: frozenset[Rule] = frozenset(),
    prefilled: Transaction | None = None,
) -> World:
    """Play a history in the order that the seed gives."""
    chance = random.Random(f"order {seed}")
    world = World(shape, [Node(name, chance.randint(-5, 5)) for name in NAMES[:nodes]], off)
    rest = list(writes)
    if prefilled:
        world.time = 20  # past every skew
        world.write(NAMES[0], prefilled)
        while world.waiting():
            world.deliver(*world.waiting()[0])
    while rest or world.waiting():
        waiting = world.waiting()
        if rest and (not waiting or chance.random() < 0.5):
            world.write(*rest.pop(0))
        else:
            world.deliver(*chance.choice(waiting))
    return world


def every_order(world: World, rest: History, before: frozenset[tuple[str, str]] = frozenset(), last: str = "") -> Iterator[World]:
    """Play a history in every order in which it can be delivered, and give each end.

    What two nodes apply one after the other, each could have applied first: of such orders only one is played. `before` is what
    could be applied before the last node did.
    """
    waiting = world.waiting()
    if not rest and not waiting:
        yield world
        return
    if rest:
        after = world.copy()
        after.write(*rest[0])
        yield from every_order(after, rest[1:])
    for source, target in waiting:
        if target < last and (source, target) in before:
            continue
        after = world.copy()
        while not (done := after.deliver(source, target)) and after.time < world.time + 12:
            pass  # it waits for the clock, or for another node
        if done:
            yield from every_order(after, rest, frozenset(waiting), target)
