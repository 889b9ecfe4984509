"""A standby that takes the source's place and lacks the last batches: what targets hold more than it is told, never passed over.

It is played by undoing what a server would lack that got no more than a part of the WAL.
"""

from __future__ import annotations

import pytest

from streamer.capture.assemble import Interest
from streamer.capture.batches import LEAP, position_of
from streamer.capture.trigger_source import TriggerSource
from streamer.config import slot_name
from streamer.errors import SlotError
from streamer.model import LSN
from tests.integration.delta_readers import captured, place, reading
from tests.servers import Database


@pytest.fixture(params=[False, True], ids=["as a whole", "by transaction"])
def source(request: pytest.FixtureRequest, trigger_source: Database) -> TriggerSource:
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    config, _ = captured(trigger_source)
    interest = Interest(config.syncs["shop"].selects, by_transaction=request.param)
    return TriggerSource("a", trigger_source.url, "shop", slot_name("shop", "a"), interest)


def promote(database: Database, number: int) -> None:
    """Let the server be another one, which has no batch behind this number, and none of its rows."""
    database.execute("DELETE FROM t WHERE n = 'lost'; DELETE FROM streamer.delta; DELETE FROM streamer.delta_batch")
    database.execute(
        "INSERT INTO streamer.delta_batch (stream, number, snapshot, base) "
        "SELECT stream, %s, txid_current_snapshot(), 0 FROM streamer.delta_reader",
        [number],
    )
    database.execute("UPDATE streamer.delta_reader SET number = %s, server = '2026-01-01'", [number])


def test_numbers_of_lost_batches_are_not_given_again(source: TriggerSource, trigger_source: Database) -> None:
    start = place(source)
    trigger_source.execute("INSERT INTO t VALUES (1, 'lost')")
    with reading(source, start) as batches:
        ahead = batches.next().end
    assert ahead == position_of(2)
    promote(trigger_source, 1)
    trigger_source.execute("INSERT INTO t VALUES (2, 'new')")
    with reading(source, start) as batches:
        batch = batches.next()
    assert batch.told() == [("insert", "t", ("2", "new"))]
    assert batch.end == position_of(1 + LEAP)
    trigger_source.execute("INSERT INTO t VALUES (3, 'newer')")
    with reading(source, place(source, batch.end)) as batches:
        assert batches.next().end == position_of(2 + LEAP)
    for lost in (ahead, LSN(ahead + 1)):
        with reading(source, place(source, lost)) as batches, pytest.raises(SlotError, match="is gone"):
            batches.next()


def test_who_stands_amid_a_lost_batch_is_refused(trigger_source: Database) -> None:
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    config, _ = captured(trigger_source)
    interest = Interest(config.syncs["shop"].selects, by_transaction=True)
    source = TriggerSource("a", trigger_source.url, "shop", slot_name("shop", "a"), interest)
    start = place(source)
    for n in (1, 2):
        trigger_source.execute("INSERT INTO t VALUES (%s, 'lost')", [n])
    with reading(source, start) as batches:
        amid = batches.next().end
    assert amid == start.position + 1
    promote(trigger_source, 1)
    trigger_source.execute("INSERT INTO t VALUES (3, 'new'), (4, 'new')")
    with reading(source, place(source, amid)) as batches, pytest.raises(SlotError, match="is gone"):
        batches.next()


def test_a_server_that_was_only_restarted_is_read_on(source: TriggerSource, trigger_source: Database) -> None:
    trigger_source.execute("INSERT INTO t VALUES (1, 'a')")
    with reading(source, place(source)) as batches:
        end = batches.next().end
    trigger_source.server.restart("immediate")
    trigger_source.execute("INSERT INTO t VALUES (2, 'b')")
    with reading(source, place(source, end)) as batches:
        assert batches.next().told() == [("insert", "t", ("2", "b"))]
        trigger_source.execute("INSERT INTO t VALUES (3, 'c')")
        assert batches.next().end == position_of(end // position_of(1) + LEAP + 1)
