"""A slot that was made while transactions were under way: what PostgreSQL cannot decode from there, and the way on. And one that
waits for them still.

The trap is the server's: a slot that is read again from where it was made has seen no more than the end of a transaction that began
before. Where that one gave a table another file, a third that wrote into it, and is decoded, stops the stream.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import psycopg
import pytest

from streamer.admin import setup as verb
from streamer.admin.check import check
from streamer.admin.setup import setup
from streamer.admin.slots_advance import advance
from streamer.admin.teardown import teardown
from streamer.capture.assemble import Interest
from streamer.capture.slot import SlotSource
from streamer.config import Config
from streamer.errors import StreamerError, TakenError
from tests.configs import make_config
from tests.conftest import Pair
from tests.integration.streams import running
from tests.meanwhile import meanwhile
from tests.servers import Database, Row
from tests.waiting import wait_for, wait_for_equal

SLOT = "streamer_shop_a"
ALL = "SELECT id FROM t ORDER BY id"
WAITS_FOR = "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted AND transactionid = %s::text::xid"


def test_a_truncate_while_the_slot_was_made_is_told_with_a_way_on_that_works(source15: Database, target18: Database) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE t (id integer PRIMARY KEY)")
    config = make_config({"a": source15.url, "b": target18.url})
    first, second, third, last = (source15.connect() for _ in range(4))
    with first, second, third, last:
        xid = begin(first)
        with meanwhile(lambda stop: setup(config, None, lambda line: None)):
            waits = partial(source15.query, WAITS_FOR)
            wait_for(lambda: waits([xid]), "setup to wait for the first transaction")
            since = [begin(second), begin(third)]
            second.execute("TRUNCATE t")
            first.execute("COMMIT")
            # one after the other, in the order of the server's own list
            wait_for(lambda: any(waits([xid]) for xid in since), "setup to wait for those that began since")
            second.execute("COMMIT")
            begin(last)
            last.execute("INSERT INTO t VALUES (1)")
            third.execute("COMMIT")
        last.execute("COMMIT")
    with running(config, set_up=False, wait=False) as streams:
        told = streams.wait_for_problem("could not map file")
    assert "a TRUNCATE or rewrite that was committed while the slot was being made" in told
    assert advance(config, "a", SLOT, "now", confirm=lambda lines: True, say=lambda line: None)
    with running(config, set_up=False):
        source15.execute("INSERT INTO t VALUES (2)")
        wait_for_equal(lambda: target18.query(ALL), [(1,), (2,)], "what was copied, and what came after it")


def begin(connection: psycopg.Connection[Row]) -> int:
    """Begin a transaction that has an xid, and return that."""
    connection.execute("BEGIN")
    ((xid,),) = connection.execute("SELECT txid_current()").fetchall()
    return int(xid)


@contextmanager
def being_made(source: Database, target: Database) -> Iterator[tuple[Config, psycopg.Connection[Row]]]:
    """A setup whose slot waits for a transaction, which is given too."""
    source.execute("CREATE TABLE t (id integer PRIMARY KEY)")
    config = make_config({"a": source.url, "b": target.url})
    with source.connect() as other:
        other.execute("BEGIN; INSERT INTO t VALUES (1)")

        def make(stop: threading.Event) -> None:
            with suppress(StreamerError):  # somebody ends it
                setup(config, None, lambda line: None)

        with meanwhile(make):
            wait_for(lambda: source.query("SELECT 1 FROM pg_replication_slots WHERE restart_lsn IS NOT NULL"), "the slot")
            try:
                yield config, other
            finally:
                other.rollback()


def test_a_slot_that_is_not_made_yet_is_waited_for_and_not_taken_for_one_that_is(pair: Pair) -> None:
    said: list[str] = []
    with being_made(*pair) as (config, other):
        with meanwhile(lambda stop: setup(config, None, said.append)):
            wait_for(lambda: "waiting for it" in "".join(said), "the second setup to wait for the first one's slot")
            assert "kept slot" not in "".join(said)
            other.rollback()
        assert 'a: kept slot "streamer_shop_a"' in said


def test_a_slot_that_is_not_made_yet_is_told_of_and_goes_by_force(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "PATIENCE_SECONDS", 0)
    source, _ = pair
    with being_made(*pair) as (config, _):
        told = r'slot "streamer_shop_a" on "a" is still being made by process \d+.*pg_terminate_backend'
        with pytest.raises(TakenError, match=told):
            setup(config, None, lambda line: None)
        with pytest.raises(TakenError, match=told):
            SlotSource("a", config.nodes["a"], "shop", "streamer_shop_a", Interest(config.syncs["shop"].selects)).state()
        assert [f for f in check(config) if "is still being made" in f.reason]
        assert teardown(config, None, force=True, confirm=lambda lines: True, say=lambda line: None) == []
        assert source.query("SELECT 1 FROM pg_replication_slots") == []
