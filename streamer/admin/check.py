"""`streamer check`: look at everything that a run depends on, change nothing, and say what to do about what is found.

Every node is asked once; a node that cannot be reached is a finding, and the others are looked at all the same. Verdicts are pure
functions over what was read (check_server, check_tables, check_target, check_multi_master …); here they are brought together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import psycopg

from streamer.admin import check_multi_master, check_owners, check_shapes, check_triggers, installation
from streamer.admin.check_closed import judge_closed
from streamer.admin.check_connection import Trial, judge_probes, probe_twice, try_slot
from streamer.admin.check_left import judge_slots_left
from streamer.admin.check_progress import judge_progress
from streamer.admin.check_rest import judge_rest
from streamer.admin.check_selection import judge_selection, judge_unselected, relations, unselected, wanted
from streamer.admin.check_sequences import ColumnName, Counter, judge_counters, read_counters
from streamer.admin.check_server import OLDEST_MASTER, OLDEST_SOURCE, Needs, Server, judge_server, read_server
from streamer.admin.check_tables import Capture, check_source_rights, judge_source_table
from streamer.admin.check_target import judge_target_table, read_target_table
from streamer.admin.findings import Finding, Severity, error, ok, warning
from streamer.admin.foreign import target_of
from streamer.admin.keyless import TRIGGER, Keys
from streamer.admin.nodes import LOGICAL, explained, session
from streamer.admin.same_database import same
from streamer.admin.sequences import follows, judge_others, judge_sequences, selection
from streamer.capture import keys, publication
from streamer.capture.catalog import SourceTable, read_tables
from streamer.capture.diagnose import Diagnosis
from streamer.capture.sequences import find_sequences
from streamer.config import Config, slot_name
from streamer.errors import StreamerError
from streamer.model import TableName
from streamer.node_config import choose_capture
from streamer.post_data import REMEDY
from streamer.session import Connection, version
from streamer.sinks import postgres_post_data
from streamer.sinks.postgres_session import ORIGINS

WAL_STATUS: Final = 130000  # pg_replication_slots.wal_status: version 13


def check(config: Config) -> list[Finding]:
    """Return all findings."""
    with ExitStack() as resources:
        work = _Check(config, resources)
        work.run()
    return list(dict.fromkeys(work.findings))  # several edges may find the same


class _Check:
    """One round over all nodes and syncs; connections stay open until its end."""

    def __init__(self, config: Config, resources: ExitStack) -> None:
        self._config = config
        self._resources = resources
        self._connections: dict[str, Connection] = {}
        self._servers: dict[str, Server] = {}
        self._trials: dict[tuple[str, str], Trial] = {}
        self.findings: list[Finding] = []

    def run(self) -> None:
        """Nodes first, then what the syncs want of them."""
        used = {n for s in self._config.syncs.values() for n in (*s.sources, *s.targets)}
        for node, settings in self._config.nodes.items():
            if node not in used:
                self._look_at_unused(node)
            elif settings.kind == "postgresql":
                with self._asking(node):
                    self._look_at(node)
        for sync in self._config.syncs:
            self._compare_databases(sync)
            for source in self._config.syncs[sync].sources:
                if source in self._servers and self._can_capture(source):
                    with self._asking(source):
                        self._look_at_stream(sync, source)
            self._look_who_may_write(sync)
            self.findings += judge_others(self._config, sync)
            if self._config.syncs[sync].multi_master:
                self._look_at_masters(sync)

    @contextmanager
    def _asking(self, node: str) -> Iterator[None]:
        """Turn whatever goes wrong inside into a finding."""
        try:
            yield
        except psycopg.Error as problem:
            self._failed(node, explained(node, self._connections[node], problem))
        except StreamerError as problem:
            self._failed(node, problem)

    def _failed(self, node: str, problem: StreamerError) -> None:
        found = error(f'node "{node}"', problem.message.removeprefix(f'node "{node}": '), problem.hint)
        if found not in self.findings:  # it is asked by each sync, and for several things
            self.findings.append(found)

    # -- nodes -------------------------------------------------------------------------------------------------------------------

    def _look_at_unused(self, node: str) -> None:
        self.findings.append(warning(f'node "{node}"', "no sync uses it", f"remove [nodes.{node}], or name it in a sync"))
        if self._config.nodes[node].kind == "postgresql":
            # nobody needs the node, so it need not be there
            with suppress(StreamerError), session(self._config, node) as connection:
                self.findings += judge_slots_left(self._config, node, connection)

    def _look_at(self, node: str) -> None:
        connection = self._resources.enter_context(session(self._config, node))
        self._connections[node] = connection
        with session(self._config, node) as other:
            self.findings += judge_probes(node, *probe_twice(connection, other))
        server = self._servers[node] = read_server(connection)
        self.findings += judge_server(node, server, self._needs(node, connection))
        if syncs := [sync for sync in self._config.syncs.values() if node in sync.sources]:
            self.findings += judge_unselected(node, wanted(syncs, unselected(connection, syncs)))
        self.findings += check_triggers.judge_left(self._config, node, connection)
        self.findings += judge_slots_left(self._config, node, connection)

    def _needs(self, node: str, connection: Connection) -> Needs:
        syncs = {name: s for name, s in self._config.syncs.items() if node in s.sources}
        capture = self._capture(node, connection)
        slots = {slot_name(name, node) for name in syncs} if capture != TRIGGER else set()
        active = self._slots(connection) if version(connection) >= OLDEST_SOURCE else {}
        return Needs(
            source=bool(syncs),
            target=any(target == node for _, _, target in self._config.edges()),
            new_slots=len(slots - active.keys()),
            idle_streams=sum(not active.get(slot, False) for slot in slots),
            copies=capture != TRIGGER and any(s.copy_rows != "never" for s in syncs.values()),
            new_origins=self._missing_origins(node, connection),
            multi_master=any(s.multi_master and node in (*s.sources, *s.targets) for s in self._config.syncs.values()),
            plugins=frozenset({capture} if syncs else ()),
        )

    def _capture(self, node: str, connection: Connection) -> str:
        """How changes are read there: wal2json, pgoutput, trigger."""
        return choose_capture(self._config.nodes[node].capture, version(connection))[0]

    def _can_capture(self, node: str) -> bool:
        """Whether the server knows that way, whatever else is wrong with it."""
        return self._servers[node].version >= OLDEST_SOURCE or self._capture(node, self._connections[node]) == TRIGGER

    def _missing_origins(self, node: str, connection: Connection) -> int:
        """How many edges that end here have no replication origin yet."""
        wanted = {f"streamer:{sync}:{node}:{source}:{source}" for sync, source, target in self._config.edges() if target == node}
        if version(connection) < ORIGINS:
            return 0
        return len(wanted - {name for (name,) in connection.execute("SELECT roname FROM pg_replication_origin")})

    def _slots(self, connection: Connection) -> dict[str, bool]:
        """The slots of the cluster, and whether they are being read."""
        return dict(connection.execute("SELECT slot_name, active FROM pg_replication_slots").fetchall())

    def _compare_databases(self, sync: str) -> None:
        """Two names for one database would replicate it onto itself."""
        nodes = (*self._config.syncs[sync].sources, *self._config.syncs[sync].targets)
        places: dict[str, object] = {n: self._servers[n].identity for n in nodes if n in self._servers}
        for node in nodes:
            with self._asking(node):
                if (foreign := target_of(self._config, node)) is not None:
                    places[node] = foreign.identity()
        self.findings += [error(f'sync "{sync}"', told.message, told.hint) for told in same(places)]

    def _look_who_may_write(self, sync: str) -> None:
        settings = self._config.syncs[sync]
        nodes = [n for n in (*settings.sources, *settings.targets) if self._config.nodes[n].kind == "postgresql"]
        if all(node in self._servers for node in nodes):
            with self._asking(nodes[0]):
                self.findings += judge_closed(sync, {node: self._connections[node] for node in nodes})

    # -- streams -----------------------------------------------------------------------------------------------------------------

    def _look_at_stream(self, sync: str, source: str) -> None:
        connection, settings = self._connections[source], self._config.syncs[sync]
        plugin, why = choose_capture(self._config.nodes[source].capture, version(connection))
        self.findings.append(ok(f'node "{source}"', f"captures with {plugin}: {why}"))
        tables = read_tables(connection, settings.selects)
        followed = find_sequences(connection, selection(settings)) if settings.sequences else []
        sequences = [sequence.name for sequence in followed]
        if tables or not self._will_be_given_tables(sync, source):
            self.findings += judge_selection(sync, settings, source, tables, sequences, relations(connection))
        else:
            self.findings.append(ok(f'sync "{sync}"', f'selects no table on "{source}" yet; streamer setup makes them'))
        capture = Capture(source, version(connection), plugin, plugin != TRIGGER and self._try(sync, source, plugin).loses_nan)
        for table in tables:
            if settings.captures(table.table):
                self.findings += judge_source_table(capture, table)
        if plugin == TRIGGER:
            self._look_at_triggers(sync, source, tables)
        else:
            self._look_at_slot(sync, source, plugin, tables)
        self._look_at_progress(sync, source, plugin)
        for target in self._config.targets(sync, source):
            with self._asking(target):
                self.findings += check_shapes.judge_shapes(self._config, sync, target, connection, capture, tables)
                keyed = keys.on_targets(tables, settings.key_for)
                self._look_at_target(target, list(check_shapes.shaped(keyed, settings.shapes_for(target))))
                self.findings += self._judge_post_data(sync, target)
                if follows(self._config, sync, target):
                    other = self._connections[target]
                    self.findings += judge_sequences(self._config, sync, source, connection, target, other)

    def _look_at_progress(self, sync: str, source: str, plugin: str) -> None:
        """What the targets hold; not where the slot is known to be of no use, or cannot be asked."""
        slot = f'slot "{slot_name(sync, source)}" on "{source}"'
        useless = any(f.severity is Severity.ERROR and f.object == slot for f in self.findings)
        if not useless and (plugin == TRIGGER or not self._would_fail(source, plugin)):
            with self._asking(source):
                self.findings += judge_progress(self._config, sync, source, self._connections)

    def _will_be_given_tables(self, sync: str, source: str) -> bool:
        """Whether the source is a target of others that have tables of the sync."""
        settings = self._config.syncs[sync]
        others = [self._connections[node] for node in settings.sources if node != source and node in self._servers]
        return any(read_tables(connection, settings.selects) for connection in others)

    def _look_at_slot(self, sync: str, source: str, plugin: str, tables: Sequence[SourceTable]) -> None:
        connection, settings = self._connections[source], self._config.syncs[sync]
        only_inserts = publication.insert_only(connection, tables, plugin)
        table_keys = Keys(self._config, sync, source, plugin, only_inserts)
        self.findings += table_keys.judge(connection, tables)
        published = publication.published(connection, slot_name(sync, source)) if plugin == "pgoutput" else None
        captured = {t.table for t in tables if settings.captures(t.table)}
        if published:
            held_back = publication.held_back(connection, slot_name(sync, source), tables)
            self.findings += table_keys.judge_held_back(held_back & captured)
        unpublished = captured - (published or set()) if plugin == "pgoutput" else set()
        self.findings += check_source_rights(connection, source, tables, unpublished)
        self.findings += self._judge_slot(sync, source, plugin, missing_publication=plugin == "pgoutput" and published is None)
        self.findings += judge_rest(sync, settings, source, self._servers[source].settings)

    def _look_at_triggers(self, sync: str, source: str, tables: Sequence[SourceTable]) -> None:
        connection = self._connections[source]
        self.findings += Keys(self._config, sync, source, TRIGGER, set()).judge(connection, tables)
        facts = check_triggers.read_facts(self._config, sync, source, connection, tables)
        self.findings += check_source_rights(connection, source, tables, facts.unfinished(), check_triggers.MAKE_TRIGGERS)
        self.findings += check_triggers.judge_triggers(facts)
        if self._config.syncs[sync].multi_master:
            self.findings += check_triggers.judge_array_keys(source, version(connection), tables)

    def _try(self, sync: str, source: str, plugin: str) -> Trial:
        """The trial slot, once a node; not where it is known to fail."""
        key = source, plugin
        if key not in self._trials:
            trial = Trial() if self._would_fail(source, plugin) else try_slot(source, self._config.nodes[source].url, sync, plugin)
            self._trials[key] = trial
            self.findings += trial.findings
        return self._trials[key]

    def _would_fail(self, source: str, plugin: str) -> bool:
        server = self._servers[source]
        told = {f.remedy for f in self.findings if f.severity is Severity.ERROR and f.object == f'node "{source}"'}
        return (
            any(LOGICAL in remedy for remedy in told)
            or not (server.superuser or server.replication)
            or any("max_replication_slots" in remedy or "max_wal_senders" in remedy for remedy in told)
            or not server.allows(plugin)
        )

    def _judge_slot(self, sync: str, source: str, plugin: str, *, missing_publication: bool) -> Iterator[Finding]:
        connection, slot = self._connections[source], slot_name(sync, source)
        what, diagnosis = f'slot "{slot}" on "{source}"', Diagnosis(source, sync, slot)
        recopy = diagnosis.recopy
        status = "wal_status" if version(connection) >= WAL_STATUS else "NULL"
        query = f"SELECT plugin, database, current_database(), {status} FROM pg_replication_slots WHERE slot_name = %s"
        row: Any = connection.execute(query.encode(), [slot]).fetchone()
        if row is None:
            yield ok(what, "does not exist; streamer setup makes it")
            return
        if row[1] != row[2]:
            told = diagnosis.of_another_database(row[1])
            yield error(what, told.message.removeprefix(f"{what} "), told.hint)
            return
        if row[0] != plugin:
            yield error(what, f"uses the plugin {row[0]}, the config says {plugin}", recopy)
        if row[3] == "lost":
            yield error(what, "has lost WAL that was not yet read", recopy)
        elif row[3] == "unreserved":
            yield warning(
                what, "is about to lose WAL that was not yet read", "start streamer run, and raise max_slot_wal_keep_size"
            )
        else:
            yield ok(what, "exists")
        if missing_publication:
            yield error(what, "its publications do not exist", f"changes made without them cannot be read; {recopy}")

    def _look_at_target(self, target: str, tables: Sequence[SourceTable]) -> None:
        if (foreign := target_of(self._config, target)) is not None:
            self.findings += foreign.check([t.definition for t in tables])
        elif target in self._connections:
            for table in tables:
                found = read_target_table(self._connections[target], target, table)
                self.findings += judge_target_table(target, table, found)

    def _judge_post_data(self, sync: str, target: str) -> Iterator[Finding]:
        """What was to be made after the rows, and the target has refused."""
        connection = self._connections.get(target)
        if connection is not None and installation.has_table(connection, "post_data"):
            for one in postgres_post_data.listed(connection, sync, target):
                if one.refused:
                    remedy = REMEDY.format(statement=one.statement)
                    yield warning(f'{one.what} on "{target}"', f"is not there: {one.refused}", remedy)

    # -- several sources ---------------------------------------------------------------------------------------------------------

    def _look_at_masters(self, sync: str) -> None:
        settings = self._config.syncs[sync]
        counters: dict[str, dict[ColumnName, Counter]] = {}
        clocks: list[check_multi_master.Clock] = []
        owners: dict[str, dict[TableName, check_owners.Owner]] = {}
        self.findings += check_multi_master.judge_functions(sync, settings)
        for node in (*settings.sources, *settings.targets):
            if node in self._servers and self._may_be_master(node):  # else there is an error already
                with self._asking(node):
                    clocks.append(check_multi_master.read_clock(node, self._connections[node]))
                    tables = self._look_at_master_tables(sync, node)
                    if node in settings.sources:
                        counters[node] = read_counters(self._connections[node], tables)
                        owners[node] = check_owners.read_owners(self._connections[node], settings)
        self.findings += check_multi_master.judge_clocks(sync, settings, clocks)
        self.findings += judge_counters(settings.sources, counters)
        for node in owners:
            with self._asking(node):
                self.findings += check_owners.judge_owners(node, owners, self._connections[node])

    def _may_be_master(self, node: str) -> bool:
        return self._servers[node].version >= OLDEST_MASTER or self._capture(node, self._connections[node]) == TRIGGER

    def _look_at_master_tables(self, sync: str, node: str) -> list[TableName]:
        connection, settings, server = self._connections[node], self._config.syncs[sync], self._servers[node]
        by_triggers = node in settings.sources and self._capture(node, connection) == TRIGGER
        self.findings += check_multi_master.judge_commit_times(node, settings, connection, by_triggers=by_triggers)
        without_triggers: list[TableName] = []
        merged: list[TableName] = []
        from_wal = node in settings.sources and not by_triggers
        tables = read_tables(connection, settings.selects)
        for table in tables:
            rules = settings.rules_for(table.table)
            facts = check_multi_master.read_master_table(connection, node, table, rules, from_wal=from_wal)
            self.findings += check_multi_master.judge_master_table(sync, node, facts, rules, from_wal=from_wal)
            if rules.merged:
                merged.append(table.table)
            if facts.key and facts.lacks_triggers:
                without_triggers.append(table.table)
        self.findings += check_multi_master.judge_triggers(node, without_triggers)
        self.findings += check_multi_master.judge_replica_right(
            node, server.role, may_be_replica=server.may_be_replica, merged=merged
        )
        return [table.table for table in tables]
