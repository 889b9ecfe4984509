"""`streamer teardown`: take away all that setup and run have made on the nodes, and nothing else; the user's tables stay.

First everything is found and shown, then removed: slots (or delta readers), so that the sources keep nothing for us, publications,
replication origins, progress, triggers, and the schema streamer where no sync is left that uses it. Or, of one node that leaves its
syncs, all that is there and what the others have of it. A node that cannot be reached does not stop the others.

The trap: a daemon that still runs would write on without progress. While a slot has a reader, teardown refuses, or ends it if
told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from streamer.admin import capture_triggers, installation, removals
from streamer.admin.foreign import ForeignTarget, target_of
from streamer.admin.leaving import Leaving, syncs_of, without
from streamer.admin.nodes import Say, chosen_syncs, session
from streamer.admin.removals import Removal
from streamer.capture import publication
from streamer.config import OWN_SCHEMA, Config, slot_name
from streamer.errors import StreamerError, UsageError
from streamer.model import EdgeName
from streamer.node_config import LOGICAL_DECODING
from streamer.session import Connection, version
from streamer.sinks.postgres_table import quote

Plan = dict[str, list[Removal]]
"""What goes, by node."""


def teardown(
    config: Config,
    only: str | None,
    *,
    node: str | None = None,
    force: bool,
    confirm: Callable[[Sequence[str]], bool],
    say: Say,
) -> list[StreamerError]:
    """Remove what belongs to all syncs, or only to one, after `confirm` has seen the list; return what could not be done.

    With `node`, only take that node out of its syncs, or out of the one; the others go on. `force` ends the readers of slots.
    Raises UsageError if there are any and it is not given.
    """
    syncs = chosen_syncs(config, only) if node is None else syncs_of(config, node, only)
    leaving = None if node is None else Leaving(config, node, syncs, everywhere=only is None, force=force)
    work = _Teardown(config, syncs, node, leaving, force, say)
    plan = work.find()
    lines = [f"{place}: {removal.what}" for place, found in plan.items() for removal in found]
    if not lines:
        say("there is nothing to remove")
    elif not confirm(lines):
        return work.problems
    work.remove(plan)
    for line in leaving.advice() if leaving else ():
        say(line)
    return work.problems


_OF_A_SYNC: Final = {
    "progress": "progress",
    "copy": "copy",
    "copied_part": "copied ranges",
    "post_data": "indexes and constraints that were never made",
    "first_rows": "tables that have not begun",
    "member": "membership",
    "conflict": "conflicts",
    "quarantine": "quarantine",
}
"""Tables that have rows of single syncs, and what these are."""


class _Teardown:
    """Finds and removes; what fails is kept in `problems`."""

    def __init__(
        self, config: Config, syncs: Sequence[str], node: str | None, leaving: Leaving | None, force: bool, say: Say
    ) -> None:
        self._config = config
        self._syncs = syncs
        self._node = node
        self._leaving = leaving
        self._rest = without(config, syncs, node)
        self._force = force
        self._say = say
        self.problems: list[StreamerError] = []

    def find(self) -> Plan:
        """Return what there is. Raises UsageError if a slot is being read."""
        plan: Plan = {}
        for node in self._leaving.nodes() if self._leaving else self._nodes():
            try:
                foreign = target_of(self._config, node)
                plan[node] = self._in_server(node) if foreign is None else self._in_foreign(foreign, node)
            except UsageError:
                raise
            except StreamerError as error:
                self.problems.append(error)
        if self._leaving and not self._force:
            self._leaving.require_passed()
        return plan

    def _nodes(self) -> list[str]:
        settings = [self._config.syncs[sync] for sync in self._syncs]
        return list(dict.fromkeys(node for sync in settings for node in (*sync.sources, *sync.targets)))

    def _in_server(self, node: str) -> list[Removal]:
        with session(self._config, node) as connection:
            if self._leaving and node != self._node:
                return list(self._leaving.on(connection, node))
            return list(self._all_in_server(connection, node))

    def _all_in_server(self, connection: Connection, node: str) -> Iterator[Removal]:
        """All that the syncs have here."""
        edges = [EdgeName(*edge) for edge in self._config.edges() if edge[2] == node and edge[0] in self._syncs]
        yield from removals.writers(connection, node, edges, force=self._force)
        captured = [sync for sync in self._syncs if node in self._config.syncs[sync].sources]
        for sync in captured:
            yield from removals.captured(connection, node, slot_name(sync, node), force=self._force)
        yield from capture_triggers.removals(connection, node, captured, self._rest, force=self._force)
        names = removals.origins(connection, node)
        yield from removals.origin_removals(name for name in names if name.sync in self._syncs)
        for sync in self._syncs:
            yield from removals.unfinished(connection, sync, node)
        if installation.is_there(connection) or capture_triggers.is_installed(connection):
            if self._is_last(connection, node):
                yield Removal(f'schema "{OWN_SCHEMA}"', f"DROP SCHEMA {quote(OWN_SCHEMA)} CASCADE")
            else:
                yield from self._kept(connection, node)

    def _kept(self, connection: Connection, node: str) -> Iterator[Removal]:
        """What the syncs have in a schema that stays."""
        for sync in self._syncs:
            for table, what in _OF_A_SYNC.items():
                yield from removals.rows(connection, table, f'{what} of sync "{sync}"', sync=sync, target=node)
        yield from removals.triggers(connection, node, self._rest)

    def _is_last(self, connection: Connection, node: str) -> bool:
        """Whether no other sync uses the schema: of this config, or of another one that names the same database."""
        leaving = [name for s in self._syncs for name in publication.names(slot_name(s, node))]
        if capture_triggers.streams_there(connection) - set(leaving):
            return False
        lasting = " AND NOT temporary" if version(connection) >= 100000 else ""
        used = []
        if installation.is_there(connection):
            used.append("SELECT 1 FROM streamer.progress WHERE NOT sync = ANY(%(syncs)s)")
        if version(connection) >= LOGICAL_DECODING:
            used.append(
                "SELECT 1 FROM pg_replication_slots WHERE left(slot_name, 9) = 'streamer_' AND NOT slot_name = ANY(%(leaving)s) "
                f"AND database = current_database(){lasting}"
            )
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
                    slot = slot_name(sync, source)
                    if slot in capture_triggers.streams_there(connection) or removals.has_slot(connection, slot):
                        return True
            except StreamerError:
                return True
        return False

    def _in_foreign(self, target: ForeignTarget, node: str) -> list[Removal]:
        source = self._source_to_forget(node)
        if source is None:
            return [Removal(f"what streamer keeps in {target.place}", "")] if target.has_ours() else []
        edges = [EdgeName(sync, source, node) for sync in self._syncs]
        return [Removal(f"progress of edge {edge}", "") for edge in edges if target.position(edge) is not None]

    def _source_to_forget(self, node: str) -> str | None:
        """The source that a target has to forget; None if it has to forget all of them."""
        return None if node == self._node else self._node

    def remove(self, plan: Plan) -> None:
        """Remove what was found, node by node."""
        for node, found in plan.items():
            try:
                if not found:
                    continue
                if (foreign := target_of(self._config, node)) is None:
                    self._remove_from_server(node, found)
                else:
                    for what in foreign.forget(self._syncs, self._source_to_forget(node)):
                        self._say(f"{node}: removed {what}")
            except StreamerError as error:
                self.problems.append(error)

    def _remove_from_server(self, node: str, found: Sequence[Removal]) -> None:
        with session(self._config, node) as connection:
            for removal in found:
                removals.execute(connection, removal, force=self._force)
                self._say(f"{node}: removed {removal.what}")
