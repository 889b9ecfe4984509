"""Sources whose connection is lost just when they are asked: libpq gives an error where an answer should be, which is no answer.

Here the session is ended on the server between its beginning and the question.
"""

from __future__ import annotations

import psycopg
import pytest

from streamer.admin.setup import setup
from streamer.admin.teardown import teardown
from streamer.capture import slot, snapshot
from streamer.capture.assemble import Interest
from streamer.capture.replication import timeline_switches
from streamer.capture.slot import SlotSource
from streamer.config import Config
from streamer.errors import ConnectError
from streamer.session import Connection, connect
from tests.configs import make_config
from tests.servers import Database
from tests.waiting import wait_for


@pytest.fixture
def config(source18: Database, target15: Database) -> Config:
    source18.execute("CREATE TABLE t (id int PRIMARY KEY)")
    made = make_config({"a": source18.url, "b": target15.url})
    setup(made, None, lambda line: None)
    return made


@pytest.fixture
def walsenders_end(source18: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replication connections of the capture end as soon as they are there."""

    def lost(node: str, url: str, *, application: str, replication: bool = False) -> Connection:
        connection = connect(node, url, application=application, replication=replication)
        if replication:
            _end(source18, connection)
        return connection

    for module in (slot, snapshot):
        monkeypatch.setattr(module, "connect", lost)


def _end(database: Database, connection: Connection) -> None:
    pid = connection.pgconn.backend_pid
    database.execute("SELECT pg_terminate_backend(%s)", [pid])
    there = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
    wait_for(lambda: not database.query(there, [pid]), "the session to end")


@pytest.mark.usefixtures("walsenders_end")
def test_a_source_that_does_not_say_who_it_is_is_not_taken_for_another_cluster(config: Config) -> None:
    """The edge failed until a person acted; or, if it was its first time, noted a nameless cluster and failed ever after."""
    source = SlotSource("a", config.nodes["a"], "shop", "streamer_shop_a", Interest(config.syncs["shop"].selects))

    with pytest.raises(ConnectError, match='node "a"'):
        source.state()


@pytest.mark.usefixtures("walsenders_end")
def test_a_snapshot_whose_connection_is_lost_is_tried_again(config: Config) -> None:
    source = SlotSource("a", config.nodes["a"], "shop", "streamer_shop_a", Interest(config.syncs["shop"].selects))

    with pytest.raises(ConnectError, match='node "a"'), source.snapshot():
        pass


def test_a_source_that_does_not_tell_its_timelines_is_not_taken_for_one_that_has_forgotten_them(source18: Database) -> None:
    """Whether a promoted standby has all that the target holds would not be looked at then."""
    with connect("a", source18.url, application="test", replication=True) as connection:
        assert timeline_switches(connection, 2) == {}  # the server has no such file
        _end(source18, connection)
        with pytest.raises(psycopg.OperationalError):
            timeline_switches(connection, 2)


def test_the_slot_of_a_broken_copy_is_given_back_where_no_slot_is_temporary(
    source18: Database, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server before version 10 kept it, and WAL for it, until its disk was full."""
    monkeypatch.setattr(snapshot, "TEMPORARY_SLOTS", 1_000_000)
    source = SlotSource("a", config.nodes["a"], "shop", "streamer_shop_a", Interest(config.syncs["shop"].selects))

    def break_off() -> None:
        with source.snapshot():
            newest = "SELECT pid FROM pg_stat_activity WHERE application_name = 'streamer snapshot' ORDER BY backend_start DESC"
            (pid,) = source18.query(newest)[0]
            source18.execute("SELECT pg_terminate_backend(%s)", [pid])
            wait_for(lambda: not source18.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]), "the session to end")

    def slots() -> list[str]:
        return [name for (name,) in source18.query("SELECT slot_name FROM pg_replication_slots ORDER BY 1")]

    with source.snapshot():
        (in_use,) = set(slots()) - {"streamer_shop_a"}
        break_off()
        assert len(slots()) == 3
        source.state()
        assert slots() == [in_use, "streamer_shop_a"]
    break_off()
    assert len(slots()) == 2
    assert teardown(config, None, force=False, confirm=lambda lines: True, say=lambda line: None) == []
    assert slots() == []
