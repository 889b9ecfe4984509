"""`streamer teardown --node` on real servers: one node leaves, nothing of it stays anywhere, and the others keep what is theirs.

What a daemon would have written is written here by hand, so that it is known to the row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.admin.teardown import teardown
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.session import connect
from streamer.sinks.postgres_triggers import tables_with_triggers
from tests.configs import make_config
from tests.conftest import Databases
from tests.integration.streams import running
from tests.integration.test_admin_teardown import catalog
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for_equal

TABLES = "CREATE TABLE t (id int PRIMARY KEY, x int)"
ABC: dict[str, Any] = {"shop": {"sources": ["a", "b", "c"], "targets": ["d"], "tables": ["t"]}}
TWO: dict[str, Any] = {"shop": {"sources": ["a", "b"], "targets": ["d"], "tables": ["t"]}}
AWAY = "postgresql://postgres@127.0.0.1:1/x"
EDGE_ROWS = (
    "SELECT sync, source, target FROM streamer.progress UNION SELECT sync, source, target FROM streamer.copy ORDER BY 1, 2, 3"
)


class Nodes(dict[str, Database]):
    """Databases with the table, made when they are asked for."""

    def __init__(self, databases: Databases, server: PostgresServer) -> None:
        self._databases = databases
        self._server = server

    def __missing__(self, name: str) -> Database:
        self[name] = self._databases.create(self._server, name)
        self[name].execute(TABLES)
        return self[name]


class World:
    """Nodes a to e of one server, and configs over them."""

    def __init__(self, databases: Databases, server: PostgresServer) -> None:
        self.nodes = Nodes(databases, server)

    def config(self, syncs: dict[str, Any] = ABC, **urls: str) -> Config:
        used = sorted({node for sync in syncs.values() for node in (*sync["sources"], *sync.get("targets", ()))})
        return make_config({n: self.nodes[n].url for n in used if n in "abcde"} | urls, syncs=syncs)

    def applied(self, edge: str, made: str | None = None) -> None:
        """Leave on the target what "shop: a -> b" leaves there when it has applied what `made` made."""
        sync, _, way = edge.partition(": ")
        source, _, target = way.partition(" -> ")
        node, where = self.nodes[target], [sync, source, target]
        node.execute(
            "INSERT INTO streamer.progress (sync, source, target, system_identifier, database, slot, position, origin, "
            "origin_position, origin_time) VALUES (%s, %s, %s, '1', 'x', 'x', '0/1', 'x', '0/1', now()) ON CONFLICT DO NOTHING",
            where,
        )
        node.execute("INSERT INTO streamer.copy VALUES (%s, %s, %s, 'public', 't', '0/1', 0, 'x', '0/1', now())", where)
        node.execute("SELECT pg_replication_origin_create(%s)", [f"streamer:{sync}:{target}:{source}:{made or source}"])

    def origins(self, target: str) -> list[str]:
        names = self.nodes[target].query("SELECT roname FROM pg_replication_origin ORDER BY 1")
        return [name for (name,) in names if name.split(":")[2] == target]

    def edges(self, target: str) -> list[str]:
        return ["{}: {} -> {}".format(*row) for row in self.nodes[target].query(EDGE_ROWS)]


@pytest.fixture(params=["server_a", "server_b"])
def world(request: pytest.FixtureRequest, databases: Databases) -> World:
    return World(databases, request.getfixturevalue(request.param))


@pytest.fixture
def world18(databases: Databases, server_b: PostgresServer) -> World:
    return World(databases, server_b)


def set_up(config: Config) -> None:
    setup(config, None, lambda line: None)


def leave(config: Config, node: str, only: str | None = None, *, force: bool = False) -> tuple[list[str], list[StreamerError]]:
    said: list[str] = []
    problems = teardown(config, only, node=node, force=force, confirm=lambda lines: True, say=said.append)
    return said, problems


def test_a_source_leaves_a_mesh(world: World) -> None:
    before = catalog(world.nodes["a"])
    config = world.config()
    set_up(config)
    for edge in ("b -> a", "c -> a", "a -> b", "c -> b", "a -> c", "b -> c", "a -> d", "b -> d", "c -> d"):
        world.applied(f"shop: {edge}")
    said, problems = leave(config, "a")
    assert not problems
    assert {
        'a: removed slot "streamer_shop_a"',
        'a: removed replication origin "streamer:shop:a:b:b"',
        'a: removed schema "streamer"',
        'b: removed replication origin "streamer:shop:b:a:a"',
        "b: removed progress of edge shop: a -> b",
        "b: removed copy of edge shop: a -> b",
        "d: removed progress of edge shop: a -> d",
    } <= set(said)
    assert said[-1] == 'now take "a" out of syncs.shop in the config, and nodes.a as well; then start streamer run again'
    assert not world.origins("a")
    assert catalog(world.nodes["a"])[:-1] == before[:-1]
    assert {node: (world.edges(node), world.origins(node)) for node in "bcd"} == {
        "b": (["shop: c -> b"], ["streamer:shop:b:c:c"]),
        "c": (["shop: b -> c"], ["streamer:shop:c:b:b"]),
        "d": (["shop: b -> d", "shop: c -> d"], ["streamer:shop:d:b:b", "streamer:shop:d:c:c"]),
    }
    for node in "bc":
        slots = world.nodes[node].query("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
        assert slots == [(f"streamer_shop_{node}",)]
    assert leave(config, "a")[0] == ["there is nothing to remove", said[-1]]


def test_a_target_leaves(world18: World) -> None:
    before = catalog(world18.nodes["d"])
    config = world18.config()
    set_up(config)
    world18.applied("shop: a -> d")
    world18.applied("shop: b -> a")
    said, problems = leave(config, "d")
    assert not problems
    assert [line for line in said if not line.startswith("d: ")] == [said[-1]]
    assert not world18.origins("d")
    assert catalog(world18.nodes["d"])[:-1] == before[:-1]
    assert world18.edges("a") == ["shop: b -> a"]


ON: dict[str, Any] = ABC | {"on": {"sources": ["c"], "targets": ["e"], "tables": ["t"]}}


@pytest.mark.parametrize("only", [None, "shop"])
def test_what_other_syncs_handed_on_of_it_goes_too_unless_it_leaves_only_one_sync(world18: World, only: str | None) -> None:
    config = world18.config(ON)
    set_up(config)
    world18.applied("on: c -> e")
    world18.nodes["e"].execute("SELECT pg_replication_origin_create('streamer:on:e:c:a')")
    said, problems = leave(config, "a", only)
    assert not problems
    assert world18.edges("e") == ["on: c -> e"]
    assert world18.origins("e") == (["streamer:on:e:c:c"] if only is None else ["streamer:on:e:c:a", "streamer:on:e:c:c"])
    assert said[-1] == (
        'now take "a" out of syncs.shop in the config, and nodes.a as well; then start streamer run again'
        if only is None
        else 'now take "a" out of syncs.shop in the config; then start streamer run again'
    )


def test_a_node_that_leaves_one_of_its_syncs_keeps_what_the_other_has(world18: World) -> None:
    config = world18.config(ON | {"shop": ABC["shop"] | {"targets": []}})
    set_up(config)
    world18.applied("shop: a -> c")
    world18.applied("on: c -> e")
    said, problems = leave(config, "c", "shop")
    assert not problems
    c = world18.nodes["c"]
    assert c.query("SELECT slot_name FROM pg_replication_slots WHERE database = 'c'") == [("streamer_on_c",)]
    assert world18.edges("c") == []
    assert 'c: removed progress of sync "shop"' in said
    assert world18.edges("e") == ["on: c -> e"]


def with_triggers(database: Database) -> list[str]:
    with connect("a", database.url, application="test") as connection:
        return [str(table) for table in tables_with_triggers(connection)]


def test_triggers_go_where_conflicts_are_not_resolved_any_more(world18: World) -> None:
    config = world18.config(TWO)
    set_up(config)
    assert {node: with_triggers(world18.nodes[node]) for node in "abd"} == {n: ["public.t"] for n in "abd"}
    world18.nodes["d"].execute("INSERT INTO t VALUES (1); DELETE FROM t")
    assert world18.nodes["d"].query("SELECT count(*) FROM streamer.tombstone") == [(1,)]
    said, problems = leave(config, "b")
    assert not problems
    assert {'a: removed triggers of "public.t"', 'd: removed triggers of "public.t"'} <= set(said)
    assert {node: with_triggers(world18.nodes[node]) for node in "abd"} == {"a": [], "b": [], "d": []}
    assert world18.nodes["d"].query("SELECT count(*) FROM streamer.tombstone") == [(0,)]


def test_triggers_stay_where_the_others_still_resolve_conflicts(world18: World) -> None:
    config = world18.config()
    set_up(config)
    assert leave(config, "a")[1] == []
    assert {node: with_triggers(world18.nodes[node]) for node in "abcd"} == {"a": []} | {n: ["public.t"] for n in "bcd"}


def test_the_triggers_of_a_sync_go_with_it_and_those_of_another_one_stay(world18: World) -> None:
    for node in "ab":
        world18.nodes[node].execute("CREATE TABLE u (id int PRIMARY KEY)")
    roles = {"sources": ["a", "b"]}
    config = world18.config({"one": roles | {"tables": ["t"]}, "two": roles | {"tables": ["u"]}})
    set_up(config)
    assert with_triggers(world18.nodes["a"]) == ["public.t", "public.u"]
    said: list[str] = []
    assert teardown(config, "one", force=False, confirm=lambda lines: True, say=said.append) == []
    assert 'a: removed triggers of "public.t"' in said
    assert with_triggers(world18.nodes["a"]) == ["public.u"]
    assert teardown(config, "two", force=False, confirm=lambda lines: True, say=said.append) == []
    assert [world18.nodes[n].query("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal") for n in "ab"] == [[], []]


def test_a_file_is_told_to_forget_the_source_and_the_person_that_it_must_be_copied_anew(world18: World, tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    syncs = {"shop": {"sources": ["a", "b", "c"], "targets": ["s"], "tables": ["t"]}}
    config = world18.config(syncs, s=f"sqlite:///{file}")
    set_up(config)
    with closing(sqlite3.connect(file)) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(streamer_progress)")]
        for name in ("a", "old"):
            row = dict.fromkeys(columns, "0/1") | {"sync": "shop", "source": name, "target": "s"}
            connection.execute(
                f"INSERT INTO streamer_progress ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
            )
    said, problems = leave(config, "a")
    assert not problems
    assert "s: removed progress of edge shop: a -> s" in said
    assert said[-2] == (
        'target "s" got all of sync "shop" from "a", and will get it from "b": '
        "empty its tables before the next run, so that they are copied anew"
    )
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT source FROM streamer_progress").fetchall() == [("old",)]


@pytest.mark.parametrize("away", ["a", "b"])
def test_a_node_that_is_away_does_not_stop_the_cleaning_of_the_others(world18: World, away: str) -> None:
    config = world18.config()
    set_up(config)
    for edge in ("a -> b", "a -> c", "a -> d"):
        world18.applied(f"shop: {edge}")
    said, problems = leave(world18.config(ABC, **{away: AWAY}), "a")
    assert [p.message.split(":")[0] for p in problems] == [f'node "{away}"']
    assert {"c: removed progress of edge shop: a -> c", "d: removed progress of edge shop: a -> d"} <= set(said)
    assert said[-1].startswith('now take "a" out of syncs.shop')
    said, problems = leave(config, "a")
    assert not problems
    assert [world18.edges(node) for node in "bcd"] == [[], [], []]


def refused(config: Config, node: str, only: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        leave(config, node, only)
    return str(caught.value)


def test_what_cannot_be_meant_is_refused(world18: World) -> None:
    config = world18.config(ON)
    assert refused(config, "x") == 'the config has no node "x"; it has a, b, c, d, e'
    assert refused(config, "a", "on") == 'node "a" is not in sync "on"; it is in shop'
    out = config.model_copy(update={"syncs": {"on": config.syncs["on"]}})
    assert refused(out, "a") == (
        'node "a" is not in any sync; run it with the config as it was, in which the node is named, and take it out then'
    )
    assert refused(config, "a", "sho") == 'the config has no sync "sho"; it has shop, on'
    assert refused(config, "e") == 'without "e" nothing is left to replicate in sync "on"; streamer teardown --sync on'
    assert refused(config, "c") == 'without "c" nothing is left to replicate in sync "on"; streamer teardown --sync on'


APPLICATION = "SET application_name = {}"


@pytest.mark.parametrize(("edge", "place"), [("shop: a -> b", "b"), ("shop: b -> a", "a"), ("shop: c -> b", "b")])
def test_edges_in_use_are_refused(world18: World, edge: str, place: str) -> None:
    config = world18.config()
    set_up(config)
    world18.nodes["b"].execute("SELECT pg_replication_origin_create('streamer:shop:b:c:a')")
    with world18.nodes[place].connect() as writer:
        writer.execute(sql.SQL(APPLICATION).format(sql.Literal(f"streamer {edge}")))
        message = refused(config, "a")
        assert message.startswith(
            f'edge {edge} is written by process {writer.info.backend_pid} on "{place}"; stop streamer run first'
        )
        said, problems = leave(config, "a", force=True)
        assert not problems
        assert f"{place}: removed session of edge {edge} (process {writer.info.backend_pid})" in said
    assert not world18.origins("b")


def test_edges_between_others_may_be_in_use(world18: World) -> None:
    config = world18.config()
    set_up(config)
    with world18.nodes["b"].connect() as writer:
        writer.execute("SET application_name = 'streamer shop: c -> b'")
        assert leave(config, "a")[1] == []


def apply_as(node: Database, origin: str) -> None:
    """Make a transaction as an edge does that has applied one."""
    node.execute("SELECT pg_replication_origin_create(%s)", [origin])
    with node.connect() as connection, connection.transaction():
        connection.execute("SELECT pg_replication_origin_session_setup(%s)", [origin])
        connection.execute("SELECT pg_replication_origin_xact_setup('0/1', now())")
        connection.execute("INSERT INTO t VALUES (1)")


@pytest.mark.parametrize("made", ["a", "e"])
def test_a_source_may_not_leave_before_the_others_have_passed_its_transactions(world18: World, made: str) -> None:
    config = world18.config(TWO)
    set_up(config)
    b, d = world18.nodes["b"], world18.nodes["d"]
    world18.applied("shop: b -> d")
    apply_as(b, f"streamer:shop:b:a:{made}")
    assert refused(config, "a") == (
        'edge shop: b -> d may not have passed all transactions of "a" yet, and would send them on again; '
        "run: streamer run --once --sync shop --source b; then this again (or use --force, and compare the rows afterwards)"
    )
    ((passed,),) = b.query("SELECT pg_current_wal_insert_lsn()::text")
    d.execute("UPDATE streamer.progress SET position = %s", [passed])
    said, problems = leave(config, "a")
    assert not problems
    assert f'b: removed replication origin "streamer:shop:b:a:{made}"' in said


def test_a_source_may_not_leave_while_one_node_lacks_what_another_has_of_it(world18: World) -> None:
    """It left without a word, and the others differed for good: nobody else hands on what it made."""
    config = world18.config()
    set_up(config)
    moved = "UPDATE streamer.progress SET position = %s, origin = 'a', origin_position = %s"
    for target, *at in (("b", "0/500", "0/400"), ("c", "0/300", "0/200")):
        world18.applied(f"shop: a -> {target}")
        world18.nodes[target].execute(moved, at)
    assert refused(config, "a").startswith(
        '"c" lacks transactions of "a" that "b" has, and nobody else would bring them; run: streamer run --once --sync shop'
    )
    world18.nodes["c"].execute(moved, ["0/401", "0/400"])
    assert leave(config, "a")[1] == []


def test_it_may_with_force(world18: World) -> None:
    config = world18.config(TWO)
    set_up(config)
    world18.applied("shop: b -> d")
    apply_as(world18.nodes["b"], "streamer:shop:b:a:a")
    assert leave(config, "a", force=True)[1] == []
    assert not world18.origins("b")


def test_the_person_is_asked_and_may_refuse(world18: World) -> None:
    config = world18.config(TWO)
    set_up(config)
    world18.applied("shop: a -> b")
    asked: list[str] = []

    def refuse(lines: Sequence[str]) -> bool:
        asked.extend(lines)
        return False

    said: list[str] = []
    assert teardown(config, None, node="a", force=False, confirm=refuse, say=said.append) == []
    assert "b: progress of edge shop: a -> b" in asked
    assert said == []
    assert world18.edges("b") == ["shop: a -> b"]


def test_a_running_mesh_goes_on_without_a_source_that_leaves(world18: World) -> None:
    config, rest = world18.config(), world18.config({"shop": ABC["shop"] | {"sources": ["b", "c"]}})

    def wait_until_all_hold(nodes: str, *rows: int) -> None:
        for node in nodes:
            wait_for_equal(partial(world18.nodes[node].query, "SELECT count(*), sum(x) FROM t"), [rows], f"rows of {node}")

    with running(config):
        for number, node in enumerate("abc"):
            world18.nodes[node].execute("INSERT INTO t SELECT %s * 10 + i, 0 FROM generate_series(1, 5) i", [number])
        wait_until_all_hold("abcd", 15, 0)
        assert "; stop streamer run first" in refused(config, "a")
    for node in "bc":
        assert run(config, sync="shop", source=node, once=True) == []
    assert leave(config, "a")[1] == []
    world18.nodes["a"].execute("UPDATE t SET x = 9")
    with running(rest) as streams:
        world18.nodes["b"].execute("UPDATE t SET x = x + 1")
        wait_until_all_hold("bcd", 15, 15)
        world18.nodes["c"].execute("DELETE FROM t WHERE id = 1")
        wait_until_all_hold("bcd", 14, 14)
        once = {"b->c": 1, "b->d": 1, "c->b": 1, "c->d": 1}
        wait_for_equal(lambda: streams.applied, once, "what the edges say to have applied")
