"""Several sources through the command line: the scenario that users come with, every kind of conflict, and every policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.mesh import MARKS, Mesh
from tests.acceptance.pgbench import pgbench
from tests.conftest import Databases
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for

ALL = "SELECT * FROM t ORDER BY id"
DELTAS = {
    "public.pgbench_accounts": {"delta": ["abalance"]},
    "public.pgbench_tellers": {"delta": ["tbalance"]},
    "public.pgbench_branches": {"delta": ["bbalance"]},
}
SUMS = [
    "SELECT sum(abalance) FROM pgbench_accounts",
    "SELECT sum(tbalance) FROM pgbench_tellers",
    "SELECT sum(bbalance) FROM pgbench_branches",
    "SELECT sum(delta) FROM pgbench_history",
]
BALANCES = [
    "SELECT aid, bid, abalance FROM pgbench_accounts ORDER BY aid",
    "SELECT tid, bid, tbalance FROM pgbench_tellers ORDER BY tid",
    "SELECT bid, bbalance FROM pgbench_branches ORDER BY bid",
    "SELECT tid, bid, aid, delta FROM pgbench_history ORDER BY 1, 2, 3, 4",
]


@pytest.fixture
def pair_of_sources(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> dict[str, Database]:
    return {"a": databases.create(pg15, "left"), "b": databases.create(pg18, "right")}


def listed(mesh: Mesh, *options: str) -> list[dict[str, Any]]:
    """What `conflicts list` tells."""
    told = json.loads(mesh.command("conflicts", "list", "--json", "--limit", "500", *options).stdout)
    assert not told["more"]
    return list(told["conflicts"])


# -- the reference scenario --------------------------------------------------------------------------------------------------------


def fill(server: PostgresServer, database: Database) -> None:
    from tests.bench.databases import pgbench as run

    run(database, "-i", "-q", "-s", "1")


def test_pgbench_on_three_sources_ends_up_everywhere_and_nothing_leaves_the_target(
    tmp_path: Path, databases: Databases, pg15: PostgresServer, pg18: PostgresServer
) -> None:
    nodes: dict[str, Database | Path] = {
        name: databases.create(server, f"shop_{name}") for name, server in zip("abcd", [pg15, pg18, pg15, pg18], strict=True)
    }
    nodes["file"] = tmp_path / "shop.sqlite"
    syncs: dict[str, dict[str, Any]] = {
        "shop": {"sources": list("abc"), "targets": ["d"], "table": DELTAS},
        "archive": {"sources": ["c"], "targets": ["file"]},
    }
    with Mesh(tmp_path, nodes, syncs, captures={"a": "wal2json"}) as mesh:
        databases_of = mesh.databases
        fill(pg15, databases_of["a"])
        databases_of["a"].execute(MARKS)
        mesh.command("setup", "--fix")
        mesh.start_streaming()
        mesh.wait_until_quiet(BALANCES[:3])
        with ExitStack() as load:
            for name in "abc":
                load.enter_context(pgbench(databases_of[name], "-R", "100"))
            databases_of["d"].execute("INSERT INTO mark VALUES (1000, 1)")
            for name in "abc":
                history = "SELECT count(*) > 200 FROM pgbench_history WHERE mtime IS NOT NULL"
                wait_for(lambda name=name, query=history: databases_of[name].query(query) == [(True,)], "the load")  # type: ignore[misc]
        mesh.wait_until_quiet(BALANCES)
        sums = {total for query in SUMS for total in mesh.wait_until_equal(query)}
        assert len(sums) == 1, sums
        for name in "abc":
            assert databases_of[name].query("SELECT FROM mark WHERE node = 1000") == []
        assert mesh.stop() == 0


# -- the kinds ---------------------------------------------------------------------------------------------------------------------

UNIQUE = "CREATE TABLE t (id integer PRIMARY KEY, u integer UNIQUE, v integer); ALTER TABLE t REPLICA IDENTITY FULL"


@pytest.fixture
def mesh(tmp_path: Path, pair_of_sources: dict[str, Database]) -> Iterator[Mesh]:
    """Two sources with the table t."""
    with Mesh(tmp_path, pair_of_sources, {"shop": {"sources": ["a", "b"]}}) as mesh:
        mesh.on_all(f"{MARKS}; {UNIQUE}")
        yield mesh


def test_every_kind_of_conflict_is_resolved_and_told(mesh: Mesh, pair_of_sources: dict[str, Database]) -> None:
    a, b = pair_of_sources.values()
    for node in (a, b):
        node.execute("INSERT INTO t SELECT i, i, 0 FROM generate_series(1, 9) i")
    b.execute("INSERT INTO t VALUES (21, NULL, 0), (22, NULL, 0)")  # rows that a never had
    mesh.setup().start_streaming()
    a.execute("UPDATE t SET v = 1 WHERE id < 20")
    with mesh.apart(ALL):
        a.execute("INSERT INTO t VALUES (101, NULL, 1)")
        b.execute("INSERT INTO t VALUES (101, NULL, 2)")
        a.execute("UPDATE t SET v = 2 WHERE id = 2")
        b.execute("UPDATE t SET v = 3 WHERE id = 2")
        b.execute("INSERT INTO t VALUES (103, NULL, 2)")
        a.execute("UPDATE t SET id = 103 WHERE id = 3")
        b.execute("UPDATE t SET v = 4 WHERE id = 21")
        b.execute("DELETE FROM t WHERE id = 22")
        a.execute("DELETE FROM t WHERE id = 5")
        b.execute("UPDATE t SET v = 5 WHERE id = 5")
        a.execute("UPDATE t SET v = 6 WHERE id = 6")
        b.execute("DELETE FROM t WHERE id = 6")
        a.execute("INSERT INTO t VALUES (107, 207, 7)")
        b.execute("INSERT INTO t VALUES (107, 208, 8), (108, 207, 8)")
    rows = {row[0]: row[1:] for row in a.query(ALL)}
    assert (rows[101], rows[2], rows[21]) == ((None, 2), (2, 3), (None, 4))
    assert rows[5] == (5, 5)  # the later write, of the whole row
    assert 6 not in rows
    assert 22 not in rows
    assert (rows[107], rows[108]) == ((208, 8), (207, 8))

    conflicts = listed(mesh)
    assert {c["kind"] for c in conflicts} == {
        "insert_exists",
        "update_origin_differs",
        "update_exists",
        "update_missing",
        "update_deleted",
        "delete_origin_differs",
        "delete_missing",
        "multiple_unique_conflicts",
    }
    (both,) = [c for c in conflicts if c["kind"] == "update_origin_differs" and c["key"] == {"id": "2"} and c["target"] == "a"]
    shown = mesh.command("conflicts", "show", both["id"]).stdout
    for told in ("update_origin_differs", "public.t", "latest", "incoming"):
        assert told in shown, shown
    assert {c["kind"] for c in listed(mesh, "--kind", "update_missing")} == {"update_missing"}
    assert mesh.stop() == 0


def test_without_concurrent_writes_there_are_no_conflicts(mesh: Mesh, pair_of_sources: dict[str, Database]) -> None:
    mesh.setup().start_streaming()
    for i in range(10):
        for node in pair_of_sources.values():
            node.execute("INSERT INTO t VALUES (1, 1, 0) ON CONFLICT (id) DO UPDATE SET v = t.v + 1")
            mesh.wait_until_equal(ALL)
        assert mesh.wait_until_equal(ALL) == [(1, 1, 2 * i + 1)]
    assert mesh.conflicts() == []


# -- the policies ------------------------------------------------------------------------------------------------------------------

HANDLER = """
def join(dispute):
    if dispute.current is None or dispute.incoming is None:
        return "incoming"
    return dispute.current | {"v": " and ".join(sorted([dispute.current["v"], dispute.incoming["v"]]))}
"""
POLICIES: dict[str, object] = {
    "latest": "latest",
    "priority": ["a", "b"],
    "apply": "apply",
    "keep": "keep",
    "python": "python:rules:join",
}
#: what two sources hold after a wrote 1, then b wrote 2
OUTCOMES = {"latest": "22", "priority": "11", "apply": "21", "keep": "12", "python": ["1 and 2", "1 and 2"]}


def test_each_policy_decides_as_it_says(tmp_path: Path, pair_of_sources: dict[str, Database]) -> None:
    a, b = pair_of_sources.values()
    (tmp_path / "rules.py").write_text(HANDLER)
    tables = {f"public.{name}": {"conflict": policy} for name, policy in POLICIES.items()}
    with Mesh(tmp_path, pair_of_sources, {"shop": {"sources": ["a", "b"], "table": tables}}) as mesh:
        mesh.environment["PYTHONPATH"] = f"{tmp_path}:{Path(__file__).parents[2]}"
        mesh.on_all(MARKS)
        for name in POLICIES:
            mesh.on_all(f"CREATE TABLE {name} (id integer PRIMARY KEY, v text); ALTER TABLE {name} REPLICA IDENTITY FULL")
            a.execute(f"INSERT INTO {name} VALUES (1, '0')")
        mesh.setup().start_streaming()
        with mesh.apart():
            for node, value in ((a, "1"), (b, "2")):
                for name in POLICIES:
                    node.execute(f"UPDATE {name} SET v = '{value}'")
        for name, outcome in OUTCOMES.items():
            assert [node.query(f"SELECT v FROM {name}")[0][0] for node in (a, b)] == list(outcome), name
        told = {(c["table"], c["rule"]) for c in listed(mesh)}
        assert told == {
            ("public.latest", "latest"),
            ("public.priority", "a, b"),
            ("public.apply", "apply"),
            ("public.keep", "keep"),
            ("public.python", "python:rules:join"),
        }
        assert mesh.stop() == 0


def test_error_stops_the_stream_and_keeps_the_conflict(mesh: Mesh, pair_of_sources: dict[str, Database]) -> None:
    a, b = pair_of_sources.values()
    mesh.write_config(conflict="error")
    a.execute("INSERT INTO t VALUES (1, NULL, 0)")
    mesh.setup().start_streaming()
    mesh.wait_until_quiet([ALL])
    mesh.stop()
    a.execute("UPDATE t SET v = 1")
    b.execute("UPDATE t SET v = 2")
    mesh.start()
    said = mesh.wait_for_problem("update_origin_differs")
    assert '"public.t"' in said
    wait_for(lambda: all(e["problem"] for e in mesh.edges().values()), "both edges to stop")
    assert (a.query("SELECT v FROM t"), b.query("SELECT v FROM t")) == ([(1,)], [(2,)])
    assert {(c["kind"], c["winner"], c["target"]) for c in listed(mesh)} == {
        ("update_origin_differs", None, "a"),
        ("update_origin_differs", None, "b"),
    }
    a.execute("UPDATE t SET v = 2")  # a person makes the rows equal, and says who wins from now on
    mesh.stop()
    mesh.write_config(conflict=["a", "b"])
    mesh.start()
    mesh.wait_until_quiet([ALL])


def test_columns_that_are_merged_lose_nothing(tmp_path: Path, pair_of_sources: dict[str, Database]) -> None:
    a, b = pair_of_sources.values()
    rules = {"public.t": {"delta": ["balance"], "max": ["high"], "min": ["low"]}}
    query = "SELECT id, name, balance, high, low FROM t ORDER BY id"
    with Mesh(tmp_path, pair_of_sources, {"shop": {"sources": ["a", "b"], "table": rules}}) as mesh:
        mesh.on_all(f"{MARKS}; CREATE TABLE t (id integer PRIMARY KEY, name text, balance numeric, high integer, low integer)")
        a.execute("INSERT INTO t SELECT i, 'x', 100, 5, 5 FROM generate_series(1, 4) i")
        mesh.command("setup", "--fix")
        mesh.start_streaming()
        with mesh.apart(query):
            a.execute("UPDATE t SET balance = balance + 10, high = 7, low = 6 WHERE id = 1")
            b.execute("UPDATE t SET balance = balance - 3.5, high = 6, low = 2 WHERE id = 1")
            a.execute("UPDATE t SET balance = balance + 1, name = 'a' WHERE id = 2")  # loses, but for its amount
            b.execute("UPDATE t SET balance = balance + 2, name = 'b' WHERE id = 2")
            b.execute("UPDATE t SET name = 'b' WHERE id = 3")
            a.execute("UPDATE t SET balance = balance + 5 WHERE id = 3")  # later, and no reason to lose the name
            a.execute("INSERT INTO t VALUES (9, 'a', 1, 1, 1)")
            b.execute("INSERT INTO t VALUES (9, 'b', 2, 2, 2)")
        low = min(6, 2)
        expected = [(1, "x", 106.5, 7, low), (2, "b", 103, 5, 5), (3, "b", 105, 5, 5), (4, "x", 100, 5, 5), (9, "b", 3, 2, 1)]
        assert [(*row[:2], float(row[2]), *row[3:]) for row in a.query(query)] == expected
        assert {c["key"]["id"] for c in listed(mesh)} == {"2", "9"}
