"""The proof that no transaction reaches a node twice or travels for ever, or the path that shows that one does. Pure.

A transaction is sent on its way from every node, breadth first, by the forwarding rule, over all syncs at once; each
arrival is remembered with its path. A second arrival at a node is refused if both paths can carry the same row. A path
that comes back to itself is such a second arrival, and shows a transaction that travels for ever; so the walk ends.

The trap: whether two syncs select a table in common cannot always be told from globs. What is not certainly disjoint
counts as overlapping, and paths count as carrying the same row if their syncs overlap pairwise.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import combinations, product
from typing import TypeAlias

from streamer.config import Config, Sync
from streamer.errors import ConfigError
from streamer.model import EdgeName, TableName
from streamer.node_config import Node
from streamer.patterns import literal, prefix
from streamer.router import forwards

Path: TypeAlias = tuple[EdgeName, ...]


def check(config: Config) -> None:
    """Return if every transaction reaches each node at most once.

    Raises ConfigError with the paths that show otherwise.
    """
    topology = _Topology(config)
    for origin in config.nodes:
        topology.travel(origin)


def check_urls(config: Config) -> None:
    """Raise ConfigError if two nodes of a sync are one database by their urls alone: whether others are, only servers can tell."""
    for name, sync in config.syncs.items():
        for one, other in combinations((*sync.sources, *sync.targets), 2):
            if config.nodes[one].kind != "jsonl" and _address(config.nodes[one]) == _address(config.nodes[other]):
                raise ConfigError(
                    f'sync "{name}": nodes "{one}" and "{other}" are the same database',
                    f"correct nodes.{one}.url or nodes.{other}.url",
                )


def _address(node: Node) -> tuple[str, str]:
    """What is the same only for urls of one database: without the role, unless it says which database is meant."""
    place = node.url.partition("://")[2]
    bare = place.rpartition("@")[2]
    return node.kind, bare if re.search("/[^?]", bare) else place


class _Topology:
    """The edges by source, and which syncs may carry the same row."""

    def __init__(self, config: Config) -> None:
        self._feeders = {(sync, target): config.feeders(sync, target) for sync, _, target in config.edges()}
        self._edges: defaultdict[str, list[EdgeName]] = defaultdict(list)
        for sync, source, target in config.edges():
            self._edges[source].append(EdgeName(sync, source, target))
        self._overlapping = {
            (a, b) for (a, one), (b, other) in product(config.syncs.items(), repeat=2) if a == b or overlap(one, other)
        }

    def travel(self, origin: str) -> None:
        """Send a transaction made on `origin` on its way. Raises ConfigError if two paths bring it to one node."""
        arrivals: defaultdict[str, list[Path]] = defaultdict(list)
        waiting: deque[Path] = deque([()])
        while waiting:
            for path in self._onward(origin, waiting.popleft()):
                target = path[-1].target
                for earlier in arrivals[target]:
                    if self._share_rows((*path, *earlier)):
                        raise _refusal(origin, path, earlier)
                arrivals[target].append(path)
                waiting.append(path)

    def _onward(self, origin: str, path: Path) -> Iterator[Path]:
        """The path, longer by each edge that the forwarding rule lets the transaction take next."""
        here, via = (path[-1].target, path[-1].source) if path else (origin, origin)
        for edge in self._edges[here]:
            feeders = self._feeders[edge.sync, edge.target]
            if forwards(source=here, target=edge.target, origin=origin, via=via, feeders=feeders):
                longer = (*path, edge)
                if self._share_rows(longer):
                    yield longer

    def _share_rows(self, edges: Iterable[EdgeName]) -> bool:
        names = {edge.sync for edge in edges}
        return all(pair in self._overlapping for pair in product(names, repeat=2))


def _refusal(origin: str, path: Path, earlier: Path) -> ConfigError:
    """The error for two paths that carry the same row to one node."""
    target, last, earlier_last = path[-1].target, path[-1].sync, earlier[-1].sync
    if path[: len(earlier)] == earlier:
        return ConfigError(
            f'a transaction made on "{origin}" would travel for ever: {_drawn(path)}',
            f'take "{target}" out of sync "{last}", or replicate other tables in it',
        )
    remedy = f'take "{target}" out of sync "{last}" or "{earlier_last}", or replicate other tables in one of them'
    if last == earlier_last:
        remedy = f'make "{origin}" itself a source of sync "{last}", or take "{target}" out of it'
    return ConfigError(
        f'a transaction made on "{origin}" would reach "{target}" twice: {_drawn(path)} and {_drawn(earlier)}', remedy
    )


def _drawn(path: Path) -> str:
    return path[0].source + "".join(f" -({edge.sync})-> {edge.target}" for edge in path)


def overlap(one: Sync, other: Sync) -> bool:
    """Return whether the same rows may travel in both syncs; False only if that is certain not to be so.

    The rows of a table that one of them renames are then in a table that the other may select.
    """
    renamed = any(a.selects(name) for a, b in ((one, other), (other, one)) for name in _new_names(b))
    return renamed or any(_may_share(p, q, one, other) for p, q in product(one.tables, other.tables))


def _new_names(sync: Sync) -> set[TableName]:
    """What tables are called on targets where they have another name."""
    return {s.target for node in sync.targets for s in sync.shapes_for(node).values() if s.target != s.table}


def _may_share(pattern: str, other_pattern: str, one: Sync, other: Sync) -> bool:
    """Whether a table that both syncs select may match both patterns."""
    if _excludes(one, other_pattern) or _excludes(other, pattern):
        return False
    if (name := literal(pattern)) is not None:
        return fnmatch.fnmatchcase(name, other_pattern) and _selects(one, name) and _selects(other, name)
    if literal(other_pattern) is not None:
        return _may_share(other_pattern, pattern, other, one)
    begins, other_begins = prefix(pattern), prefix(other_pattern)
    return begins.startswith(other_begins) or other_begins.startswith(begins)


def _selects(sync: Sync, literal: str) -> bool:
    schema, _, name = literal.partition(".")
    return sync.selects(TableName(schema, name))


def _excludes(sync: Sync, pattern: str) -> bool:
    """Whether the sync excludes everything that the pattern matches."""
    # matching a glob as if it were a name is sound where only * can swallow its wildcards
    return any(e == pattern or (not re.search(r"[?\[]", e) and fnmatch.fnmatchcase(pattern, e)) for e in sync.exclude)
