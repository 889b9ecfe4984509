"""The session over which the sequences of a node are read or set: one for an edge's life, made when it is first needed.

https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-STATEMENT-TIMEOUT
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from streamer.session import Connection, connect, reported

STATEMENT_TIMEOUT: Final = "SET statement_timeout = '5s'"
"""Rows wait meanwhile, and whoever has locked a sequence may be waiting for the rows."""


class SequenceSession:
    """What both ends of a sequence have in common, on the node named `node`."""

    def __init__(self, node: str, url: str) -> None:
        self._node = node
        self._url = url
        self._connection: Connection | None = None

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The connection, made now if there is none. Raises ConnectError, also for what is asked over it."""
        with reported(self._node):
            if self._connection is None:
                self._connection = connect(self._node, self._url, application="streamer sequences")
                self._connection.execute(STATEMENT_TIMEOUT)
            yield self._connection

    def close(self) -> None:
        """Disconnect; the next question connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
