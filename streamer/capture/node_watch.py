"""Looks at a source's slots and deltas again and again, over one connection that is made anew after a failure."""

from __future__ import annotations

from typing import Final

import psycopg

from streamer.capture.delta_list import Captured, read_deltas
from streamer.capture.slot_list import Streams, drop_slot, read_slots
from streamer.errors import SourceError, StreamerError
from streamer.report import DeltaReport, SlotReport
from streamer.session import Connection, connect, connect_error, reason_of

_APPLICATION: Final = "streamer slots"


class NodeWatch:
    """Implements slot_monitor.Watch for the streams that read one node: `slots` by their slots, `captured` by triggers."""

    def __init__(self, node: str, url: str, slots: Streams, captured: Captured) -> None:
        self.node = node
        self._url = url
        self._slots = slots
        self._captured = captured
        self._connection: Connection | None = None

    def read(self) -> list[SlotReport]:
        """Return the cluster's logical slots. Raises ConnectError, SourceError."""
        try:
            return read_slots(self._connected(), self.node, self._slots)
        except psycopg.Error as error:
            raise self._failed(error) from error

    def read_deltas(self) -> list[DeltaReport]:
        """Return what triggers have captured and our streams still need. Raises ConnectError, SourceError."""
        try:
            return read_deltas(self._connected(), self.node, self._captured)
        except psycopg.Error as error:
            raise self._failed(error) from error

    def drop(self, slot: str) -> None:
        """Drop a slot and end its reader. Raises ConnectError, SourceError."""
        try:
            drop_slot(self._connected(), slot)
        except psycopg.Error as error:
            raise self._failed(error) from error

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self.node, self._url, application=_APPLICATION)
        return self._connection

    def _failed(self, error: psycopg.Error) -> StreamerError:
        connection = self._connection
        if connection is None or connection.broken or error.sqlstate is None:
            self.close()
            return connect_error(self.node, error)
        return SourceError(f'node "{self.node}": {reason_of(error)}', error.diag.message_hint or "")

    def close(self) -> None:
        """Disconnect; the next look connects again. Never raises."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
