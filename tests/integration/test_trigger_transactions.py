"""Batches of deltas read transaction by transaction: order, times, what was seen, and wherever an edge may be broken off."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from streamer.admin.setup import setup
from streamer.capture.assemble import Interest
from streamer.capture.batches import position_of
from streamer.capture.trigger_source import TriggerSource
from streamer.config import slot_name
from streamer.model import LSN, Change, Idle, Kind, Piece, Seen, TableName
from streamer.ports import Place
from tests.configs import checked
from tests.conftest import Databases
from tests.servers import Database, PostgresServer

TABLE = "CREATE TABLE t (id integer PRIMARY KEY, x text); CREATE TABLE u (id integer PRIMARY KEY, n integer)"
TABLES = (TableName("public", "t"), TableName("public", "u"))
START = position_of(1)


@dataclass
class Told:
    """A transaction that a reader gave."""

    position: LSN
    end: LSN
    origin: str
    time: datetime
    seen: Seen
    changes: list[Change]

    @property
    def short(self) -> str:
        """Its changes, to compare them."""
        return ", ".join(sorted(f"{k[0]}{relation.table.name}{(new or old or ('',))[0]}" for k, relation, old, new in self.changes))


@dataclass
class Copy:
    """What an edge has made of it; `strict`: as a target that has one source, which inserts no row twice and updates none that is
    not there."""

    at: LSN
    strict: bool
    rows: dict[tuple[str, object], object] = field(default_factory=dict)

    def apply(self, told: Told) -> None:
        assert told.position >= self.at
        for kind, relation, old, new in told.changes:
            name = relation.table.name
            if kind is Kind.TRUNCATE:
                self.rows = {key: row for key, row in self.rows.items() if key[0] != name}
            elif new is not None:
                assert not self.strict or ((name, new[0]) in self.rows) == (kind is Kind.UPDATE), (kind, new)
                self.rows[name, new[0]] = new
            elif old is not None:
                self.rows.pop((name, old[0]), None)
        self.at = told.end


@pytest.fixture
def node(databases: Databases, pg15: PostgresServer) -> Database:
    """A node of a sync with several sources, set up."""
    database = databases.create(pg15, "node")
    other = databases.create(pg15, "other")
    for each in (database, other):
        each.execute(TABLE)
    config = checked(
        {
            "nodes": {"a": {"url": database.url, "capture": "trigger"}, "b": {"url": other.url, "capture": "trigger"}},
            "syncs": {"s": {"sources": ["a", "b"], "tables": ["public.*"]}},
        }
    )
    setup(config, None, lambda line: None)
    return database


def source_of(node: Database, *, masters: bool = True) -> TriggerSource:
    interest = Interest(lambda table: table.schema == "public", by_transaction=masters, carries=lambda transaction: not masters)
    return TriggerSource("a", node.url, "s", slot_name("s", "a"), interest)


def read(source: TriggerSource, *places: LSN, known: Seen | None = None) -> list[Told]:
    """Everything that there is for edges at these places."""
    goal = source.state().current
    told: list[Told] = []
    changes: list[Change] = []
    if min(places) >= goal:
        return []
    with source.read_from([Place(at, known or {}, dict.fromkeys(TABLES, (START,))) for at in sorted(places)]) as reader:
        while True:
            for item in reader.read(1):
                if isinstance(item, Piece):
                    changes += item.changes
                    if item.end is not None:
                        origin = item.transaction.origin
                        told.append(
                            Told(item.transaction.position, item.end, origin.node, origin.commit_time, origin.seen, changes)
                        )
                        changes = []
                end = item.position if isinstance(item, Idle) else item.end
                if end is not None and end >= goal:
                    return told


@contextmanager
def open_transaction(node: Database, *statements: str) -> Iterator[None]:
    """Statements that are executed, and committed when the context ends."""
    with node.connect() as connection, connection.transaction():
        for statement in statements:
            connection.execute(statement)
        yield


def tag(node: Database, origin: str, time: str, *statements: str) -> None:
    """A transaction as streamer applies it."""
    node.execute("; ".join(["BEGIN", tagging(origin, time), *statements, "COMMIT"]))


def tagging(origin: str, time: str) -> str:
    """The first statement of such a transaction."""
    table = f"x{random.random()}"
    return f"INSERT INTO streamer.copy VALUES ('s', '{origin}', 'a', 'public', '{table}', '0/1', 0, '{origin}', '0/1', '{time}')"


def test_each_key_comes_with_the_transaction_that_wrote_it_last(node: Database) -> None:
    node.execute("INSERT INTO t VALUES (1, 'a'), (2, 'a')")
    node.execute("UPDATE t SET x = 'b' WHERE id = 1; INSERT INTO u VALUES (1, 1)")
    node.execute("INSERT INTO t VALUES (3, 'c'); DELETE FROM t WHERE id = 3")
    told = read(source_of(node), START)
    assert [of.short for of in told] == ["it2", "it1, iu1", "dt3"]
    assert [of.position for of in told] == [START, START + 1, START + 2]
    assert told[-1].end == position_of(2)
    times = node.query("SELECT DISTINCT pg_xact_commit_timestamp(xmin) FROM t ORDER BY 1")
    assert [(of.time,) for of in told[:2]] == times


def test_transactions_come_in_the_order_of_their_commits(node: Database) -> None:
    with open_transaction(node, "INSERT INTO t VALUES (1, 'began first')"):
        node.execute("INSERT INTO t VALUES (2, 'ended first')")
    told = read(source_of(node), START)
    assert [of.short for of in told] == ["it2", "it1"]
    assert told[0].time < told[1].time


def test_a_truncate_comes_at_its_place_and_what_it_removed_does_not(node: Database) -> None:
    node.execute("INSERT INTO t VALUES (1, 'gone'); INSERT INTO u VALUES (1, 1)")
    node.execute("TRUNCATE t")
    node.execute("INSERT INTO t VALUES (1, 'new')")
    assert [of.short for of in read(source_of(node), START)] == ["iu1", "tt", "it1"]


def test_what_was_deleted_before_a_truncate_from_elsewhere_came_is_told(node: Database) -> None:
    """That truncate may be the older one by the clocks, and leave a row of a third node that the delete must hit."""
    node.execute("INSERT INTO t VALUES (1, 'old'), (2, 'old')")
    source = source_of(node)
    at = read(source, START)[-1].end
    node.execute("DELETE FROM t WHERE id = 1")
    tag(node, "b", "2026-01-01 10:00:00Z", "TRUNCATE t")
    node.execute("INSERT INTO t VALUES (3, 'new')")
    assert [of.short for of in read(source, at)] == ["dt1", "it3"]


def test_a_truncate_is_told_though_another_one_came_from_elsewhere_after_it(node: Database) -> None:
    node.execute("INSERT INTO t VALUES (1, 'gone')")
    node.execute("TRUNCATE t")
    tag(node, "b", "2026-01-01 10:00:00Z", "TRUNCATE t")
    assert [of.short for of in read(source_of(node), START)] == ["tt"]


def test_what_others_made_is_not_told_and_was_seen_by_what_came_after_it(node: Database) -> None:
    node.execute("INSERT INTO t VALUES (1, 'mine')")
    tag(node, "b", "2026-01-01 10:00:00Z", "INSERT INTO t VALUES (2, 'b')")
    node.execute("INSERT INTO t VALUES (3, 'mine'); UPDATE t SET x = 'mine' WHERE id = 2")
    tag(node, "b", "2026-01-01 11:00:00Z", "UPDATE t SET x = 'b' WHERE id = 1")
    told = read(source_of(node), START, known={"c": datetime.fromisoformat("2026-01-01 09:00Z")})
    assert [of.short for of in told] == ["it3, ut2"]
    assert {node: time.hour for node, time in told[0].seen.items()} == {"b": 10, "c": 9}


def test_a_transaction_that_waited_for_a_row_had_not_been_seen_by_whoever_held_it(node: Database) -> None:
    """The applied one begins first and ends last."""
    with node.connect() as applied, applied.transaction():
        applied.execute(tagging("b", "2026-01-01 10:00Z"))
        applied.execute("INSERT INTO t VALUES (1, 'b')")
        node.execute("INSERT INTO t VALUES (2, 'mine'), (3, 'mine')")
        applied.execute("UPDATE t SET x = 'b' WHERE id = 2")
    told = read(source_of(node), START)
    assert [(of.short, of.seen) for of in told] == [("it3", {})]


def test_a_removed_key_is_told_though_it_never_had_a_row(node: Database) -> None:
    node.execute("""INSERT INTO streamer.removal (schema_name, table_name, key) VALUES ('public', 't', '{"id": "7"}')""")
    told = read(source_of(node), START)
    assert [of.short for of in told] == ["dt7"]


def write_at_random(node: Database, dice: random.Random, count: int, *, masters: bool) -> None:
    """Transactions on few keys; where one source writes, some of them applied ones."""
    for _ in range(count):
        key, other = dice.sample(range(1, 7), 2)
        statements = dice.choice(
            [
                [f"DELETE FROM t WHERE id = {key}", f"INSERT INTO t VALUES ({key}, '{dice.random()}')"],
                [f"DELETE FROM t WHERE id = {key}"],
                [f"UPDATE t SET x = '{dice.random()}' WHERE id IN ({key}, {other})"],
                [f"DELETE FROM t WHERE id = {other}", f"UPDATE t SET id = {other} WHERE id = {key}"],
                [f"DELETE FROM u WHERE id = {key}", f"INSERT INTO u VALUES ({key}, 1)", f"UPDATE t SET x = 'u' WHERE id = {other}"],
            ]
        )
        first = [tagging("b", "2026-01-01 10:00Z")] if not masters and dice.random() < 0.4 else []
        node.execute("; ".join(["BEGIN", *first, *statements, "COMMIT"]))
    if dice.random() < 0.3:
        node.execute("TRUNCATE t")


def rows_of(node: Database) -> dict[tuple[str, object], object]:
    found: dict[tuple[str, object], object] = {("t", str(i)): (str(i), x) for i, x in node.query("SELECT id, x FROM t")}
    return found | {("u", str(i)): (str(i), str(n)) for i, n in node.query("SELECT id, n FROM u")}


@pytest.mark.parametrize("masters", [True, False], ids=["several sources", "handed on"])
def test_an_edge_may_be_broken_off_after_every_transaction_of_a_batch(node: Database, masters: bool) -> None:
    seed = random.SystemRandom().randrange(1 << 20)
    print(f"seed {seed}")
    dice = random.Random(seed)
    source = source_of(node, masters=masters)
    copies = [Copy(START, not masters)]  # one for each place where an edge may stand
    for _ in range(4):
        write_at_random(node, dice, 5, masters=masters)
        told = read(source, *(copy.at for copy in copies))
        reached: list[Copy] = []
        for copy in copies:
            for of in told:
                if of.position >= copy.at:
                    copy.apply(of)
                    reached.append(Copy(copy.at, not masters, dict(copy.rows)))
            assert copy.rows == rows_of(node), f"seed {seed}"
        latest = reached[-12:] or copies
        copies = [*dice.sample(latest, min(4, len(latest))), copies[-1]]
        write_at_random(node, dice, 3, masters=masters)
    told = read(source, *(copy.at for copy in copies))
    for copy in copies:
        for of in told:
            if of.position >= copy.at:
                copy.apply(of)
        assert copy.rows == rows_of(node), f"seed {seed}"


def test_keys_that_rows_swap_within_a_statement_are_told_where_changes_are_handed_on(node: Database) -> None:
    """The last that is heard of a deferrable key may be a delete, though another row has it."""
    node.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED")
    source = source_of(node, masters=False)
    copy = Copy(START, strict=True)
    swaps = ("id = 10 - id", "id = id % 9 + 1", "id = CASE id WHEN 9 THEN 1 ELSE id + 1 END", "x = x || id, id = 10 - id")
    for n, swap in enumerate(("x = x", *swaps)):
        tag(node, "b", "2026-01-01 10:00Z", f"INSERT INTO u VALUES ({n}, 0)")  # else it is told by net effect
        if n == 0:
            node.execute("INSERT INTO t SELECT i, 'of ' || i FROM generate_series(1, 9) i")
        node.execute(f"UPDATE t SET {swap}")
        for told in read(source, copy.at):
            copy.apply(told)
        assert copy.rows == rows_of(node), swap


def test_a_transaction_that_is_overtaken_while_an_edge_is_away_is_told_without_changes(node: Database) -> None:
    """Another edge may have brought it to a node whose changes rest on it."""
    source = source_of(node)
    node.execute("INSERT INTO t VALUES (1, 'first')")
    (first,) = read(source, START)
    node.execute("UPDATE t SET x = 'second' WHERE id = 1")
    told = read(source, START)
    assert [(of.short, of.position) for of in told] == [("", first.position), ("ut1", position_of(2))]
    assert told[0].time == first.time


def big(node: Database, count: int) -> Sequence[Told]:
    node.execute(f"INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, {count}) i")
    node.execute("INSERT INTO u VALUES (1, 1)")
    return read(source_of(node), START)


def test_a_large_transaction_comes_in_pieces_and_stays_one(node: Database) -> None:
    told = big(node, 5000)
    assert [len(of.changes) for of in told] == [5000, 1]
