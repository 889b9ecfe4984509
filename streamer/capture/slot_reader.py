"""One open session of the slot capture: frames of the replication protocol go through the decoder and the assembler and come out
as pieces of transactions, at a pace that lets small ones come together.

The trap: a keepalive's position may only be taken as idle while no transaction is open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import psycopg

from streamer.capture.assemble import Assembler
from streamer.capture.named_keys import Decoder
from streamer.capture.release import Release
from streamer.capture.replication import Keepalive, ReplicationStream
from streamer.errors import HeldBackError
from streamer.model import LSN, Idle, Piece
from streamer.session import SilenceError

READ_LIMIT: Final = 1 << 20
"""Bytes decoded before the stream gets a turn: small enough that writers start early and the server is answered in time."""
ECHO_SECONDS: Final = 0.01
"""How long to let what comes gather while nothing comes but what streamer itself has written there: each such transaction by itself
would wake the server and us, at several times the cost."""
PACE_SECONDS: Final = 0.002
"""How long to let what comes gather from then on, for each transaction that has come, if they were few and small: one by one they
cost the servers and us several times as much. So one that comes alone does not wait, and from 500 a second on they come together
every 10 ms. Of a large one we and the server would each be woken for every row."""
PACE_AT_MOST: Final = 0.01
LOOKS_AMID: Final = 4
"""A transaction is not taken for a large one before so many looks have not brought its end: a small one may come in two parts."""
LITTLE: Final = 64 << 10
"""Bytes in memory that are a few small transactions. If more come, waiting long would keep the server waiting."""
LOOK_SECONDS: Final = 5.0
"""How often the source is asked whether the stream still carries every table, and from where on it keeps WAL for us."""


class SlotReader:
    """Implements ports.Reader on an open replication stream."""

    def __init__(
        self,
        stream: ReplicationStream,
        decoder: Decoder,
        assembler: Assembler,
        look: Callable[[], LSN | None],
        release: Release,
    ) -> None:
        self._stream = stream
        self._decoder = decoder
        self._assembler = assembler
        self._look = look
        self._release = release
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._seen = LSN(0)
        #: the last that was read, if nothing has followed it yet
        self._idle: Idle | None = None
        self._only_echo = False
        #: whether changes have come with the last look
        self._came = False
        #: looks in a row that have brought only a part of a transaction
        self._amid = 0
        #: until when to let more come
        self._pause_until = 0.0

    @property
    def obstacle(self) -> HeldBackError | None:
        """Why the server sends nothing for now, as far as it tells."""
        return self._stream.obstacle

    def read(self, timeout: float) -> list[Piece | Idle]:
        """Return what has come, waiting up to `timeout` seconds if nothing has."""
        if self._only_echo:
            time.sleep(ECHO_SECONDS)
        elif (pause := self._pause_until - time.monotonic()) > 0 and not self._stream.has_much:
            time.sleep(pause)
        items = self._decode()
        if not items:
            self._stream.wait(timeout)
            items = self._decode()
        if self._came:
            sizes = [item.size for item in items if isinstance(item, Piece)]
            self._amid = 0 if sizes else self._amid + 1
            if sizes or self._amid > LOOKS_AMID:
                few = len(sizes) if 0 < sum(sizes) < LITTLE else 1
                self._pause_until = time.monotonic() + min(few * PACE_SECONDS, PACE_AT_MOST)
        return self._releasing(items)

    def _releasing(self, items: list[Piece | Idle]) -> list[Piece | Idle]:
        """Have the targets note even a small step where that lets the server remove WAL."""
        last = items[-1] if items else self._idle
        self._idle = last if isinstance(last, Idle) else None
        if self._idle is None or not self._release.is_due(self._idle.position, self._stream.confirmed):
            return items
        return [*items[:-1], replace(self._idle, urgent=True)]

    def _decode(self) -> list[Piece | Idle]:
        items: list[Piece | Idle] = []
        assembler, passed = self._assembler, 0
        self._came = False
        decode, is_row, feed = self._decoder.decode, self._decoder.is_row, assembler.feed
        for frame in self._stream.frames(READ_LIMIT):
            if isinstance(frame, Keepalive):
                if not self._assembler.open:
                    items.append(Idle(frame.position, frame.reply, assembler.seen(frame.position)))
                continue
            self._came = True
            if assembler.passing and is_row(frame):
                passed += 1
            elif (piece := feed(decode(frame), len(frame))) is not None:
                items.append(piece)
        self._only_echo = passed > 0 and not any(isinstance(item, Piece) and item.changes for item in items)
        return items

    def confirm(self, position: LSN) -> None:
        """Tell the server what it may forget, and look now and then whether it still gives us everything."""
        self._stream.confirm(position)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._look_after_source()

    def _look_after_source(self) -> None:
        """A server that shuts down has ended ordinary sessions already, and waits for us to confirm all; if we cannot, leave."""
        moved, self._seen = self._stream.confirmed > self._seen, self._stream.confirmed
        try:
            self._release.kept_from = self._look()
        except SilenceError:
            raise
        except psycopg.OperationalError:
            if not moved:
                raise
