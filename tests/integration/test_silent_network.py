"""Servers whose connections stay open while nothing passes any more, as behind a load balancer or proxy that has died, or that was
restarted and knows nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pymysql
import pytest

from streamer import session, silence
from streamer.capture import replication, slot, slot_reader
from streamer.capture.snapshot import blocks
from streamer.errors import ConnectError
from streamer.node_config import Node
from streamer.session import Connection, connect, reported
from streamer.sinks import mysql_session
from tests.configs import make_config
from tests.integration.streams import running
from tests.mysql_servers import MysqlDatabase
from tests.proxy import Proxy
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

ALL = "SELECT id FROM t ORDER BY id"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence is long after a second."""
    monkeypatch.setattr(silence, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(silence, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(session, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(slot_reader, "LOOK_SECONDS", 0.5)
    monkeypatch.setitem(session._PATIENCE, "connect_timeout", 2)


@pytest.fixture
def tables(source15: Database, target18: Database) -> None:
    for database in (source15, target18):
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("end", "capture", "falls_silent"),
    [
        ("source", "pgoutput", Proxy.freeze),
        ("source", "trigger", Proxy.forget),
        ("target", "pgoutput", Proxy.forget),
    ],
)
def test_a_server_that_falls_silent_is_told_and_not_taken_for_idle(
    source15: Database, target18: Database, end: str, capture: str, falls_silent: Callable[[Proxy], None]
) -> None:
    """A silent source looked idle, for as long as it lasted, while its slot kept WAL; a silent target looked busy. And where a load
    balancer told the server nothing, that kept the lock of the edge, so that we waited for ourselves."""
    behind, node = (source15, "a") if end == "source" else (target18, "b")
    with Proxy(behind.server) as proxy:
        urls = {"a": source15.url, "b": target18.url} | {node: proxy.url(behind.name)}
        with running(make_config(urls, capture=capture)) as streams:
            falls_silent(proxy)
            source15.execute("INSERT INTO t VALUES (1)")
            if falls_silent is Proxy.freeze:
                wait_for(lambda: any(f'"{node}": no answer' in p for p in streams.problems), "the silence to be told")
                proxy.stop()
                proxy.thaw()
                proxy.start()
            wait_for_equal(lambda: target18.query(ALL), [(1,)], "the row to arrive")
            wait_for(lambda: not streams.problems, "the streams to be content")


def test_a_stream_that_falls_silent_while_other_sessions_are_answered_is_read_anew(
    source15: Database, target18: Database, tables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server had ended it for want of an answer, and nobody told us: it looked idle."""
    monkeypatch.setattr(replication, "ASK_SECONDS", 0.5)
    with Proxy(source15.server) as proxy, monkeypatch.context() as patch:

        def by_way_of(node: str, url: str, *, application: str, replication: bool = False) -> Connection:
            return connect(node, proxy.url("source") if replication else url, application=application, replication=replication)

        patch.setattr(slot, "connect", by_way_of)
        with running(make_config({"a": source15.url, "b": target18.url})) as streams:
            proxy.forget()
            source15.execute("INSERT INTO t VALUES (1)")
            wait_for_equal(lambda: target18.query(ALL), [(1,)], "the row to arrive")
            wait_for(lambda: not streams.problems, "the streams to be content")


def test_a_copy_that_falls_silent_is_broken_off(source15: Database) -> None:
    with Proxy(source15.server) as proxy, connect("a", proxy.url(source15.name), application="test") as connection:
        rows = blocks(connection, "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT")
        next(rows)
        proxy.forget()
        with pytest.raises(ConnectError, match="no answer for 1 s"), reported("a"):
            for _ in rows:
                pass


def test_a_server_that_is_at_work_for_long_is_waited_for(source15: Database) -> None:
    with connect("a", source15.url, application="test") as connection:
        assert connection.execute("SELECT 1 FROM pg_sleep(3)").fetchone() == (1,)


def test_a_mysql_server_that_falls_silent_is_told_and_gives_its_locks_back(mariadb: MysqlDatabase) -> None:
    with Proxy(mariadb.server) as proxy:
        address = Node(url=proxy.through(mariadb.url)).mysql
        silent = mysql_session.connect("m", address)
        assert silent.rows("SELECT GET_LOCK('test', 0)") == [(1,)]
        proxy.forget()
        with pytest.raises(pymysql.OperationalError, match="no answer for 1 s"):
            silent.rows("SELECT 1")
        with closing(mysql_session.connect("m", address)) as other:
            assert other.rows("SELECT GET_LOCK('test', 10)") == [(1,)]


def test_a_mysql_server_that_is_frozen_is_given_up_amid_the_handshake(
    mariadb: MysqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections, because the kernel does, and says nothing."""
    monkeypatch.setattr(mysql_session, "ANSWER_SECONDS", 1.0)
    with Proxy(mariadb.server) as proxy:
        proxy.freeze()
        with pytest.raises(ConnectError, match="timed out"):
            mysql_session.connect("m", Node(url=proxy.through(mariadb.url)).mysql)
