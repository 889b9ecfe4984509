"""The rows of a COPY TO STDOUT, taken from the socket in blocks: libpq tells rows from each other one by one, at thrice the cost.

The server sends each row as a message of its own. What has come is looked at while it stays where it is (MSG_PEEK), and only whole
rows are taken. So libpq finds what follows them, and takes the statement for one without rows: how it ended is libpq's to tell.

The traps: an encrypted connection must go through libpq; its first bytes do not look like the beginning of a COPY. Rows may be
longer than what a socket holds. And other messages may come between them, like a warning, or a setting that has changed.

https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

from streamer.copytext import Block
from streamer.session import Connection

BLOCK: Final = 256 * 1024
"""Bytes looked at, and handed on, at once."""
LITTLE: Final = 64 * 1024
PACE_SECONDS: Final = 0.001
"""How long to let rows gather where so little has come: the server sends 8 kB at a time, and each look costs more than that."""
_BEGIN, _END, _ERROR = b"H", b"c", b"E"  # CopyOutResponse, CopyDone, ErrorResponse
_ROW: Final = 0x64
"""CopyData: `d`."""
_HEADER: Final = 5
"""Bytes of a message's type, and of its length, which counts itself."""


class CopyOut:
    """What comes for a COPY TO STDOUT whose query was just sent over the connection. Used once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: how many have come
        self.rows = 0
        self._taken = bytearray(BLOCK)

    def blocks(self) -> Iterator[bytes]:
        """Give the rows, in blocks of whole ones; none if they must be taken by libpq, as the rest of the answer must anyway.

        Raises psycopg.OperationalError if the connection was given up.
        """
        with socket.socket(fileno=os.dup(self._connection.pgconn.socket)) as plain:
            if self._peek(plain, _HEADER)[:1] == _BEGIN:
                self._message(plain)
                yield from self._rows(plain)

    def _rows(self, plain: socket.socket) -> Iterator[bytes]:
        rows: list[bytes] = []
        size, came = 0, LITTLE
        while True:
            if came < LITTLE:
                time.sleep(PACE_SECONDS)
            data = self._peek(plain, BLOCK)
            came = len(data)
            taken = cut(data, rows)
            ended = not data or data[taken : taken + 1] in (_END, _ERROR)
            if taken:
                plain.recv_into(self._taken, taken)
                size += taken
            elif not ended:
                kind, message = self._message(plain)
                if kind == _ROW:
                    rows.append(message)
                    size += len(message)
            if rows and (ended or size >= BLOCK):
                self.rows += len(rows)
                yield Block.of(rows)
                rows.clear()
                size = 0
            if ended:
                return

    def _peek(self, plain: socket.socket, size: int) -> bytes:
        """What has come, without taking it; empty if the connection has ended, which is libpq's to tell."""
        while True:
            self._connection.poll(select.POLLIN)
            try:
                return plain.recv(size, socket.MSG_PEEK)
            except BlockingIOError:  # it may have looked so: libpq must not be left with rows, which it would pass over
                continue
            except OSError:
                return b""

    def _message(self, plain: socket.socket) -> tuple[int, bytes]:
        """Take a message, waiting until it is whole; return its type and what it says, or zero if the connection ends before."""
        header = self._take(plain, _HEADER)
        size = int.from_bytes(header[1:], "big") - _HEADER + 1
        message = self._take(plain, size)
        return (header[0], message) if len(message) == size else (0, b"")

    def _take(self, plain: socket.socket, size: int) -> bytes:
        """Take so many bytes; fewer if the connection ends."""
        parts: list[bytes] = []
        while size and self._peek(plain, 1):
            parts.append(plain.recv(min(size, BLOCK)))
            size -= len(parts[-1])
        return b"".join(parts)


def cut(data: bytes, rows: list[bytes]) -> int:
    """Add the whole rows at the beginning of the data; return how many bytes they have as messages."""
    view, at, end = data, 0, len(data)  # in C a pointer, of which a part is made at half the cost
    while at + _HEADER <= end and view[at] == _ROW:
        after = at + 1 + (view[at + 1] << 24 | view[at + 2] << 16 | view[at + 3] << 8 | view[at + 4])
        if after > end:
            break
        rows.append(view[at + _HEADER : after])
        at = after
    return at
