"""Nodes that are captured by triggers among several sources, and nodes that hand on what others made."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from streamer.admin.check import check
from streamer.admin.findings import Severity
from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.admin.teardown import teardown
from streamer.capture import trigger_reader
from streamer.capture.batches import Batches
from streamer.capture.trigger_transactions import TransactionReader
from streamer.config import Config
from streamer.errors import UsageError
from streamer.retry import Backoff
from streamer.sinks.postgres import PostgresSink
from tests.configs import checked
from tests.conftest import Databases
from tests.integration.streams import running
from tests.integration.test_topologies import TOPOLOGIES, made
from tests.integration.test_trigger_stream import Faults, broken
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal

TABLE = "CREATE TABLE t (id integer PRIMARY KEY, x text)"
ROWS = "SELECT id, x FROM t ORDER BY id"


def configured(nodes: Mapping[str, Database], syncs: Mapping[str, Mapping[str, object]], captures: str) -> Config:
    return checked(
        {
            "nodes": {n: {"url": d.url} | ({"capture": "trigger"} if n in captures else {}) for n, d in nodes.items()},
            "syncs": {name: {"tables": ["public.*"], **sync} for name, sync in syncs.items()},
        }
    )


def test_two_trigger_nodes_replicate_to_each_other_without_echo(databases: Databases, pg15: PostgresServer) -> None:
    nodes = {name: databases.create(pg15, name) for name in ("left", "right")}
    for database in nodes.values():
        database.execute(TABLE)
    config = configured(nodes, {"s": {"sources": ["left", "right"]}}, "leftright")
    with running(config) as streams:
        for i in range(20):
            nodes["left"].execute("INSERT INTO t VALUES (%s, 'left')", [1000 + i])
            nodes["right"].execute("INSERT INTO t VALUES (%s, 'right')", [2000 + i])
        wait_for_equal(lambda: len(nodes["left"].query(ROWS)), 40, "the rows of right on left")
        wait_for_equal(lambda: nodes["right"].query(ROWS), nodes["left"].query(ROWS), "the rows of left on right")
        nodes["left"].execute("UPDATE t SET x = 'left again' WHERE id = 2003; DELETE FROM t WHERE id = 2004")
        wait_for_equal(lambda: nodes["right"].query(ROWS), nodes["left"].query(ROWS), "the rows of left on right")
        wait_for_equal(lambda: streams.applied, {"left->right": 21, "right->left": 20}, "each to be applied once")
        assert not streams.problems


def test_only_nodes_that_are_read_from_the_wal_need_old_rows(databases: Databases, pg15: PostgresServer) -> None:
    nodes = {name: databases.create(pg15, name) for name in "ab"}
    for database in nodes.values():
        database.execute(TABLE)
    config = configured(nodes, {"s": {"sources": ["a", "b"]}}, "b")
    said: list[str] = []
    setup(config, None, said.append)
    assert [line.partition(";")[0] for line in said if "warning" in line] == [
        'warning: a: table "public.t": an update that wins must carry also the long values that it left unchanged'
    ]
    found = [finding.object for finding in check(config) if finding.severity is Severity.ERROR]
    assert found == ['table "public.t" on "a"']


def test_a_source_leaves_when_trigger_nodes_have_passed_what_it_made(databases: Databases, pg15: PostgresServer) -> None:
    """What they hold of it lies among their deltas, and edges that have not passed it would hand it on."""
    nodes = {name: databases.create(pg15, name) for name in "abc"}
    for database in nodes.values():
        database.execute(TABLE)
    syncs: dict[str, dict[str, object]] = {"s": {"sources": ["a", "b", "c"]}}
    config, rest = configured(nodes, syncs, "bc"), configured(nodes, {"s": {"sources": ["b", "c"]}}, "bc")
    with running(config):
        for i, database in enumerate(nodes.values()):
            database.execute("INSERT INTO t VALUES (%s, 'x')", [i])
        for database in nodes.values():
            wait_for_equal(lambda d=database: len(d.query(ROWS)), 3, "all rows everywhere")  # type: ignore[misc]
    with running(config, source="a", wait=False, set_up=False):
        nodes["a"].execute("INSERT INTO t VALUES (9, 'late')")
        for name in "bc":
            wait_for_equal(lambda d=nodes[name]: len(d.query(ROWS)), 4, "the late row")  # type: ignore[misc]
    with pytest.raises(UsageError, match='may not have passed all transactions of "a" yet') as refused:
        leave(config, "a")
    assert "streamer run --once --sync s --source b, streamer run --once --sync s --source c" in refused.value.hint
    for name in "bc":
        run(config, sync=None, source=name, once=True)
    leave(config, "a")
    with running(rest) as streams:
        nodes["b"].execute("INSERT INTO t VALUES (10, 'b')")
        nodes["c"].execute("INSERT INTO t VALUES (11, 'c')")
        for name in "bc":
            wait_for_equal(lambda d=nodes[name]: len(d.query(ROWS)), 6, "the rows of the rest")  # type: ignore[misc]
        assert streams.applied == {"b->c": 1, "c->b": 1}
        assert not streams.problems


def leave(config: Config, node: str) -> None:
    """Take a node out of its syncs."""
    assert teardown(config, None, node=node, force=False, confirm=lambda lines: True, say=lambda line: None) == []


TRIGGERS = dict.fromkeys("abch", "trigger")
MIXED = {"a": "wal2json", "b": "pgoutput", "c": "trigger", "h": "trigger"}


@pytest.mark.parametrize(
    ("shape", "captures"),
    [
        ("mesh and target", MIXED),
        ("handed on", MIXED),
        ("hub", TRIGGERS),
        ("chain", {"a": "pgoutput", "b": "trigger", "c": "wal2json"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "triggers" if value is TRIGGERS else "mixed",
)
def test_every_row_goes_everywhere_it_should_once(
    shape: str, captures: Mapping[str, str], databases: Databases, pg15: PostgresServer, pg18: PostgresServer
) -> None:
    """No echo: an edge has written exactly the rows that it should."""
    servers = [pg15] if "wal2json" in captures.values() else [pg15, pg18]
    with made(TOPOLOGIES[shape], databases, servers, captures) as (net, streams):
        net.write_apart()
        net.wait_until_quiet()
        net.wait_for_rows(streams)
        net.write()
        net.wait_until_quiet()
        assert not streams.problems


def test_faults_between_any_two_steps_lose_nothing(
    databases: Databases, pg15: PostgresServer, pg18: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node writes rows of its own: what differs at the end was lost, or an older state came again."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    nodes = {name: databases.create(server, name) for name, server in zip("abc", (pg15, pg18, pg15), strict=True)}
    for database in nodes.values():
        database.execute(TABLE)
    monkeypatch.setattr(Backoff, "LAST", 0.2)
    monkeypatch.setattr(trigger_reader, "CONFIRM_SECONDS", 0.02)
    faults = Faults(monkeypatch, seed)
    for method in ("record", "after", "confirm"):
        faults.of(Batches, method, broken, rate=0.2)
    faults.of(TransactionReader, "_transaction", broken, rate=0.02)
    faults.of(PostgresSink, "write", broken)

    def write() -> bool:
        for first, database in enumerate(nodes.values()):
            key, other = (first * 100 + dice.randrange(50) for _ in range(2))
            database.execute(
                f"BEGIN; DELETE FROM t WHERE id = {key}; INSERT INTO t VALUES ({key}, '{dice.random()}'); "
                f"UPDATE t SET x = '{dice.random()}' WHERE id IN ({other}, {key}); COMMIT; DELETE FROM t WHERE id = {other + 1}"
            )
        return faults.everywhere

    with running(configured(nodes, {"s": {"sources": ["a", "b", "c"]}}, "abc"), wait=False) as streams:
        wait_for(write, "every step to have failed", 90)
        faults.stopped = True
        rows = {name: database.query(ROWS) for name, database in nodes.items()}
        own = sorted(row for first, name in enumerate(nodes) for row in rows[name] if row[0] // 100 == first)
        for database in nodes.values():
            wait_for_equal(lambda d=database: d.query(ROWS), own, "all to hold what each has written")  # type: ignore[misc]
        wait_for(lambda: not streams.problems, "the streams to be content")
