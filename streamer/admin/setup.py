"""`streamer setup`: make everything that the syncs need on their nodes. What is there already is kept or brought into line.

For each sync: the schema streamer on every node, missing tables on the targets, with several sources triggers and replica
identities, then on each source the publications, and last the slot (or triggers, and a delta reader). The trap: the order. A
publication or table made after the slot does not exist for changes that the slot already keeps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import psycopg

from streamer.admin import capture_triggers, first_rows, installation, keyless, unrecorded
from streamer.admin.check_shapes import carry_filtered_rows
from streamer.admin.create_tables import create_missing
from streamer.admin.nodes import Say, chosen_syncs, session
from streamer.admin.same_database import refuse_same
from streamer.admin.sequences import create_sequences
from streamer.admin.setup_masters import carry_old_rows, keep_keys
from streamer.capture import publication
from streamer.capture.catalog import read_tables
from streamer.capture.diagnose import Diagnosis
from streamer.capture.slot import maker
from streamer.config import OWN_SCHEMA, Config, slot_name
from streamer.errors import SlotError, SourceError, StreamerError, UsageError
from streamer.model import EdgeName, TableName
from streamer.node_config import choose_capture
from streamer.session import Connection, end_with_us, version

_MEMBER: Final = (
    "INSERT INTO streamer.member (sync, target) SELECT %(sync)s, %(node)s "
    "WHERE NOT EXISTS (SELECT 1 FROM streamer.member WHERE sync = %(sync)s AND target = %(node)s)"
)

PATIENCE_SECONDS: Final = 60
"""How long a new slot may wait for transactions that were open when it was asked for."""

POLL_SECONDS: Final = 0.1


def setup(config: Config, only: str | None, say: Say, *, fix: bool = False) -> None:
    """Set up all syncs, or only one, telling each step; with `fix`, alter tables where a sync demands it. Raises StreamerError."""
    waiting = chosen_syncs(config, only)
    new: set[str] = set()
    while waiting:
        try:
            _set_up(config, waiting.pop(0), new, say, fix=fix)
        except StreamerError:
            if waiting:
                say(f"not begun: sync {_named(waiting)}")
            raise


def _set_up(config: Config, sync: str, new: set[str], say: Say, *, fix: bool) -> None:
    """Set up one sync; `new` are the nodes on which nothing of ours was there before."""
    _require_tables(config, sync)
    refuse_same(config, sync)
    settings = config.syncs[sync]
    servers = [n for n in (*settings.sources, *settings.targets) if config.nodes[n].kind == "postgresql"]
    new |= {node for node in servers if install(config, node, say)}
    _make_targets(config, sync, say)
    for node in servers if settings.multi_master else ():
        with session(config, node) as connection:
            connection.execute(_MEMBER, {"sync": sync, "node": node})
    for source in settings.sources if settings.multi_master else ():
        carry_old_rows(config, sync, source, fix=fix, say=say)
    for source in settings.sources:
        carry_filtered_rows(config, sync, source, fix=fix, say=say)
    for node in servers:
        keep_keys(config, node, say)
    first_rows.note_copies(config, sync)
    grown = False
    for source in settings.sources:
        with session(config, source) as connection:
            stream = StreamSetup(connection, config, sync, source, say).prepare()
        grown |= stream.has_grown
        for target in config.targets(sync, source):
            edge = EdgeName(sync, source, target)
            lost = stream.kept_slot and target in new
            told = unrecorded.of_lost(config, edge) if lost else unrecorded.of_kept(config, edge)
            if told is not None:
                say(told)
    first_rows.note_streams(config, sync)
    if grown:
        say(
            f'sync "{sync}" has more tables now; streamer run takes them up when it is started again, or by: '
            f"streamer pause {sync}; streamer resume {sync}"
        )


def _make_targets(config: Config, sync: str, say: Say) -> None:
    """Make tables and sequences on the targets. One that refuses does not keep the others from getting theirs, but no slot is made
    then, which would keep WAL for it. Raises the first error; others are told."""
    failed: dict[str, StreamerError] = {}
    for source in config.syncs[sync].sources:
        for target in config.targets(sync, source):
            try:
                create_missing(config, sync, source, target, say)
                create_sequences(config, sync, source, target, say)
            except StreamerError as error:
                failed.setdefault(target, error)
    if not failed:
        return
    first, *others = dict.fromkeys(map(str, failed.values()))
    for told in others:
        say(f"failed: {told}")
    say(f'sync "{sync}": not finished; cure what failed on {_named(failed)}, then run setup again')
    raise next(error for error in failed.values() if str(error) == first)


def _named(things: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in things)


def _require_tables(config: Config, sync: str) -> None:
    """Refuse a sync that would replicate nothing, before anything is made. A source without tables may be given them."""
    settings = config.syncs[sync]
    for source in settings.sources:
        with session(config, source) as connection:
            if read_tables(connection, settings.selects):
                return
    raise UsageError(
        f'sync "{sync}" selects no table on {" or ".join(settings.sources)} (tables = {list(settings.tables)})',
        f"correct syncs.{sync}.tables; case counts, and a name without a dot means the schema public",
    )


def install(config: Config, node: str, say: Say) -> bool:
    """Make what streamer keeps in a PostgreSQL database; return whether nothing of it was there. Where triggers capture, and
    nothing is written, that is made for them."""
    with session(config, node) as connection:
        if capture_triggers.captures_here(config, node, connection) and not any(target == node for *_, target in config.edges()):
            return False
        new = not installation.is_there(connection)
        say(f'{node}: {installation.install(connection)} schema "{OWN_SCHEMA}"')
        return new


class Prepared(NamedTuple):
    """What `setup` found of a stream."""

    #: whether its slot was there
    kept_slot: bool
    #: whether it was there with fewer tables, which a daemon that runs knows; with wal2json, that cannot be told
    has_grown: bool


class StreamSetup:
    """Makes publications and slot of one stream, or what triggers need."""

    def __init__(self, connection: Connection, config: Config, sync: str, source: str, say: Say, *, failover: bool = False) -> None:
        self._connection = connection
        self._source = source
        self._say = say
        self._failover = failover
        self._slot = slot_name(sync, source)
        self._diagnosis = Diagnosis(source, sync, self._slot)
        self._config = config
        self._sync = sync
        self._settings = config.syncs[sync]
        self._plugin = choose_capture(config.nodes[source].capture, version(connection))[0]

    def prepare(self) -> Prepared:
        """Publications, then the slot; or triggers."""
        tables = read_tables(self._connection, self._settings.selects)
        captured = [table for table in tables if self._settings.captures(table.table)]
        slot = self._plugin != keyless.TRIGGER
        insert_only = publication.insert_only(self._connection, captured, self._plugin) if slot else set()
        table_keys = keyless.Keys(self._config, self._sync, self._source, self._plugin, insert_only)
        table_keys.announce(tables, self._say)
        if not slot:
            grown = capture_triggers.prepare(self._config, self._source, self._connection, self._sync, self._say)
            return Prepared(kept_slot=False, has_grown=grown)
        new: set[TableName] = set()
        if self._plugin == "pgoutput":
            held_back = publication.held_back(self._connection, self._slot, captured)
            new = publication.joining(self._connection, self._slot, captured)
            for wanted in publication.wanted(self._connection, self._slot, captured):
                self._say(f"{self._source}: {publication.ensure(self._connection, wanted)}")
            table_keys.announce_caught_up(held_back, self._say)
        if self._has_slot():
            self._say(f'{self._source}: kept slot "{self._slot}"')
            return Prepared(kept_slot=True, has_grown=bool(new))
        self._create_slot()
        self._say(f'{self._source}: created slot "{self._slot}" with {self._plugin}')
        return Prepared(kept_slot=False, has_grown=False)

    def _has_slot(self) -> bool:
        row = self._find_slot()
        if row is None:
            return False
        plugin, database, ours, status, pid = row
        where = f'slot "{self._slot}" on "{self._source}"'
        if database != ours:
            raise self._diagnosis.of_another_database(database)
        if pid is not None:
            raise self._diagnosis.being_made(pid)
        if plugin != self._plugin:
            raise SlotError(f"{where} uses the plugin {plugin}, the config says {self._plugin}", self._diagnosis.recopy)
        if status == "lost":
            raise SlotError(f"{where} has lost WAL that was not yet read", self._diagnosis.recopy)
        return True

    def _find_slot(self) -> tuple[Any, ...] | None:
        """The slot, when nobody is making it any more: that may fail, and then it is gone."""
        status = "wal_status" if version(self._connection) >= 130000 else "NULL"
        columns = f"plugin, database, current_database(), {status}, {maker(self._connection)}"
        query = f"SELECT {columns} FROM pg_replication_slots WHERE slot_name = %s".encode()
        deadline, told = time.monotonic() + PATIENCE_SECONDS, False
        while True:
            row = self._connection.execute(query, [self._slot]).fetchone()
            if row is None or row[-1] is None or time.monotonic() > deadline:
                return row
            if not told:
                self._say(f'{self._source}: slot "{self._slot}" is being made by process {row[-1]}; waiting for it')
                told = True
            time.sleep(POLL_SECONDS)

    def _create_slot(self) -> None:
        end_with_us(self._connection)
        try:
            with self._connection.transaction():
                self._connection.execute(f"SET LOCAL statement_timeout = '{PATIENCE_SECONDS}s'")
                options = ", failover := true" if self._failover else ""
                query = f"SELECT pg_create_logical_replication_slot(%s, %s{options})"
                self._connection.execute(query.encode(), [self._slot, self._plugin])
        except psycopg.errors.QueryCanceled:
            raise self._held_up() from None
        except psycopg.Error as error:
            raise self._diagnosed(error) from error

    def _diagnosed(self, error: psycopg.Error) -> Exception:
        """The plugin's refusal explained; anything else stays what it is, and is explained by the session."""
        explained = self._diagnosis(str(error))
        return explained if explained.hint and error.sqlstate is not None and "wal2json" in str(error) else error

    def _held_up(self) -> SourceError:
        """The slot waits for transactions that have written; a forgotten one holds it up for ever."""
        row = self._connection.execute(
            "SELECT pid, usename, now() - xact_start FROM pg_stat_activity "
            "WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1"
        ).fetchone()
        problem = f'slot "{self._slot}" on "{self._source}" could not be made within {PATIENCE_SECONDS} s'
        if row is None:
            return SourceError(f"{problem}: prepared transactions may hold it up", "see pg_prepared_xacts, then run setup again")
        pid, role, age = row
        return SourceError(
            f"{problem}: it waits for the transaction of process {pid} (role {role}), open for {str(age).split('.')[0]}",
            f"end it, for example with SELECT pg_terminate_backend({pid}), then run: streamer setup",
        )
