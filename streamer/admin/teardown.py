"""`streamer teardown`: take away all that setup and run have made on the nodes, and nothing else; the user's tables stay.

First everything is found and shown, then removed: slots, so that the sources keep no WAL, publications, replication origins,
progress, and the schema streamer where no sync is left that uses it. A node that cannot be reached does not stop the others.

The trap: a daemon that still runs would write on without progress. While a slot has a reader, teardown refuses, or ends it if
told to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from streamer.admin import sqlite_files
from streamer.admin.nodes import Say, chosen_syncs, session
from streamer.capture import publication
from streamer.config import OWN_SCHEMA, Config, slot_name
from streamer.errors import StreamerError, UsageError
from streamer.model import EdgeName
from streamer.session import Connection, version
from streamer.sinks.postgres import ORIGINS
from streamer.sinks.postgres_table import quote

STOP: Final = "stop streamer run first, or end its sessions with: streamer teardown --force"
READER_SECONDS: Final = 10.0
"""How long a reader that was told to end may take."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that goes, and the statement that removes it."""

    what: str
    statement: str
    parameters: tuple[Any, ...] = ()


Plan = dict[str, list[Removal]]
"""What goes, by node."""


def teardown(
    config: Config, only: str | None, *, force: bool, confirm: Callable[[Sequence[str]], bool], say: Say
) -> list[StreamerError]:
    """Remove what belongs to all syncs, or only to one, after `confirm` has seen the list; return what could not be done.

    `force` ends the readers of slots. Raises UsageError if there are any and it is not given.
    """
    work = _Teardown(config, chosen_syncs(config, only), force, say)
    plan = work.find()
    lines = [f"{node}: {removal.what}" for node, removals in plan.items() for removal in removals]
    if not lines:
        say("there is nothing to remove")
    elif confirm(lines):
        work.remove(plan)
    return work.problems


class _Teardown:
    """Finds and removes; what fails is kept in `problems`."""

    def __init__(self, config: Config, syncs: Sequence[str], force: bool, say: Say) -> None:
        self._config = config
        self._syncs = syncs
        self._force = force
        self._say = say
        self.problems: list[StreamerError] = []

    def find(self) -> Plan:
        """Return what there is. Raises UsageError if a slot is being read."""
        nodes = dict.fromkeys(n for s in self._syncs for n in (*self._config.syncs[s].sources, *self._config.syncs[s].targets))
        plan: Plan = {}
        for node in nodes:
            try:
                plan[node] = self._in_file(node) if self._config.nodes[node].kind == "sqlite" else self._in_server(node)
            except UsageError:
                raise
            except StreamerError as error:
                self.problems.append(error)
        return plan

    def _in_server(self, node: str) -> list[Removal]:
        with session(self._config, node) as connection:
            found = list(self._writers(connection, node))
            for sync in self._syncs:
                if node in self._config.syncs[sync].sources:
                    found += self._captured(connection, node, slot_name(sync, node))
                found += _origins(connection, sync, node)
            if _has_schema(connection):
                if self._is_last(connection, node):
                    found.append(Removal(f'schema "{OWN_SCHEMA}"', f"DROP SCHEMA {quote(OWN_SCHEMA)} CASCADE"))
                else:
                    found += self._progress(connection, node)
            return found

    def _writers(self, connection: Connection, node: str) -> Iterator[Removal]:
        """Sessions of a daemon that writes to this node: it may be copying, when nobody reads the slot yet."""
        edges = [EdgeName(*edge) for edge in self._config.edges() if edge[2] == node and edge[0] in self._syncs]
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
        for edge in edges:
            # names are cut at 63 bytes
            for (pid,) in connection.execute(query, [f"streamer {edge}"[:63]]):
                if not self._force:
                    raise UsageError(f'edge {edge} is written by process {pid} on "{node}"', STOP)
                yield Removal(f"session of edge {edge} (process {pid})", "SELECT pg_terminate_backend(%s)", (pid,))

    def _captured(self, connection: Connection, node: str, slot: str) -> list[Removal]:
        """Slot and publications of one stream."""
        found = []
        query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()"
        for (reader,) in connection.execute(query, [slot]):
            if reader is not None and not self._force:
                raise UsageError(f'slot "{slot}" on "{node}" is read by process {reader}', STOP)
            found.append(Removal(f'slot "{slot}"', "SELECT pg_drop_replication_slot(%s)", (slot,)))
        if version(connection) >= 100000:
            query = "SELECT pubname FROM pg_publication WHERE pubname = ANY(%s) ORDER BY pubname"
            for (name,) in connection.execute(query, [list(publication.names(slot))]):
                found.append(Removal(f'publication "{name}"', f"DROP PUBLICATION IF EXISTS {quote(name)}"))
        return found

    def _progress(self, connection: Connection, node: str) -> list[Removal]:
        found = []
        for sync in self._syncs:
            for table in ("progress", "copy"):
                where = f"FROM {OWN_SCHEMA}.{table} WHERE sync = %s AND target = %s"
                if connection.execute(f"SELECT 1 {where} LIMIT 1".encode(), [sync, node]).fetchone():
                    found.append(Removal(f'{table} of sync "{sync}"', f"DELETE {where}", (sync, node)))
        return found

    def _is_last(self, connection: Connection, node: str) -> bool:
        """Whether no other sync uses the schema: of this config, or of another one that names the same database."""
        leaving = [name for s in self._syncs for name in publication.names(slot_name(s, node))]
        lasting = " AND NOT temporary" if version(connection) >= 100000 else ""
        used = [
            "SELECT 1 FROM streamer.progress WHERE NOT sync = ANY(%(syncs)s)",
            "SELECT 1 FROM pg_replication_slots WHERE left(slot_name, 9) = 'streamer_' AND NOT slot_name = ANY(%(leaving)s) "
            f"AND database = current_database(){lasting}",
        ]
        if version(connection) >= 100000:
            used.append("SELECT 1 FROM pg_publication WHERE left(pubname, 9) = 'streamer_' AND NOT pubname = ANY(%(leaving)s)")
        parameters = {"syncs": list(self._syncs), "leaving": leaving}
        if any(connection.execute(query.encode(), parameters).fetchone() for query in used):
            return False
        return not any(self._is_set_up(sync) for sync, s in self._config.syncs.items() if node in (*s.sources, *s.targets))

    def _is_set_up(self, sync: str) -> bool:
        """Whether a sync that stays still has a slot; one whose sources cannot be asked counts as such."""
        if sync in self._syncs:
            return False
        for source in self._config.syncs[sync].sources:
            try:
                with session(self._config, source) as connection:
                    slot = [slot_name(sync, source)]
                    if connection.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", slot).fetchone():
                        return True
            except StreamerError:
                return True
        return False

    def _in_file(self, node: str) -> list[Removal]:
        has = sqlite_files.has_ours(self._config, node)
        return [Removal(f'what streamer keeps in "{self._config.nodes[node].path}"', "")] if has else []

    def remove(self, plan: Plan) -> None:
        """Remove what was found, node by node."""
        for node, removals in plan.items():
            try:
                if self._config.nodes[node].kind == "sqlite":
                    for what in sqlite_files.forget(self._config, node, self._syncs):
                        self._say(f"{node}: removed {what}")
                else:
                    self._remove_from_server(node, removals)
            except StreamerError as error:
                self.problems.append(error)

    def _remove_from_server(self, node: str, removals: Sequence[Removal]) -> None:
        with session(self._config, node) as connection:
            for removal in removals:
                _execute(connection, removal, force=self._force)
                self._say(f"{node}: removed {removal.what}")


def _origins(connection: Connection, sync: str, node: str) -> list[Removal]:
    """The replication origins of the edges of the sync that end on this node."""
    if version(connection) < ORIGINS:
        return []
    prefix = f"streamer:{sync}:{node}:"
    rows = connection.execute("SELECT roname FROM pg_replication_origin WHERE left(roname, %s) = %s", [len(prefix), prefix])
    return [Removal(f'replication origin "{name}"', "SELECT pg_replication_origin_drop(%s)", (name,)) for (name,) in rows]


def _has_schema(connection: Connection) -> bool:
    return connection.execute("SELECT to_regclass('streamer.progress') IS NOT NULL").fetchone() == (True,)


def _execute(connection: Connection, removal: Removal, *, force: bool) -> None:
    """Execute the statement; with `force`, end whoever reads the slot that is dropped, as often as it comes back.

    An origin is given back when its session has ended, which takes a moment.
    """
    deadline = time.monotonic() + READER_SECONDS
    while True:
        try:
            connection.execute(removal.statement.encode(), removal.parameters)
            return
        except psycopg.errors.ObjectInUse:
            if not force or time.monotonic() > deadline:
                raise
        connection.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", removal.parameters
        )
        time.sleep(0.05)
