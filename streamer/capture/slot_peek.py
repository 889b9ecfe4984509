"""Looking into a slot without consuming anything: what is read is a temporary copy of it, which ends with the session.

The copy belongs to the walsender session that reads it, so the decoding is the same as in earnest, and lazy: a huge first
transaction is not waited for. Copies of slots exist since version 12.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import psycopg

from streamer.capture.diagnose import Diagnosis
from streamer.capture.replication import Keepalive, ReplicationStream
from streamer.capture.slot import SlotSource
from streamer.errors import SourceError
from streamer.model import LSN
from streamer.session import Connection, connect, version

COPIES: Final = 120000
OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "test_decoding": {"include-timestamp": "on"},
    "wal2json": {"format-version": "2"},
}
"""Plugins that give text, with what makes them say most."""
APPLICATION: Final = "streamer peek"


def require_copies(connection: Connection, node: str) -> None:
    """Raise SourceError on a server that cannot copy slots."""
    if version(connection) < COPIES:
        raise SourceError(
            f'node "{node}" is PostgreSQL {_name(version(connection))}, which cannot copy a slot (12 and later can), and without a '
            "copy looking would consume",
            "look at the tables instead, or at what the targets lack: streamer status",
        )


def end_of_wal(connection: Connection) -> LSN:
    """Return where the server's WAL ends, flushed; on servers that can copy slots."""
    row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    return LSN.parse(row[0] if row else "0/0")


def _name(server: int) -> str:
    return str(server // 10000) if server >= 100000 else f"{server // 10000}.{server // 100 % 100}"


@contextmanager
def copied(connection: Connection, slot: str, diagnosis: Diagnosis) -> Iterator[str]:
    """Copy a slot within the session of `connection`, a walsender's too, and give the copy's name. Raises StreamerError."""
    name = f"streamer_peek_{os.getpid()}_{connection.info.backend_pid}"
    try:
        connection.execute(f"SELECT pg_copy_logical_replication_slot('{slot}', '{name}', true)".encode())
    except psycopg.Error as error:
        raise diagnosis(str(error)) from None
    yield name


class PeekSource(SlotSource):
    """A stream's source that reads a copy of its slot."""

    def _numbers_are_strings(self, connection: Connection, slot: str) -> bool:
        with copied(connection, slot, self._diagnosis) as copy:
            try:
                return super()._numbers_are_strings(connection, copy)
            finally:  # after an error the server has dropped it already
                query = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s"
                connection.execute(query, [copy])

    def _start_replication(self, position: LSN, options: Mapping[str, str]) -> ReplicationStream:
        return start_on_copy(self._node, self._url, self._slot, position, options, self._diagnosis)


def start_on_copy(
    node: str, url: str, slot: str, position: LSN, options: Mapping[str, str], diagnosis: Diagnosis
) -> ReplicationStream:
    """Return an open stream of a copy of the slot, as its plugin gives it. Raises StreamerError."""
    replication = connect(node, url, application=APPLICATION, replication=True)
    try:
        with copied(replication, slot, diagnosis) as copy:
            return ReplicationStream(replication, copy, position, options, diagnosis)
    except BaseException:
        replication.close()
        raise


def texts(stream: ReplicationStream, end: LSN, timeout: float) -> Iterator[str]:
    """Give what a plugin says in text, until all that was committed before `end` has come."""
    while True:
        for frame in stream.frames(1 << 16):
            if isinstance(frame, Keepalive):
                if frame.position >= end:
                    return
            else:
                yield frame.decode(errors="replace")
        stream.confirm(LSN(0))
        stream.wait(timeout)
