"""The MySQL and MariaDB sink: a connection for streaming, one for each load, the progress row first in every transaction.

A named lock of the server keeps a second daemon away from the edge, and the progress row is only ever moved from the position that
we wrote last. A transaction that the server has broken off for a deadlock, or that waited too long for a lock, is tried again.

The trap: a commit survives a crash of the server only with innodb_flush_log_at_trx_commit = 1 (and sync_binlog = 1, where there is
a binary log). We cannot set that for a session; `streamer check` warns.

https://dev.mysql.com/doc/refman/8.4/en/locking-functions.html
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC
from functools import partial
from typing import Final, Literal

import pymysql
from pymysql.constants import ER

from streamer.errors import ConnectError, SchemaError, StreamerError, TakenError, TargetError
from streamer.model import LSN, EdgeName, Group, Sharing, SlotIdentity, TableName
from streamer.node_config import MysqlAddress
from streamer.ports import CopyTable, Progress, RangeLoader, Start, Written
from streamer.post_data import Builder
from streamer.sinks.group_apply import Applier
from streamer.sinks.in_order import write_in_order
from streamer.sinks.mysql_apply import MysqlTables, quarantine_table, refusal
from streamer.sinks.mysql_bulk import Server
from streamer.sinks.mysql_ddl import Names
from streamer.sinks.mysql_load import load_table
from streamer.sinks.mysql_ranges import MysqlEngine
from streamer.sinks.mysql_session import RETRIED, Connection, Error, code_of, connect, failing, failure, is_lost
from streamer.sinks.mysql_table import inspect, read_target
from streamer.sinks.quarantine import OnError, Quarantine, stops
from streamer.sinks.ranges import Ranges
from streamer.sinks.unrepresentable import Replacements

LOCK_SECONDS: Final = 3
"""How long to wait for a lock that another session has: one that was killed keeps it until the server notices."""
TRIES: Final = 5
"""How often a transaction is tried that meets a deadlock or a lock."""

_EDGE: Final = "sync = %s AND source = %s AND target = %s"
_BEGIN_EDGE: Final = (
    "INSERT INTO streamer_progress (sync, source, target, system_identifier, `database`, slot, position, updated) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, UTC_TIMESTAMP(6))"
)
_FOLLOW: Final = f"UPDATE streamer_progress SET system_identifier = %s WHERE {_EDGE}"
_ADVANCE: Final = (
    "UPDATE streamer_progress SET position = %s, origin = %s, origin_position = %s, origin_time = %s, "
    f"updated = UTC_TIMESTAMP(6) WHERE {_EDGE} AND position = %s"
)
_RECORD_COPY: Final = (
    "REPLACE INTO streamer_copy (sync, source, target, schema_name, table_name, position, `rows`, copied_at) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, UTC_TIMESTAMP(6))"
)


class MysqlSink:
    """Implements ports.Sink for a MySQL or MariaDB database."""

    parallel_loads = True
    sharing = Sharing.ANY

    def __init__(
        self,
        edge: EdgeName,
        address: MysqlAddress,
        schemas: Literal["prefix", "database"] = "prefix",
        replacements: Replacements | None = None,
        on_error: OnError = stops,
    ) -> None:
        self._edge = edge
        self._where = (edge.sync, edge.source, edge.target)
        self._node = edge.target
        self._address = address
        self._names = Names(address.database, schemas)
        self._replacements = replacements or Replacements(edge)
        self._ranges = Ranges(edge, MysqlEngine(edge, self._names, self._transaction, self._record_copy), on_error)
        self._connection: Connection | None = None
        self._on_error = on_error
        self._tables: MysqlTables  # from open() on, as are the next
        self._applier: Applier
        self._quarantine: Quarantine
        #: what the progress row holds inside our transaction, and outside of it
        self._written = self._committed = LSN(0)
        self._in_transaction = False
        self._mark = 0
        #: of all our connections, so that `cancel` finds them
        self._threads: set[int] = set()
        self._guard = threading.Lock()

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self) -> Progress | None:
        """Connect, take the edge's lock, and return what the database holds of the edge."""
        self._connection = connection = self._connect()
        with self._errors():
            self._take_lock(connection)
            self._tables = MysqlTables(connection, Server.of(connection), self._node, self._names, self._replacements)
            self._applier = Applier(self._node, self._tables.of, connection.run, refusal, self._replacements)
            self._quarantine = Quarantine(self._edge, quarantine_table(self._edge, connection), self._on_error)
            progress = self._read_progress(connection)
        if progress is not None:
            self._written = self._committed = progress.position
        return progress

    def _connect(self) -> Connection:
        connection = connect(self._node, self._address)
        with self._guard:
            self._threads.add(connection.thread)
        return connection

    def _take_lock(self, connection: Connection) -> None:
        name = f"streamer {'.'.join((self._address.database, *self._where))}"
        key = hashlib.sha256(name.encode()).hexdigest()[:40]  # names have 64 characters at most
        if connection.rows("SELECT GET_LOCK(%s, %s)", (f"streamer {key}", LOCK_SECONDS)) != [(1,)]:
            ((holder,),) = connection.rows("SELECT IS_USED_LOCK(%s)", (f"streamer {key}",))
            raise TakenError(
                f'edge {self._edge}: another daemon writes it to "{self._node}" (connection {holder})',
                f"streamer takes over when it ends; to end it: KILL {holder}",
            )

    def _read_progress(self, connection: Connection) -> Progress | None:
        rows = connection.rows(
            f"SELECT system_identifier, `database`, slot, position FROM streamer_progress WHERE {_EDGE}", self._where
        )
        copied = connection.rows(f"SELECT schema_name, table_name, position FROM streamer_copy WHERE {_EDGE}", self._where)
        if not rows:
            return None
        ((system_identifier, database, slot, position),) = rows
        return Progress(
            SlotIdentity(system_identifier, database, slot),
            LSN.parse(position),
            {TableName(schema, name): LSN.parse(at) for schema, name, at in copied},
            ranges=self._ranges.read(connection),
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except pymysql.MySQLError as error:
            raise self._error(error) from error

    def _error(self, error: Error) -> StreamerError:
        """Return an error of the server, other than the refusal of a row, for people."""
        if code_of(error) == ER.NO_SUCH_TABLE and "streamer_" in str(error):
            return SchemaError(f'node "{self._node}" lacks the tables that streamer keeps there', "run: streamer setup")
        return failure(self._node, self._address, error)

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise ConnectError(f'node "{self._node}" is not connected')
        return self._connection

    # -- before streaming --------------------------------------------------------------------------------------------

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Insert the edge's progress row."""
        identity = (slot.system_identifier, slot.database, slot.slot)
        with self._errors():
            try:
                self._open.run(_BEGIN_EDGE, (*self._where, *identity, str(position)))
            except pymysql.IntegrityError:
                raise self._not_ours() from None
        self._written = self._committed = position

    def follow(self, slot: SlotIdentity) -> None:
        """Update the edge's progress row."""
        with self._errors():
            self._open.run(_FOLLOW, (slot.system_identifier, *self._where))

    def has(self, table: TableName) -> bool:
        """Return whether the database has this table."""
        with self._errors():
            return inspect(self._open, self._names, table) is not None

    def is_empty(self, table: TableName) -> bool:
        """Return whether the target's table has no rows."""
        with self._errors():
            read_target(self._open, self._node, self._names, table)
            return not self._open.rows(f"SELECT 1 FROM {self._names.sql(table)} LIMIT 1")

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy."""
        with self._errors():
            self._record_copy(self._open, table, position, None)

    def leave(self, table: TableName) -> None:
        """Forget the table."""
        with self._errors():
            where = f"{_EDGE} AND schema_name = %s AND table_name = %s"
            self._open.run(f"DELETE FROM streamer_copy WHERE {where}", (*self._where, table.schema, table.name))

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Write the rows, in one transaction on a connection of its own."""
        with self._transaction() as connection:
            target = read_target(connection, self._node, self._names, table.table)
            write = partial(load_table, connection, self._node, self._names, table, target, blocks, self._replacements)
            if start.within is not None:
                return self._ranges.load(connection, table, start.within, start.position, write)
            if start.replace:
                connection.run(f"DELETE FROM {self._names.sql(table.table)}")
            count = write()
            self._record_copy(connection, table.table, start.position, count)
        return count

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Hold a transaction on a connection of its own."""
        connection = self._connect()
        try:
            with failing(self._node, self._address):
                connection.run("START TRANSACTION")
                yield connection
                connection.run("COMMIT")
        finally:
            self._disconnect(connection)  # undoes what was not committed

    def _record_copy(self, connection: Connection, table: TableName, position: LSN, rows: int | None) -> None:
        connection.run(_RECORD_COPY, (*self._where, table.schema, table.name, str(position), rows))

    @property
    def ranges(self) -> RangeLoader:
        """What records tables that are copied in ranges."""
        return self._ranges

    @property
    def post_data(self) -> Builder | None:
        """Return None: keys come with the table, and other indexes are left to the user."""
        return None

    def progress_by_source(self) -> Mapping[str, Progress]:
        """Return the edge's own progress: one source only feeds such a target."""
        with self._errors():
            progress = self._read_progress(self._open)
        return {} if progress is None else {self._edge.source: progress}

    def try_lock(self, name: str) -> bool:
        """Return True: there is no other edge."""
        return True

    def unlock(self, name: str) -> None:
        """Do nothing."""

    # -- streaming ---------------------------------------------------------------------------------------------------

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Apply each group and its progress in one target transaction."""
        return write_in_order(groups, interrupted, self._write)

    def _write(self, group: Group) -> Written:
        tries = 1 if self._in_transaction else TRIES  # what came before would have to be written again
        while True:
            tries -= 1
            try:
                return self._write_once(group)
            except pymysql.MySQLError as error:
                self._roll_back(error)
                if not tries or code_of(error) not in RETRIED:
                    raise self._error(error) from error
            except BaseException:
                self._roll_back()
                raise

    def _write_once(self, group: Group) -> Written:
        connection = self._open
        if not self._in_transaction:
            connection.run("START TRANSACTION")
            self._in_transaction = True
            self._mark = self._replacements.mark()
        self._advance(connection, group)
        try:
            written = self._applier.apply(group, self._quarantine)
        except pymysql.MySQLError as error:
            self._tables.explain(error, {relation for _, relation, _, _ in group.changes})
            raise
        if not group.complete:
            return written
        connection.run("COMMIT")
        self._in_transaction = False
        self._committed = group.position
        return replace(written, replaced=self._replacements.take())

    def _roll_back(self, error: Error | None = None) -> None:
        if self._in_transaction:
            self._replacements.back_to(self._mark)
            self._quarantine.undone()
        self._in_transaction = False
        self._written = self._committed
        if error is None or not is_lost(error):
            with suppress(pymysql.MySQLError):  # the first error is the one to tell
                self._open.run("ROLLBACK")

    def _advance(self, connection: Connection, group: Group) -> None:
        """Move the progress row, from the position that we wrote last and no other."""
        origin = group.origin
        time = origin.commit_time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
        values = (str(group.position), origin.node, str(origin.position), time)
        if connection.run(_ADVANCE, (*values, *self._where, str(self._written))) != 1:
            raise self._not_ours()
        self._written = group.position

    def _not_ours(self) -> TargetError:
        return TargetError(
            f'edge {self._edge}: its progress on "{self._node}" is not where this daemon left it ({self._written})',
            "let one daemon only write this edge",
        )

    def durable(self) -> LSN:
        """Return the position of the last commit; commits are synchronous."""
        return self._committed

    def quarantined(self) -> int:
        """Return how many changes the database holds in quarantine."""
        with self._errors():
            return self._quarantine.held()

    # -- ending ------------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Have the server break off what our connections are doing."""
        with self._guard:
            threads = list(self._threads)
        with suppress(StreamerError, pymysql.MySQLError):
            connection = connect(self._node, self._address)
            try:
                for thread in threads:
                    with suppress(pymysql.MySQLError):
                        connection.run(f"KILL QUERY {thread}")
            finally:
                connection.close()

    def close(self) -> None:
        """Disconnect, undoing an open transaction."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._disconnect(connection)

    def _disconnect(self, connection: Connection) -> None:
        with self._guard:
            self._threads.discard(connection.thread)
        with suppress(pymysql.MySQLError):
            connection.close()
