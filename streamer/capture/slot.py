"""The slot capture: a stream's reading end on a logical replication slot, with either output plugin.

`SlotSource` answers what the stream asks between sessions (where does the slot stand, which tables, a snapshot), and opens them:
each is a `SlotReader`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import psycopg
from psycopg import pq

from streamer.capture import keys, publication
from streamer.capture.assemble import Assembler, Interest
from streamer.capture.catalog import SourceTable, current_position, generated_columns, read_tables, require_names
from streamer.capture.diagnose import Diagnosis
from streamer.capture.first_rows import awaited
from streamer.capture.key_ranges import copied_table
from streamer.capture.named_keys import Decoder, NamedKeys
from streamer.capture.pgoutput import PgoutputDecoder
from streamer.capture.release import HELD_BYTES, Release
from streamer.capture.replication import ReplicationStream, timeline_switches
from streamer.capture.slot_reader import SlotReader
from streamer.capture.snapshot import ExportedSnapshot, abandoned_slots, exported_snapshot
from streamer.capture.wal2json import ENVELOPE_BYTES
from streamer.capture.wal2json_session import Wal2jsonSession
from streamer.errors import SlotError, SourceError, TakenError, lost_identity, no_longer_carried, replaced
from streamer.model import LSN, SlotIdentity, TableName
from streamer.node_config import Node, choose_capture
from streamer.ports import IDLE_BYTES, CopyTable, Place, SlotState
from streamer.session import Connection, connect, reported, version

CONFIRM_SECONDS: Final = 2.0
"""How long a session that ends waits for the server to note what was confirmed last."""
HANDOVER_SECONDS: Final = 3.0
"""How long to wait for a slot that another process still reads, before that is an error."""
CONFIRMED: Final = 90600  # pg_replication_slots.confirmed_flush_lsn

# up to a position that any record passes: the plugin starts, and decodes next to nothing
_TRY_OPTION: Final = "SELECT 1 FROM pg_logical_slot_peek_changes(%s, '0/1', 1, 'format-version', '2', %s, 'true')"

T = TypeVar("T")


class SlotSource:
    """Implements ports.Source for one sync on one node, and what its edges want of it."""

    def __init__(self, name: str, node: Node, sync: str, slot: str, interest: Interest) -> None:
        self._node, self._sync = name, sync
        self._url = node.url
        self._capture = node.capture
        self._max_retained_bytes = node.max_retained_bytes
        self._slot = slot
        self._interest = interest
        self._selects = interest.selects
        self._whole = interest.whole
        self._keys = interest.keys
        self._diagnosis = Diagnosis(name, sync, slot)
        self._application = f"streamer {sync} {name}"
        #: the tables that the stream has carried since the daemon started, and their oids
        self._carried: dict[TableName, int] = {}
        #: the oids of those whose updates and deletes it had
        self._identified: set[int] = set()

    def state(self) -> SlotState:
        """Return where the slot stands."""
        replication = connect(self._node, self._url, application=self._application, replication=True)
        with replication, self._connection() as connection:
            identifier, timeline = _identify(replication)
            recovering, database = connection.execute("SELECT pg_is_in_recovery(), current_database()").fetchone() or (
                False,
                "",
            )
            if recovering:
                raise SourceError(f'node "{self._node}" is a standby', f"name its primary in nodes.{self._node}.url")
            row = connection.execute(
                f"SELECT plugin, database, {_confirmed(connection)}::text, {maker(connection)} FROM pg_replication_slots "
                "WHERE slot_name = %s",
                [self._slot],
            ).fetchone()
            if row is None:
                raise self._diagnosis.missing_slot()
            for slot in abandoned_slots(connection):
                connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
            if row[1] != database:
                raise self._diagnosis.of_another_database(row[1])
            if row[3] is not None:
                raise self._diagnosis.being_made(row[3])
            plugin = self._plugin(connection)
            self._require(row[0] == plugin, f"uses the plugin {row[0]}, the config says {plugin}")
            identity = SlotIdentity(f"{identifier}/{timeline}", database, self._slot)
            return SlotState(
                identity,
                LSN.parse(row[2]),
                current_position(connection),
                exact=version(connection) >= CONFIRMED,
                idle_bytes=_idle_bytes(connection, self._interest.echoing),
                switches=timeline_switches(replication, identity.timeline),
            )

    def _require(self, fulfilled: bool, otherwise: str) -> None:
        if not fulfilled:
            raise SlotError(f'slot "{self._slot}" on "{self._node}" {otherwise}', self._diagnosis.recopy)

    def tables(self) -> list[CopyTable]:
        """Return the tables that the sync selects, and whether the stream carries them."""
        with self._connection() as connection:
            tables = read_tables(connection, self._selects)
            captured = [t for t in tables if not self._whole(t.table)]
            keys.require(self._node, captured, self._keys)
            carried = self._carried_of(connection, captured)
            self._note(captured, carried)
            awaiting = awaited(connection, self._sync, self._node, self._interest)

        def found(t: SourceTable) -> CopyTable:
            key = keys.identity_key(t, self._keys(t.table))
            copied = copied_table(t, carried=t.table in carried, whole=self._whole(t.table), key=key)
            return replace(copied, awaits_rows=t.table in awaiting)

        return list(map(found, tables))

    def _carried_of(self, connection: Connection, tables: Sequence[SourceTable]) -> set[TableName]:
        """Which of the tables the stream carries."""
        if self._plugin(connection) != "pgoutput":
            return {t.table for t in tables}
        published = self._published(connection)
        return {t.table for t in tables if {t.table, *t.leaves} & published}

    def _require_carried(self, connection: Connection, tables: Sequence[SourceTable]) -> None:
        """Make sure that the stream still carries what it did, by the same names: a publication says nothing when a table is taken
        out of it, and follows one that is renamed."""
        carried = self._carried_of(connection, tables)
        for table in tables:
            if table.table in self._carried.keys() - carried:
                raise no_longer_carried(table.table, self._slot)
        require_names(connection, self._carried, {table.table for table in tables}, self._node, self._sync)
        if self._plugin(connection) != "pgoutput":  # which takes tables by their names; a publication loses one that is replaced
            self._require_same(tables)
        self._note(tables, carried)
        if self._plugin(connection) != "pgoutput":  # of a published table the server refuses updates and deletes then
            self._require_identity(connection, tables)

    def _require_same(self, tables: Sequence[SourceTable]) -> None:
        """See that no other table has got the name of one: which of its rows came under that name, nobody knows."""
        for table in tables:
            if self._carried.get(table.table, table.oid) != table.oid:
                raise replaced(table.table, self._node, self._sync)

    def _require_identity(self, connection: Connection, tables: Sequence[SourceTable]) -> None:
        """See that no table has lost what its updates and deletes are told by: they would be left out without a word."""
        without = publication.insert_only(connection, tables, "wal2json")
        for table in tables:
            if table.table in without and table.oid in self._identified:
                raise lost_identity(table.table, self._node, self._sync)
        self._identified |= {table.oid for table in tables if table.table not in without}

    def _note(self, tables: Sequence[SourceTable], carried: Collection[TableName]) -> None:
        self._carried |= {table.table: table.oid for table in tables if table.table in carried}

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with reported(self._node), connect(self._node, self._url, application=self._application) as connection:
            yield connection

    @contextmanager
    def read_from(self, places: Sequence[Place]) -> Iterator[SlotReader]:
        """Open the stream at the first place; on leaving, what was confirmed is sent once more."""
        with self._connection() as connection:
            stream, decoder, envelope = self._open(connection, places[0].position)
            try:
                assembler = Assembler(self._node, envelope, self._interest, [(p.position, p.seen) for p in places])
                release = Release(self._worth_releasing(connection))
                yield SlotReader(stream, decoder, assembler, partial(self._look, connection), release)
            finally:
                stream.finish(lambda: self._await_confirmation(connection, stream.confirmed))

    def _worth_releasing(self, connection: Connection) -> int:
        """How many bytes of WAL are worth a write on the targets: never so many that the guard of the node would warn first, nor
        fewer than are noted anyway."""
        limit = self._max_retained_bytes
        held = HELD_BYTES if limit is None else min(HELD_BYTES, limit // 2)
        return max(held, _idle_bytes(connection, self._interest.echoing))

    def _await_confirmation(self, connection: Connection, position: LSN) -> None:
        """Wait until the slot has what was confirmed last. Data that we have not read would make a close overtake it."""
        query = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND {_confirmed(connection)} < %s::pg_lsn"
        deadline = time.monotonic() + CONFIRM_SECONDS
        while time.monotonic() < deadline and connection.execute(query, [self._slot, str(position)]).fetchone():
            time.sleep(0.02)

    def _look(self, connection: Connection) -> LSN | None:
        """See that the server is there and the stream carries every table; return from where on it keeps WAL for the slot.

        Raises SourceError, psycopg.Error.
        """
        self._require_carried(connection, self._captured(connection))
        slots = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s AND restart_lsn IS NOT NULL"
        row = connection.execute(slots, [self._slot]).fetchone()
        return LSN.parse(row[0]) if row else None

    def _open(self, connection: Connection, position: LSN) -> tuple[ReplicationStream, Decoder, int]:
        """Start the stream; return it with its decoder and what a payload spends on a column besides the value, in bytes."""
        tables = self._captured(connection)
        self._require_carried(connection, tables)
        named = keys.named_for(tables, self._keys)
        if self._plugin(connection) == "pgoutput":
            publications = ", ".join(f'"{name}"' for name in publication.names(self._slot))
            options = {"proto_version": "1", "publication_names": publications}
            roots = {leaf: t.table for t in tables for leaf in t.leaves}
            names = {t.oid: t.table for t in tables}
            # only when they are published: a server that shuts down has ended this connection before the last changes come
            generated = partial(generated_columns, connection) if version(connection) >= publication.GENERATED_COLUMNS else None
            return self._start(connection, position, options), _keyed(PgoutputDecoder(roots, generated, names), named), 0
        numbers_are_strings = self._patiently(partial(self._numbers_are_strings, connection, self._slot))
        session = Wal2jsonSession(connection, tables, numbers_are_strings=numbers_are_strings)
        return self._start(connection, position, session.options), _keyed(session.decoder, named), ENVELOPE_BYTES

    def _captured(self, connection: Connection) -> list[SourceTable]:
        """The tables whose changes are read; not by a narrower selection, in which partitions would be tables of their own."""
        return [t for t in read_tables(connection, self._selects) if not self._whole(t.table)]

    def _numbers_are_strings(self, connection: Connection, slot: str) -> bool:
        """Whether the plugin can send numbers as strings (wal2json 2.6). Its version cannot be asked, so the option is tried."""
        option = "numeric-data-types-as-string"
        try:
            connection.execute(_TRY_OPTION, [slot, option])
        except psycopg.Error as error:
            if option in str(error):
                return False
            raise self._diagnosis(str(error)) from None
        return True

    def _start(self, connection: Connection, position: LSN, options: Mapping[str, str]) -> ReplicationStream:
        stream = self._patiently(partial(self._start_replication, position, options))
        stream.report_every(_sender_timeout(connection) / 3)
        return stream

    def _start_replication(self, position: LSN, options: Mapping[str, str]) -> ReplicationStream:
        replication = connect(self._node, self._url, application=self._application, replication=True)
        try:
            return ReplicationStream(replication, self._slot, position, options, self._diagnosis)
        except BaseException:
            replication.close()
            raise

    def _patiently(self, use_slot: Callable[[], T]) -> T:
        """Use the slot; one whose last reader has just died may be held for a moment still."""
        deadline = time.monotonic() + HANDOVER_SECONDS
        while True:
            try:
                return use_slot()
            except TakenError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _published(self, connection: Connection) -> set[TableName]:
        """The tables in the stream's publications. Newer servers decode on without one, and give nothing."""
        tables = publication.published(connection, self._slot)
        if tables is None:
            raise self._diagnosis(f'publication "{self._slot}" does not exist')
        return tables

    def snapshot(self) -> AbstractContextManager[ExportedSnapshot]:
        """Hold a consistent state of the tables."""
        return exported_snapshot(self._node, self._url, self._plugin, self._diagnosis)

    def _plugin(self, connection: Connection) -> str:
        return choose_capture(self._capture, version(connection))[0]


def _keyed(decoder: Decoder, named: Mapping[TableName, Sequence[str]]) -> Decoder:
    """The decoder with the keys that the config names; the decoder itself, where it names none, because this costs time."""
    return NamedKeys(decoder, named) if named else decoder


def _identify(replication: Connection) -> tuple[str, str]:
    """The system identifier of the cluster, and the timeline on which it writes. Raises psycopg.Error: progress that were noted
    without them would never fit the slot again."""
    system = replication.ask("IDENTIFY_SYSTEM")
    if system.status != pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(system)
    identifier, timeline = (system.get_value(0, i) or b"" for i in range(2))
    return identifier.decode(), timeline.decode()


def _confirmed(connection: Connection) -> str:
    """The column that has what was confirmed; before version 9.6 only where decoding begins can be seen, which lies before it."""
    return "confirmed_flush_lsn" if version(connection) >= CONFIRMED else "restart_lsn"


def maker(connection: Connection) -> str:
    """The column that has the process by which a slot is still being made; null if it is there, and before version 9.6."""
    return "CASE WHEN confirmed_flush_lsn IS NULL THEN active_pid END" if version(connection) >= CONFIRMED else "NULL::integer"


def _idle_bytes(connection: Connection, echoing: int) -> int:
    """How much WAL may pass before progress is noted for its own sake. With archive_timeout the least write fills a file of WAL:
    where so many nodes note such steps on each other, each must be worth more than the files it fills, else they never rest."""
    query = """\
    SELECT CASE unit WHEN 'B' THEN 1 ELSE 8192 END * setting::bigint FROM pg_settings
    WHERE name = 'wal_segment_size' AND EXISTS (SELECT 1 FROM pg_settings WHERE name = 'archive_timeout' AND setting <> '0')"""
    row = connection.execute(query).fetchone()
    return max(IDLE_BYTES, 2 * echoing * row[0]) if row else IDLE_BYTES


def _sender_timeout(connection: Connection) -> float:
    """The silence after which the server ends the stream, in seconds; infinite if never."""
    row = connection.execute("SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout'").fetchone()
    return row[0] / 1000 if row and row[0] else math.inf
