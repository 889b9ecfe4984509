"""Files and standard output as targets: every change once and in order through kills and rotation; in a pipe at least once."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamer.sinks.jsonl_progress import read
from tests.acceptance.daemon import Streamer
from tests.acceptance.pgbench import fill_with_pgbench, pgbench
from tests.events import Event, Row, Tables, events, files, transactions
from tests.meanwhile import meanwhile
from tests.proxy import Proxy
from tests.servers import Database
from tests.waiting import wait_for

COLUMNS = {
    "pgbench_accounts": "aid, bid, abalance",
    "pgbench_branches": "bid, bbalance",
    "pgbench_history": "tid, bid, aid, delta, mtime, id",
    "pgbench_tellers": "tid, bid, tbalance",
    "counter": "id, n",
}


def in_source(source: Database, table: str) -> list[Row]:
    """The rows of a table, as PostgreSQL writes them."""
    names = COLUMNS[table].split(", ")
    query = f"SELECT {', '.join(f'{name}::text' for name in names)} FROM {table} ORDER BY {names[-1]}::text, 1"
    return by_values([dict(zip(names, row, strict=True)) for row in source.query(query)])


def by_values(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: [(value is not None, value or "") for value in row.values()])


def in_files(tables: Tables, table: str) -> list[Row]:
    """The rows that a consumer of the files has."""
    names = COLUMNS[table].split(", ")
    return by_values([{name: row[name] for name in names} for row in tables.rows("public", table)])


def whole(path: Path) -> bool:
    """Whether the newest file ends with a transaction's last event."""
    *_, last = files(path)[-1].read_bytes().splitlines(keepends=True) or [b""]
    return last.endswith(b"\n") and bool(json.loads(last)["transaction"]["last"])


def counts(found: Iterator[Event]) -> list[int]:
    """What the counter was set to, in order."""
    return [int(e["new"]["n"]) for e in found if e["relation"]["table"] == "counter" and e["kind"] == "update"]


@contextmanager
def counting(source: Database) -> Iterator[None]:
    """One session sets the counter to 1, 2, 3 …, each in a transaction of its own, while the context lasts."""

    def count(stop: threading.Event) -> None:
        with source.connect() as connection:
            number = 0
            while not stop.wait(0.002):
                number += 1
                connection.execute("UPDATE counter SET n = %s", [number])

    with meanwhile(count):
        yield


def wait_until_all_is_there(source: Database, path: Path) -> None:
    """Wait for a last transaction, where nobody else writes any more."""
    ((end,),) = source.query("UPDATE counter SET n = n + 1 RETURNING n")
    mark = f'"n":"{end}"}},"unchanged":[]}}\n'.encode()
    wait_for(lambda: files(path)[-1].read_bytes().endswith(mark), "the last count", deadline=60)


def events_whole(path: Path) -> Iterator[Event]:
    """The events of whole transactions, while somebody writes: the last line may be torn."""
    lines = [line for file in files(path) for line in file.read_text(encoding="utf-8").splitlines(keepends=True)]
    for transaction in transactions(json.loads(line) for line in lines if line.endswith("\n")):
        yield from transaction


def test_a_daemon_killed_at_random_moments_writes_every_change_once_and_in_order(tmp_path: Path, source15: Database) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    fill_with_pgbench(source15)
    source15.execute("CREATE TABLE counter (id int PRIMARY KEY, n bigint); INSERT INTO counter VALUES (1, 0)")
    path = tmp_path / "shop.jsonl"
    nodes, options = {"a": source15.url, "log": f"jsonl:///{path}"}, {"log": {"rotate_mb": 1}}
    with Streamer(tmp_path, nodes, targets=["log"], options=options).setup().start_streaming() as streamer:
        streamer.kill()
        with pgbench(source15, "-R", "300"), counting(source15):
            for _ in range(20):
                streamer.start()
                time.sleep(dice.uniform(0.3, 1.2))  # the random moment
                streamer.kill()
        streamer.start()
        wait_until_all_is_there(source15, path)
        tables = Tables(events(path))
        for table in COLUMNS:
            assert in_files(tables, table) == in_source(source15, table), table
        numbers = counts(events(path))
        assert numbers == list(range(1, len(numbers) + 1))
        ids = [e["new"]["id"] for e in events(path) if e["relation"]["table"] == "pgbench_history" and e["new"]]
        assert len(ids) == len(set(ids)) == source15.query("SELECT count(*) FROM pgbench_history")[0][0]
        found = files(path)
        assert len(found) > 3
        assert [file.name for file in found[1:]] == [f"shop.jsonl.{n:06}" for n in range(1, len(found))]
        assert streamer.stop() == 0
    assert list(transactions(events(path)))[-1][-1]["transaction"]["last"]


def test_a_daemon_killed_amid_a_copy_and_a_huge_transaction_leaves_no_half_of_either(tmp_path: Path, source15: Database) -> None:
    source15.execute("CREATE TABLE counter (id int PRIMARY KEY, n bigint)")
    source15.execute("INSERT INTO counter SELECT i, 0 FROM generate_series(1, 100000) i")
    path = tmp_path / "shop.jsonl"
    with Proxy(source15.server) as proxy:
        nodes = {"a": proxy.url("source"), "log": f"jsonl:///{path}"}
        with Streamer(tmp_path, nodes, targets=["log"], options={"log": {"rotate_mb": 1}}).setup().start() as streamer:
            wait_for(lambda: path.exists() and path.stat().st_size > 1_000_000, "the copy to be under way")
            proxy.freeze()
            streamer.kill()
            assert not whole(path)
            proxy.thaw()
            streamer.start_streaming()
            wait_for(lambda: whole(path), "the copy to be whole")
            assert len(list(events(path))) == 100_000
            source15.execute("UPDATE counter SET n = 1")
            wait_for(lambda: len(files(path)) == 2 and files(path)[-1].stat().st_size > 1_000_000, "a part of the transaction")
            streamer.kill()
            assert not whole(path)
            streamer.start_streaming()
            wait_for(lambda: len(files(path)) == 2 and whole(path), "the transaction to be whole")
            assert streamer.stop() == 0
    assert len(list(events(path))) == 200_000
    assert in_files(Tables(events(path)), "counter") == in_source(source15, "counter")


def test_a_row_is_told_with_its_key_its_old_values_and_what_stayed_out_of_line(tmp_path: Path, source15: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, v text, wide text)")
    source15.execute("ALTER TABLE t ALTER wide SET STORAGE EXTERNAL")
    source15.execute("INSERT INTO t VALUES (1, 'before', repeat('x', 10000))")
    path = tmp_path / "shop.jsonl"
    with Streamer(tmp_path, {"a": source15.url, "log": f"jsonl:///{path}"}, targets=["log"]).setup().start_streaming() as streamer:
        with source15.connect() as connection, connection.transaction():
            connection.execute("UPDATE t SET v = 'ünï'")
            connection.execute("UPDATE t SET id = 2")
            connection.execute("DELETE FROM t")
        source15.execute("TRUNCATE t")
        wait_for(lambda: len(list(transactions(events_whole(path)))) == 3, "all events")
        assert streamer.stop() == 0
    read_row, update, move, delete, truncate = events(path)
    wide = "x" * 10000
    assert (read_row["kind"], read_row["key"], read_row["new"]) == ("read", {"id": "1"}, {"id": "1", "v": "before", "wide": wide})
    assert (update["new"], update["unchanged"], update["old"]) == ({"id": "1", "v": "ünï"}, ["wide"], None)
    assert (move["key"], move["old"], move["new"]["id"]) == ({"id": "1"}, {"id": "1"}, "2")
    assert (delete["key"], delete["old"], delete["new"]) == ({"id": "2"}, {"id": "2"}, None)
    assert (truncate["kind"], truncate["relation"]) == ("truncate", {"schema": "public", "table": "t"})
    assert [e["transaction"]["sequence"] for e in (update, move, delete, truncate)] == [1, 2, 3, 1]
    assert update["position"] == delete["position"] == update["origin"]["position"] < truncate["position"]
    assert {e["origin"]["node"] for e in events(path)} == {"a"}


def test_what_arrives_from_another_node_keeps_its_origin(tmp_path: Path, source15: Database, target18: Database) -> None:
    path = tmp_path / "shop.jsonl"
    for database in (source15, target18):
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    sources = {"a": source15.url, "b": target18.url}
    nodes = {**sources, "log": f"jsonl:///{path}"}
    with Streamer(tmp_path, nodes, sources=["a", "b"], targets=["log"]) as streamer:
        streamer.setup().start_streaming()
        source15.execute("INSERT INTO t VALUES (1)")
        target18.execute("INSERT INTO t VALUES (2)")
        wait_for(lambda: len(list(transactions(events_whole(path)))) == 2, "both events")
        assert streamer.stop() == 0
    found = {event["new"]["id"]: event for event in events(path)}
    assert {id: (event["source"], event["origin"]["node"]) for id, event in found.items()} == {"1": ("a", "a"), "2": ("a", "b")}
    assert found["2"]["position"] != found["2"]["origin"]["position"]


# -- standard output ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def piped(tmp_path: Path, source15: Database) -> Iterator[Streamer]:
    source15.execute("CREATE TABLE counter (id int PRIMARY KEY, n bigint); INSERT INTO counter VALUES (1, 0)")
    with Streamer(tmp_path, {"a": source15.url, "log": "jsonl:-"}, targets=["log"]) as streamer:
        yield streamer.setup()


def test_nothing_but_events_comes_from_standard_output(piped: Streamer, source15: Database, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as output:
        piped.start(output=output).wait_for_state("streaming")
        source15.execute("UPDATE counter SET n = 1")
        wait_for(lambda: counts(events_whole(tmp_path / "out")) == [1], "the event")
        assert piped.stop() == 0
    assert [event["kind"] for event in events(tmp_path / "out")] == ["read", "update"]
    record = read("log", tmp_path / "streamer-log.progress")
    assert record is not None
    assert record.place is None
    assert "edge_ready" in piped.log


def test_standard_output_is_at_least_once_through_kills(piped: Streamer, source15: Database, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    out = tmp_path / "out"
    with out.open("ab") as output:
        piped.start(output=output).wait_for_state("streaming")
        piped.kill()
    with counting(source15):
        for _ in range(5):
            with out.open("ab") as output:
                piped.start(output=output)
                time.sleep(dice.uniform(0.5, 1.0))  # the random moment
                piped.kill()
    (end,) = source15.query("SELECT n FROM counter")
    with out.open("ab") as output:
        piped.start("--once", output=output)
        assert piped.wait(30) == 0
    numbers = counts(json.loads(line) for line in out.read_text().splitlines() if _is_json(line))
    assert set(numbers) == set(range(1, end[0] + 1))
    assert all(after <= before + 1 for before, after in zip([0, *numbers], numbers, strict=False))


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def test_a_reader_of_a_named_pipe_may_come_back(piped: Streamer, source15: Database, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    first = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pipe.open("wb") as output:
        piped.start(output=output)
    wait_for(lambda: _readable(first), "the first event")
    os.close(first)
    source15.execute("UPDATE counter SET n = 1")
    piped.wait_for_problem("nobody reads standard output any more")
    second = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        wait_for(lambda: not piped.problems(), "the daemon to be content")
        assert b'"n":"1"' in wait_for(lambda: _readable(second), "the event")
    finally:
        os.close(second)
    assert piped.stop() == 0


def _readable(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


def test_a_reader_that_stands_still_is_waited_for_and_does_not_keep_the_daemon(
    piped: Streamer, source15: Database, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as output:
        piped.start(output=output).wait_for_state("streaming")
    try:
        source15.execute("INSERT INTO counter SELECT i, 0 FROM generate_series(2, 5000) i")
        wait_for(lambda: piped.edges().get("a->log", {}).get("lag_bytes", 0) > 0, "the pipe to be full")
        assert piped.stop() == 0
    finally:
        os.close(reading)
