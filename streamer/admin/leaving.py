"""A node leaves its syncs: what must hold first, what the other nodes have of it, and what is left to do for a person.

The trap: what the others have applied of its transactions lies in their own WAL, or among their own deltas. Once it is no source
any more it feeds nobody, so what their edges have not passed yet would be taken for something to hand on, and be applied twice.

https://www.postgresql.org/docs/current/view-pg-replication-origin-status.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import psycopg

from streamer.admin import installation, removals
from streamer.admin.capture_triggers import captures_here
from streamer.admin.nodes import chosen_syncs
from streamer.admin.removals import Removal
from streamer.capture import batches
from streamer.capture.assemble import Interest
from streamer.capture.batches import position_of
from streamer.capture.trigger_tables import TriggerTables
from streamer.config import Config, Sync, slot_name
from streamer.errors import UsageError
from streamer.model import LSN, EdgeName
from streamer.session import Connection, version
from streamer.sinks.postgres_session import ORIGINS

MAX: Final = LSN((1 << 64) - 1)
"""Of an edge that has no progress there is nothing to wait for."""

# whether there is anything of the node in the tables, and the first batch whose snapshot sees all of it
_FIRST_BATCH: Final = """
WITH handed AS (
    SELECT DISTINCT t.txid FROM streamer.delta_tag t JOIN streamer.delta d ON d.txid = t.txid
    WHERE %(node)s IN (t.source, t.origin) AND d.relation = ANY (%(relations)s::bigint[]::oid[]))
SELECT EXISTS (SELECT 1 FROM handed), (
    SELECT min(b.number) FROM streamer.delta_batch b WHERE b.stream = %(stream)s
    AND NOT EXISTS (SELECT 1 FROM handed h WHERE NOT txid_visible_in_snapshot(h.txid, b.snapshot)))
"""


def syncs_of(config: Config, node: str, only: str | None) -> list[str]:
    """Return the syncs that the node leaves: all of its own, or the one named.

    Raises UsageError if there is none, or one would have nothing left to replicate.
    """
    if node not in config.nodes:
        raise UsageError(f'the config has no node "{node}"', f"it has {', '.join(config.nodes)}")
    own = [name for name, sync in config.syncs.items() if node in _nodes(sync)]
    found = [name for name in chosen_syncs(config, only) if name in own]
    if not found:
        where = f'sync "{only}"; it is in {", ".join(own) or "none"}' if only else "any sync"
        remedy = "" if only else "run it with the config as it was, in which the node is named, and take it out then"
        raise UsageError(f'node "{node}" is not in {where}', remedy)
    for name in found:
        rest = without(config, [name], node).syncs[name]
        if not rest.sources or len(_nodes(rest)) < 2:
            raise UsageError(f'without "{node}" nothing is left to replicate in sync "{name}"', f"streamer teardown --sync {name}")
    return found


def without(config: Config, syncs: Sequence[str], node: str | None) -> Config:
    """Return what is left of the config without these syncs, or with them but without the node."""
    if node is None:
        return config.model_copy(update={"syncs": {name: sync for name, sync in config.syncs.items() if name not in syncs}})
    left = {name: _leave(sync, node) if name in syncs else sync for name, sync in config.syncs.items()}
    return config.model_copy(update={"syncs": left})


def _leave(sync: Sync, node: str) -> Sync:
    roles = {"sources": sync.sources, "targets": sync.targets}
    return sync.model_copy(update={role: tuple(n for n in names if n != node) for role, names in roles.items()})


def _nodes(sync: Sync) -> tuple[str, ...]:
    return (*sync.sources, *sync.targets)


class Leaving:
    """What the other nodes have of a node that leaves `syncs`; with `everywhere`, also what other syncs handed on of it."""

    def __init__(self, config: Config, node: str, syncs: Sequence[str], *, everywhere: bool, force: bool) -> None:
        self._config = config
        self._node = node
        self._syncs = syncs
        self._everywhere = everywhere
        self._force = force
        self._rest = without(config, syncs, node)
        #: by sync and node: where the last that the node has of it lies
        self._last: dict[tuple[str, str], LSN] = {}
        self._positions: dict[EdgeName, LSN] = {}
        #: where the last transaction lies that an edge from the node has applied, if the node made it
        self._applied: dict[EdgeName, LSN] = {}

    def nodes(self) -> list[str]:
        """The node, and the others that may have something of it."""
        syncs = self._config.syncs.values() if self._everywhere else [self._config.syncs[s] for s in self._syncs]
        return list(dict.fromkeys([self._node, *(node for sync in syncs for node in _nodes(sync))]))

    def on(self, connection: Connection, other: str) -> Iterator[Removal]:
        """What another node has of it. Raises UsageError if the edges are in use."""
        its = [name for name in removals.origins(connection, other) if self._node in (name.via, name.origin)]
        names = [name for name in its if self._everywhere or name.sync in self._syncs]
        edges = [EdgeName(s, self._node, other) for s in self._syncs if self._node in self._config.feeders(s, other)]
        edges += [name.edge for name in names]
        yield from removals.writers(connection, other, dict.fromkeys(edges), force=self._force)
        self._look_how_far(connection, other, [str(name) for name in its])
        yield from removals.origin_removals(names)
        if installation.is_there(connection):
            for sync in self._syncs:
                for table in ("progress", "copy", "copied_part", "first_rows", "quarantine"):
                    what = f"{table} of edge {EdgeName(sync, self._node, other)}"
                    yield from removals.rows(connection, table, what, sync=sync, source=self._node, target=other)
            yield from removals.triggers(connection, other, self._rest)

    def _look_how_far(self, connection: Connection, other: str, names: Sequence[str]) -> None:
        """Note where the other node's WAL holds the last that it wrote for the one that leaves, and its own positions."""
        query = "SELECT sync, source, position, origin, origin_position FROM streamer.progress WHERE target = %s AND sync = ANY(%s)"
        if installation.is_there(connection):
            for sync, source, position, origin, applied in connection.execute(query, [other, list(self._syncs)]):
                edge = EdgeName(sync, source, other)
                self._positions[edge] = LSN.parse(position)
                if source == origin == self._node and LSN.parse(applied) < self._positions[edge]:
                    self._applied[edge] = LSN.parse(applied)
        if captures_here(self._config, other, connection):
            self._look_how_far_by_batches(connection, other)
            return
        if version(connection) < ORIGINS:
            return
        query = "SELECT max(local_lsn)::text FROM pg_replication_origin_status WHERE external_id = ANY(%s)"
        try:
            row = connection.execute(query, [list(names)]).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            return  # then it cannot be told
        if row and row[0]:
            self._last |= {(sync, other): LSN.parse(row[0]) for sync in self._syncs}

    def _look_how_far_by_batches(self, connection: Connection, other: str) -> None:
        """The same where triggers capture: note the first batch that holds all of it, by its snapshot."""
        if not batches.installed(connection):
            return
        for sync in self._syncs:
            oids = TriggerTables(connection, other, sync, Interest(self._config.syncs[sync].selects)).oids
            asked = {"stream": slot_name(sync, other), "node": self._node, "relations": oids}
            row = connection.execute(_FIRST_BATCH, asked).fetchone()
            if row is not None and row[0]:
                self._last[sync, other] = MAX if row[1] is None else position_of(row[1])

    def require_passed(self) -> None:
        """Refuse while some have transactions of it that others lack, or would send them on. To be asked when all have been seen.

        Raises UsageError.
        """
        for sync in self._syncs:
            self._require_equal(sync)
        behind = [edge for sync in self._syncs for edge in self._remaining(sync) if self._is_behind(edge)]
        if behind:
            streams = sorted({f"streamer run --once --sync {edge.sync} --source {edge.source}" for edge in behind})
            raise UsageError(
                f'edge {behind[0]} may not have passed all transactions of "{self._node}" yet, and would send them on again',
                f"run: {', '.join(streams)}; then this again (or use --force, and compare the rows afterwards)",
            )

    def _require_equal(self, sync: str) -> None:
        """Refuse while the others have not had the same of its transactions: nobody else hands them on. Raises UsageError."""
        applied = {edge: at for edge, at in self._applied.items() if edge.sync == sync}
        if not applied:
            return
        ahead = max(applied, key=applied.__getitem__)
        for edge, position in self._positions.items():
            if (edge.sync, edge.source) == (sync, self._node) and position <= applied[ahead]:
                its = f'transactions of "{self._node}"'
                raise UsageError(
                    f'"{edge.target}" lacks {its} that "{ahead.target}" has, and nobody else would bring them',
                    f"run: streamer run --once --sync {sync} --source {self._node}; then this again (where they cannot be read any "
                    "more, use --force, and compare the rows afterwards)",
                )

    def _is_behind(self, edge: EdgeName) -> bool:
        return self._positions.get(edge, MAX) < self._last[edge.sync, edge.source]

    def _remaining(self, sync: str) -> Iterator[EdgeName]:
        """The edges that stay, from nodes that have applied something of it to nodes that it feeds."""
        for target in _nodes(self._rest.syncs[sync]):
            if self._node in self._config.feeders(sync, target):
                sources = [source for source in self._rest.feeders(sync, target) if (sync, source) in self._last]
                yield from (EdgeName(sync, source, target) for source in sources)

    def advice(self) -> Iterator[str]:
        """What a person has to do now."""
        for sync in self._syncs:
            for target in self._config.syncs[sync].targets:
                if self._config.feeders(sync, target) == (self._node,) and target != self._node:
                    (successor,) = self._rest.feeders(sync, target)
                    yield (
                        f'target "{target}" got all of sync "{sync}" from "{self._node}", and will get it from "{successor}": '
                        f"empty its tables before the next run, so that they are copied anew"
                    )
        where = " and ".join(f"syncs.{sync}" for sync in self._syncs)
        whole = f", and nodes.{self._node} as well" if self._everywhere else ""
        yield f'now take "{self._node}" out of {where} in the config{whole}; then start streamer run again'
