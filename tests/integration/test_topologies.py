"""Every shape of replication that is allowed, on real servers: each change ends up everywhere it should, once, and nowhere else.

The nodes write rows with keys of their own, so there are no conflicts; each node makes another number of transactions, so that a
count on an edge tells whose they are. What an edge should carry is written down by hand, not worked out by the rule under test.
Only behind a one-way target they cannot be counted: it is written in groups.
The trap: an echo may come late. So when all rows are where they belong, every node makes one more transaction: as a stream keeps
the order of its source, whatever came back before it has been applied, and counted, when that one arrives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
from psycopg import sql

from streamer.config import Config
from tests.configs import checked
from tests.conftest import Databases
from tests.integration.streams import Running, running
from tests.servers import Database, PostgresServer, Row
from tests.waiting import wait_for_equal

TABLE = "CREATE TABLE t (id integer PRIMARY KEY, made text NOT NULL, n integer NOT NULL DEFAULT 0)"
ROWS = "SELECT id, made, n FROM t ORDER BY id"
PASSWORD = "Geheim-1"


@dataclass(frozen=True)
class Topology:
    """Syncs, and for each edge the nodes whose transactions it carries; one edge may read what was written in groups."""

    syncs: Mapping[str, Mapping[str, Sequence[str]]]
    carries: Mapping[str, str]
    in_groups: str = ""

    @property
    def nodes(self) -> list[str]:
        return sorted({name for sync in self.syncs.values() for role in sync.values() for name in role})

    def reached_by(self, origin: str) -> set[str]:
        """The nodes that should hold what this one makes."""
        return {origin} | {edge[-1] for edge, origins in self.carries.items() if origin in origins}


MESH = {"a->b": "a", "a->c": "a", "b->a": "b", "b->c": "b", "c->a": "c", "c->b": "c"}
TOPOLOGIES = {
    "two sources": Topology({"s": {"sources": "ab"}}, {"a->b": "a", "b->a": "b"}),
    "mesh": Topology({"s": {"sources": "abc"}}, MESH),
    "mesh and target": Topology({"s": {"sources": "abc", "targets": "d"}}, MESH | {"a->d": "a", "b->d": "b", "c->d": "c"}),
    "hub": Topology(
        {"left": {"sources": "ah"}, "right": {"sources": "hb"}, "down": {"sources": "h", "targets": "c"}},
        {"a->h": "a", "h->a": "hb", "h->b": "ha", "b->h": "b", "h->c": "abh"},
    ),
    "handed on": Topology(
        {"s": {"sources": "abc", "targets": "d"}, "on": {"sources": "c", "targets": "e"}},
        MESH | {"a->d": "a", "b->d": "b", "c->d": "c", "c->e": "abc"},
    ),
    "chain": Topology(
        {"one": {"sources": "ab"}, "two": {"sources": "b", "targets": "c"}, "three": {"sources": "c", "targets": "d"}},
        {"a->b": "a", "b->a": "b", "b->c": "ab", "c->d": "abc"},
        in_groups="c->d",
    ),
}
MIXED = {"a": "wal2json", "b": "pgoutput", "c": "wal2json", "h": "pgoutput"}


class Net:
    """The databases of a topology, and what was made where."""

    def __init__(self, topology: Topology, databases: Mapping[str, Database]) -> None:
        self.topology = topology
        self._databases = databases
        self._made: dict[str, int] = dict.fromkeys(databases, 0)
        self._changed: dict[str, int] = dict.fromkeys(databases, 0)
        self._next = {node: 1_000_000 * i for i, node in enumerate(databases, 1)}

    def __getitem__(self, node: str) -> Database:
        return self._databases[node]

    def write(self, rounds: int = 3) -> None:
        """Let every node make transactions, of several kinds, the later ones in the alphabet more."""
        for _, (i, node) in product(range(rounds), enumerate(self._databases, 1)):
            for _ in range(i):
                key = self._insert(node)
                self._run(node, f"UPDATE t SET n = n + 1 WHERE id = {key}")
            first, second = self._insert(node), self._insert(node)
            self._run(node, f"UPDATE t SET n = 7 WHERE id IN ({first}, {second}); DELETE FROM t WHERE id = {first}")
            self._run(node, f"UPDATE t SET id = id + 500000 WHERE id = {second}")

    def write_apart(self) -> None:
        """Let every node make transactions of which none touches a row of another: so they count even if they are told in batches,
        with nothing but the last state of each row."""
        own = {node: [self._insert(node) for _ in range(i + 3)] for i, node in enumerate(self._databases, 1)}
        self._wait_for_rows()
        for node, (first, second, third, *others) in own.items():
            self._run(node, f"UPDATE t SET n = 7 WHERE id IN ({first}, {second})", rows=2)
            self._run(node, f"DELETE FROM t WHERE id = {third}")
            for key in others:
                self._run(node, f"UPDATE t SET n = n + 1 WHERE id = {key}")

    def _insert(self, node: str) -> int:
        self._next[node] += 1
        self._run(node, f"INSERT INTO t VALUES ({self._next[node]}, '{node}')")
        return self._next[node]

    def _run(self, node: str, statements: str, rows: int = 1) -> None:
        self._databases[node].execute(statements)
        self._made[node] += 1
        self._changed[node] += rows

    def wait_until_quiet(self) -> None:
        """Wait until everything is where it belongs, twice (see above)."""
        self._wait_for_rows()
        for node in self._databases:
            self._insert(node)
        self._wait_for_rows()

    def _wait_for_rows(self) -> None:
        own = {node: [row for row in database.query(ROWS) if row[1] == node] for node, database in self._databases.items()}
        for node, database in self._databases.items():
            expected = sorted(row for origin in own if node in self.topology.reached_by(origin) for row in own[origin])
            wait_for_equal(partial(database.query, ROWS), expected, f"{node} to hold what it should")

    @property
    def expected(self) -> dict[str, int]:
        """The transactions that each edge should have applied."""
        carries = {edge: origins for edge, origins in self.topology.carries.items() if edge != self.topology.in_groups}
        return {edge: sum(self._made[origin] for origin in origins) for edge, origins in carries.items()}

    def wait_for_counts(self, streams: Running) -> None:
        """Wait until every edge has applied what it should, and nothing else."""
        expected = self.expected
        wait_for_equal(
            lambda: {edge: count for edge, count in streams.applied.items() if edge in expected},
            expected,
            "the counts of all edges",
        )

    def wait_for_rows(self, streams: Running) -> None:
        """Wait until every edge has written the rows that it should, and nothing else; after `write_apart`."""
        expected = {edge: sum(self._changed[origin] for origin in origins) for edge, origins in self.topology.carries.items()}
        wait_for_equal(
            lambda: {name: edge.counters.rows for name, edge in streams.edges.items()}, expected, "the rows that edges have written"
        )


@contextmanager
def made(
    topology: Topology,
    databases: Databases,
    servers: Sequence[PostgresServer],
    captures: Mapping[str, str],
    role: str | None = None,
) -> Iterator[tuple[Net, Running]]:
    """Make the databases on the servers by turns, and replicate while the context lasts."""
    net = Net(topology, {node: databases.create(servers[i % len(servers)], f"n_{node}") for i, node in enumerate(topology.nodes)})
    for node in topology.nodes:
        _make_table(net[node], role)
    with running(_config(topology, net, captures, role)) as streams:
        yield net, streams


def _make_table(database: Database, role: str | None) -> None:
    """Make the table; with a role it is the role's, which owns the database and may replicate, and no more."""
    if role is None:
        database.execute(TABLE)
        return
    if not database.query("SELECT FROM pg_roles WHERE rolname = %s", [role]):
        database.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'")
    for statement in ("ALTER DATABASE {} OWNER TO {}", "GRANT CONNECT ON DATABASE {} TO {}"):
        database.execute(sql.SQL(statement).format(sql.Identifier(database.name), sql.Identifier(role)))
    database.execute(f"ALTER SCHEMA public OWNER TO {role}; SET ROLE {role}; {TABLE}")


def _config(topology: Topology, net: Net, captures: Mapping[str, str], role: str | None) -> Config:
    def url(node: str) -> str:
        database = net[node]
        return database.url if role is None else database.server.url(database.name, role, PASSWORD)

    return checked(
        {
            "nodes": {node: {"url": url(node), "capture": captures.get(node, "auto")} for node in topology.nodes},
            "syncs": {
                name: {role: list(names) for role, names in sync.items()} | {"tables": ["public.*"]}
                for name, sync in topology.syncs.items()
            },
        }
    )


@pytest.mark.parametrize("shape", TOPOLOGIES)
def test_every_change_goes_everywhere_it_should_once(
    shape: str, databases: Databases, pg15: PostgresServer, pg18: PostgresServer
) -> None:
    with made(TOPOLOGIES[shape], databases, [pg15, pg18], {}) as (net, streams):
        net.write()
        net.wait_until_quiet()
        net.wait_for_counts(streams)
        assert not streams.problems


@pytest.mark.parametrize("shape", ["mesh and target", "hub"])
def test_both_plugins_may_be_mixed(shape: str, databases: Databases, pg15: PostgresServer) -> None:
    with made(TOPOLOGIES[shape], databases, [pg15], MIXED) as (net, streams):
        net.write()
        net.wait_until_quiet()
        net.wait_for_counts(streams)


@pytest.mark.parametrize("captures", [{}, MIXED], ids=["pgoutput", "mixed"])
@pytest.mark.parametrize("shape", ["mesh and target", "hub"])
def test_a_role_without_rights_to_origins_does_the_same(
    shape: str, captures: Mapping[str, str], databases: Databases, pg15: PostgresServer
) -> None:
    with made(TOPOLOGIES[shape], databases, [pg15], captures, role="plain") as (net, streams):
        net.write()
        net.wait_until_quiet()
        net.wait_for_counts(streams)
        assert pg15.query("SELECT FROM pg_replication_origin WHERE roname LIKE 'streamer:%'") == []


TAG = "SELECT origin, origin_position, origin_time FROM streamer.progress WHERE source = %s"


@pytest.mark.parametrize("role", [None, "plain"], ids=["origins", "denied"])
@pytest.mark.parametrize("captures", [{}, MIXED], ids=["pgoutput", "mixed"])
def test_origin_position_and_time_of_a_commit_survive_two_hops(
    captures: Mapping[str, str], role: str | None, databases: Databases, pg15: PostgresServer
) -> None:
    with made(TOPOLOGIES["chain"], databases, [pg15], captures, role) as (net, _):
        net["a"].execute("INSERT INTO t VALUES (1, 'a')")
        wait_for_equal(lambda: net["d"].query(ROWS), [(1, "a", 0)], "the row")
        (first,), (second,), (third,) = (net[node].query(TAG, [via]) for node, via in ("ba", "cb", "dc"))
        assert first[0] == "a"
        assert first == second == third
        commit = net["a"].query("SELECT pg_xact_commit_timestamp(xmin) FROM t")
        assert [first[2:]] == commit
        if role is None:
            for node in "bcd":
                assert net[node].query("SELECT pg_xact_commit_timestamp(xmin) FROM t") == commit
                assert _origins(net[node]) == [("a",)]


def _origins(database: Database) -> list[Row]:
    """Which nodes the row versions in t are tagged with, by the server itself."""
    return database.query(
        "SELECT split_part(roname, ':', 5) FROM t, pg_xact_commit_timestamp_origin(t.xmin) x"
        " JOIN pg_replication_origin o ON o.roident = x.roident"
    )
