"""Nodes whose changes are captured by triggers, beside those of conflict_nodes.py: they tell what they have written in batches.

Of each key a batch tells only the last state, as made by the transaction that wrote it last. An edge may be broken off inside of a
batch, and then finishes it with the rows of that time: what was written again meanwhile belongs to the next batch.

Where such a node keeps no commit times (`LateWorld`), a transaction has the time of its last write, and may commit long after it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from streamer.model import UNCHANGED, Change, Identity, Kind, Origin, Relation, Row
from streamer.sinks.conflict import Key, Removal, Version
from tests.unit.conflict_model import NAMES, History, Shape, Transaction, Write
from tests.unit.conflict_nodes import START, Node, Rule, World


@dataclass(frozen=True)
class Logged:
    """A transaction in the deltas of a node: an applied one has no origin here, and tells nobody anything."""

    origin: Origin | None
    keys: frozenset[Key]
    #: which of the keys had no row before
    new: frozenset[Key]
    removals: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where an edge stands: up to `start` everything is there, and of the batch that ends at `end` the first `rank` ones."""

    start: int = 0
    end: int = 0
    rank: int = 0


@dataclass
class Sent:
    """A transaction of a batch that an edge has yet to apply, and where the edge stands then."""

    origin: Origin
    changes: Sequence[Change]
    after: Place


@dataclass
class Road:
    """An edge from such a node."""

    place: Place = field(default_factory=Place)
    pending: list[Sent] = field(default_factory=list)


class BatchWorld(World):
    """A world in which the nodes `batched` are captured by triggers; their edges are broken off by chance."""

    def __init__(
        self, shape: Shape, nodes: Sequence[Node], batched: str, chance: random.Random, off: frozenset[Rule] = frozenset()
    ) -> None:
        super().__init__(shape, nodes, off)
        self.net = Relation(
            self.relation.table,
            tuple(replace(c, identity=c.name == "k") for c in self.relation.columns),
            Identity.DEFAULT,
            net=True,
        )
        self.relations.append(self.net)
        self.chance = chance
        #: the rows of the node that writes, before it does
        self.before: dict[Key, tuple[Row, Version]] = {}
        self.breaks = chance.choice((0.0, 0.0, 0.1, 0.3))
        self.logs: dict[str, list[Logged]] = {name: [] for name in batched}
        #: where the batches of a node end
        self.ends: dict[str, list[int]] = {name: [] for name in batched}
        self.roads = {(name, node.name): Road() for name in batched for node in nodes if node.name != name}

    # -- what is logged ----------------------------------------------------------------------------------------------------------

    def _commit(self, node: Node, version: Version, changes: Sequence[Change]) -> None:
        super()._commit(node, version, changes)
        if node.name in self.logs:
            origin = node.wal[-1][0]
            keys = {(str(row[0]),) for _, r, *rows in changes if r is self.relation for row in rows if row is not None}
            removals = tuple(change for change in changes if change[1] is self.removal)
            new = {key for key in keys if key not in self.before}
            self.logs[node.name].append(Logged(origin, frozenset(keys), frozenset(new), removals))

    def write(self, name: str, writes: Sequence[Write]) -> None:
        self.before = dict(self.nodes[name].rows)
        super().write(name, writes)

    def _remove(self, node: Node, removals: Sequence[Removal], origin: Origin) -> None:
        self.before = dict(node.rows)
        super()._remove(node, removals, origin)
        self.before = dict(node.rows)

    def deliver(self, source: str, target: str) -> bool:
        node = self.nodes[target]
        if source in self.logs and self.chance.random() < self.breaks:
            self.roads[source, target].pending.clear()  # broken off
        if source in self.logs and not self._read(source, target):
            return False
        self.before = dict(node.rows)
        done = super().deliver(source, target)
        if target in self.logs and done:
            keys = frozenset(key for key in {*self.before, *node.rows} if self.before.get(key) is not node.rows.get(key))
            self.logs[target].append(Logged(None, keys, keys - self.before.keys()))
        if source in self.logs and done:
            road = self.roads[source, target]
            road.place = road.pending.pop(0).after
        return done

    # -- what is told ------------------------------------------------------------------------------------------------------------

    def waiting(self) -> list[tuple[str, str]]:
        slots = [(s, t) for s, t in super().waiting() if s not in self.logs]
        return slots + [(s, t) for (s, t) in self.roads if self._read(s, t)]

    def _next(self, source: str, target: Node) -> tuple[Origin, Sequence[Change]]:
        if source not in self.logs:
            return super()._next(source, target)
        sent = self.roads[source, target.name].pending[0]
        return sent.origin, sent.changes

    def _read(self, source: str, target: str) -> bool:
        """Read the next batch of an edge, or what is left of one, if it has nothing to apply; whether it has something then."""
        road, log = self.roads[source, target], self.logs[source]
        while not road.pending:
            start, rank = road.place.start, road.place.rank
            if start == len(log):
                return False
            end = next((end for end in self.ends[source] if end > start), None)
            if end is None:
                self.ends[source].append(len(log))
            road.pending = self._batch(source, Place(start, end or len(log), rank), late=end is not None)
            if not road.pending:
                road.place = Place(end or len(log))
        return True

    def _batch(self, source: str, place: Place, late: bool) -> list[Sent]:
        """What is left of a batch. Others may rest on what is not told any more, if it has been told before."""
        node, log = self.nodes[source], self.logs[source]
        last = {key: at for at in range(place.start, len(log)) for key in log[at].keys}
        found: list[Sent] = []
        empty: list[Sent] = []
        for at in range(place.start + place.rank, place.end):
            logged = log[at]
            if logged.origin is None:
                continue
            keys = sorted(key for key in logged.keys if last[key] == at)
            changes = sorted(logged.removals + tuple(self._change(node, place, at, key) for key in keys), key=_order)
            sent = Sent(logged.origin, changes, Place(place.start, place.end, at + 1 - place.start))
            if changes:
                found += [*empty, sent]
                empty = []
            elif late:
                empty = [sent]
        found += empty
        if found:
            found[-1].after = Place(place.end)
        return found

    def _change(self, node: Node, place: Place, at: int, key: Key) -> Change:
        """What a key has come to."""
        if key not in node.rows:
            return (Kind.DELETE, self.net, (key[0], *(UNCHANGED for _ in self.net.columns[1:])), None)
        log = self.logs[node.name]
        first = next(log[i] for i in range(place.start, at + 1) if key in log[i].keys)
        return (Kind.INSERT if key in first.new else Kind.UPDATE, self.net, None, node.rows[key][0])


def _order(change: Change) -> int:
    return [Kind.DELETE, Kind.UPDATE, Kind.INSERT].index(change[0])


class LateWorld(BatchWorld):
    """A world in which transactions of the batched nodes commit some time after their last write. What they touch is locked
    meanwhile, so they have written after whoever changed that before."""

    def __init__(
        self, shape: Shape, nodes: Sequence[Node], batched: str, chance: random.Random, off: frozenset[Rule] = frozenset()
    ) -> None:
        super().__init__(shape, nodes, batched, chance, off)
        #: when keys and unique values were changed last, by node
        self.changed: dict[str, dict[object, datetime]] = {name: {} for name in self.nodes}
        #: what a node had seen of the others, and since when
        self.learnt: dict[str, list[tuple[datetime, dict[str, datetime]]]] = {name: [] for name in self.nodes}

    def write(self, name: str, writes: Sequence[Write]) -> None:
        node = self.nodes[name]
        before, seen = self._state(node), node.seen
        if name in self.logs:
            wrote = self._last_write(node, writes)
            node.skew -= (late := round((self.clock(node) - wrote).total_seconds()))
            node.seen = next((of for since, of in reversed(self.learnt[name]) if since < wrote), {}) if late else seen
            super().write(name, writes)
            node.skew, node.seen = node.skew + late, seen
        else:
            super().write(name, writes)
        self._note(node, before)

    def deliver(self, source: str, target: str) -> bool:
        node = self.nodes[target]
        before, known = self._state(node), node.seen.get(source)
        done = super().deliver(source, target)
        self._note(node, before)
        if done:  # the times do not come in their order
            node.seen[source] = node.seen[source] if known is None else max(known, node.seen[source])
            self.learnt[target].append((self.clock(node), dict(node.seen)))
        return done

    def _last_write(self, node: Node, writes: Sequence[Write]) -> datetime:
        """A moment since which nobody has changed what is written now."""
        keys = {w.key for w in writes} | {value for w in writes for column, value in w.values if column == "k"}
        touched: set[object] = {*keys, *(pair for w in writes for pair in w.values if pair[0] in self.shape.uniques)}
        touched |= {pair for key in keys if (row := node.rows.get((str(key),))) for pair in self._unique(row[0])}
        now = self.clock(node)
        free = max(self.changed[node.name].get(one, START - timedelta(seconds=60)) for one in touched)
        return now - timedelta(seconds=self.chance.randint(0, max(0, round((now - free).total_seconds()) - 2)))

    def _unique(self, row: Row) -> set[tuple[str, object]]:
        return {(column, value) for column, value in zip(self.shape.columns, row, strict=True) if column in self.shape.uniques}

    def _state(self, node: Node) -> dict[Key, tuple[Row | None, Version | None, Version | None]]:
        rows: dict[Key, tuple[Row | None, Version | None]] = dict(node.rows)
        nothing = (None, None)
        return {key: (*rows.get(key, nothing), node.tombstones.get(key)) for key in {*rows, *node.tombstones}}

    def _note(self, node: Node, before: Mapping[Key, tuple[Row | None, Version | None, Version | None]]) -> None:
        """Note what has changed since."""
        now, after = self.clock(node), self._state(node)
        for key in {*before, *after}:
            if before.get(key) != after.get(key):
                rows = [state[0] for state in (before.get(key), after.get(key)) if state is not None and state[0] is not None]
                for one in (key[0], *(pair for row in rows for pair in self._unique(row))):
                    self.changed[node.name][one] = now


def play_batches(
    writes: History,
    seed: int,
    shape: Shape,
    nodes: int,
    batched: str,
    prefilled: Transaction | None = None,
    kind: type[BatchWorld] = BatchWorld,
) -> BatchWorld:
    """Play a history in the order that the seed gives, until everything is delivered."""
    chance = random.Random(f"order {seed}")
    world = kind(shape, [Node(name, chance.randint(-5, 5)) for name in NAMES[:nodes]], batched, chance)
    rest = list(writes)
    if prefilled:
        world.time = 20  # past every skew
        world.write(NAMES[0], prefilled)
        while waiting := world.waiting():
            world.deliver(*waiting[0])
    eagerness = chance.choice((0.2, 0.5, 0.8))
    while rest or world.waiting():
        waiting = world.waiting()
        if rest and (not waiting or chance.random() > eagerness):
            world.write(*rest.pop(0))
        else:
            world.deliver(*chance.choice(waiting))
    return world
