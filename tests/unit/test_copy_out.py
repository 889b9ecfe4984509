"""What a server sends for a COPY, as pieces of any size: rows come out whole, and what is not theirs is left to libpq."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from select import poll
from types import SimpleNamespace
from typing import cast

import pytest

from streamer.capture import copy_out
from streamer.capture.copy_out import BLOCK, CopyOut, cut
from streamer.session import Connection

SEED = 20261122
BEGIN, NOTICE, SETTING, END = ((kind, b"\0\0") for kind in (b"H", b"N", b"S", b"c"))
ERROR = (b"E", b"SERROR\0\0")


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content) + 4) + content


def row(content: bytes) -> tuple[bytes, bytes]:
    return b"d", content + b"\n"


@contextmanager
def answered(
    *messages: tuple[bytes, bytes], pieces: random.Random | None = None, lost: int = 0
) -> Iterator[tuple[CopyOut, socket.socket]]:
    """Who reads such an answer, and the socket it comes by; it ends `lost` bytes before it should, if at all."""
    ours, theirs = socket.socketpair()
    data = b"".join(message(*parts) for parts in messages)

    def send() -> None:
        rest = data[: len(data) - lost]
        while rest:
            size = pieces.choice((1, 3, 7, 100, 10_000)) if pieces else len(rest)
            theirs.sendall(rest[:size])
            rest = rest[size:]
        if lost:
            theirs.close()

    def wait(events: int) -> int:
        looks = poll()
        looks.register(ours, events)
        return looks.poll()[0][1]

    sender = threading.Thread(target=send)
    sender.start()
    with ours, theirs:
        connection = SimpleNamespace(pgconn=SimpleNamespace(socket=ours.fileno()), poll=wait)
        yield CopyOut(cast("Connection", connection)), ours
        sender.join()


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
def test_rows_come_out_as_they_were_sent_whatever_the_pieces_and_what_comes_between(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(copy_out, "PACE_SECONDS", 0.0)
    rows = [row(b"%d" % n * chance.choice((0, 1, 10, 500))) for n in range(chance.randrange(300))]
    others = [chance.choice((NOTICE, SETTING)) for _ in range(5)]
    sent = [*rows]
    for other in others:
        sent.insert(chance.randrange(len(sent) + 1), other)
    with answered(BEGIN, *sent, END, pieces=chance) as (out, rest):
        blocks = list(out.blocks())
        assert b"".join(blocks) == b"".join(content for _, content in rows), f"seed {seed}"
        assert all(block.endswith(b"\n") for block in blocks)
        assert rest.recv(100, socket.MSG_PEEK)[:1] == b"c"


def test_blocks_hold_many_rows_and_rows_may_be_longer_than_a_block() -> None:
    rows = [row(b"x" * 100)] * 10_000 + [row(b"y" * 3 * BLOCK)] * 3 + [row(b"z")]
    with answered(BEGIN, *rows, END) as (out, _):
        sizes = [len(block) for block in out.blocks()]
    assert sum(sizes) == sum(len(content) for _, content in rows)
    assert len(sizes) < 100
    assert max(sizes) < 5 * BLOCK


def test_an_error_amid_the_rows_is_left_to_libpq() -> None:
    with answered(BEGIN, row(b"1"), ERROR) as (out, rest):
        assert list(out.blocks()) == [b"1\n"]
        assert rest.recv(1) == b"E"


@pytest.mark.parametrize("first", [b"\x17\x03\x03", b"\0\0\x01", b"E\0\0"], ids=["TLS", "GSSAPI", "refused"])
def test_what_does_not_begin_like_a_copy_is_left_to_libpq_untouched(first: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(first)
        connection = SimpleNamespace(pgconn=SimpleNamespace(socket=ours.fileno()), poll=lambda _: 1)
        assert list(CopyOut(cast("Connection", connection)).blocks()) == []
        assert ours.recv(10) == first


@pytest.mark.parametrize("lost", [1, 3, 8, 11])
def test_a_row_of_which_a_part_is_missing_when_the_connection_ends_is_not_told(lost: int) -> None:
    with answered(BEGIN, row(b"1"), row(b"23456"), lost=lost) as (out, _):
        assert b"".join(out.blocks()) == b"1\n"


def test_a_look_that_finds_nothing_yet_is_not_taken_for_the_end() -> None:
    """libpq passes over rows that it is left with."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    looks: list[int] = []

    def too_early(events: int) -> int:
        looks.append(events)
        if len(looks) == 3:
            theirs.sendall(message(*BEGIN) + message(*row(b"1")))
        if len(looks) == 7:
            theirs.sendall(message(*END))
        return events

    with ours, theirs:
        connection = SimpleNamespace(pgconn=SimpleNamespace(socket=ours.fileno()), poll=too_early)
        out = CopyOut(cast("Connection", connection))
        assert (b"".join(out.blocks()), out.rows) == (b"1\n", 1)


def test_what_is_cut_off_waits_for_its_rest() -> None:
    rows: list[bytes] = []
    data = message(*row(b"1")) + message(*row(b"2"))
    assert cut(data[:-1], rows) == len(message(*row(b"1")))
    assert rows == [b"1\n"]
    assert cut(b"d\0\0", rows) == 0
    assert cut(b"", rows) == 0
