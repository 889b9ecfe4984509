"""One stream with edges over memory: what arrives, what is confirmed, and what happens when an end of it fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import pytest

from streamer.copying import InitialCopy, Policy
from streamer.edge import Edge
from streamer.errors import ApplyError, ConnectError, SlotError
from streamer.model import LSN, CopiedRange, EdgeName, KeyRange, SlotIdentity, TableName
from streamer.ports import Progress
from streamer.report import State, StreamReport
from streamer.router import Route
from streamer.stream import Stream
from tests.changes import copy_of, insert, relation, table, update
from tests.memory import MemoryDatabase, MemorySink, MemoryTable
from tests.memory_source import SLOT, START, MemorySource
from tests.waiting import wait_for, wait_for_equal

ITEM = table("item", id="integer", x="text")
ITEMS = relation(ITEM)
NAME = TableName("public", "item")


class Running:
    """A stream from `a` to the databases named, in a thread."""

    def __init__(self, source: MemorySource, databases: dict[str, MemoryDatabase], *, once: bool, policy: Policy) -> None:
        self.source = source

        def make_edges(rejoin: Callable[[], None]) -> Sequence[Edge]:
            return [
                Edge(
                    name := EdgeName("shop", "a", target),
                    source,
                    lambda name=name, database=database: MemorySink(name, database),  # type: ignore[misc]
                    Route("a", target, ["a"]),
                    InitialCopy(name, policy, 1),
                    rejoin,
                )
                for target, database in databases.items()
            ]

        self.stream = Stream("shop", "a", source, make_edges, until_caught_up=once, one_try=once)
        self.thread = threading.Thread(target=self.stream.run)
        self.thread.start()

    def report(self) -> StreamReport:
        return self.stream.report()

    def stop(self) -> None:
        self.stream.stop()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts streams, and stops them when the test is over."""
    started: list[Running] = []

    def begin(source: MemorySource, *, once: bool = False, policy: Policy = "never", **databases: MemoryDatabase) -> Running:
        started.append(Running(source, databases, once=once, policy=policy))
        return started[-1]

    yield begin
    for running in started:
        running.stop()


@pytest.fixture
def source() -> MemorySource:
    return MemorySource([copy_of(ITEM)])


def database() -> MemoryDatabase:
    made = MemoryDatabase()
    made.tables[NAME] = MemoryTable(("id", "x"), ("id",))
    return made


def rows(of: MemoryDatabase) -> list[tuple[str, str]]:
    return sorted((str(row["id"]), str(row["x"])) for row in of.tables[NAME].rows)


def test_transactions_arrive_once_and_are_confirmed(source: MemorySource, start: Start) -> None:
    target = database()
    start(source, b=target)
    for i in range(20):
        end = source.commit(insert(ITEMS, str(i), "x"))
    wait_for_equal(lambda: source.confirmed, end, "all to be confirmed")
    assert len(rows(target)) == 20
    assert target.progress[EdgeName("shop", "a", "b")].position == end


def test_nothing_is_confirmed_before_every_target_has_it_durably(source: MemorySource, start: Start) -> None:
    one, other = database(), database()
    other.flushed = START
    running = start(source, b=one, c=other)
    end = source.commit(insert(ITEMS, "1", "x"))
    wait_for(lambda: rows(one) and rows(other), "the row on both")
    wait_for_equal(lambda: running.report().edges[0].position, str(end), "the first to be durable")
    assert source.confirmed == START
    other.flushed = None
    wait_for_equal(lambda: source.confirmed, end, "both to be durable")


def test_a_target_that_is_away_holds_back_confirmation_but_not_the_other(source: MemorySource, start: Start) -> None:
    here, away = database(), database()
    for _ in range(3):
        away.fail_next("open", ConnectError("away"))
    start(source, b=here, c=away)
    end = source.commit(insert(ITEMS, "1", "x"))
    wait_for(lambda: rows(here), "the row on the one that is here")
    assert source.confirmed == START
    wait_for_equal(lambda: rows(away), [("1", "x")], "the other to come back")
    wait_for_equal(lambda: source.confirmed, end, "both to be confirmed")
    assert rows(here) == [("1", "x")]


def test_an_edge_that_failed_misses_nothing_and_the_other_gets_nothing_twice(source: MemorySource, start: Start) -> None:
    good, bad = database(), database()
    start(source, b=good, c=bad)
    source.commit(insert(ITEMS, "0", "x"))
    wait_for(lambda: rows(good) and rows(bad), "the first row")
    bad.fail_next("write", ApplyError("refused"))
    bad.fail_next("commit", ConnectError("gone"))
    for i in range(1, 50):
        end = source.commit(insert(ITEMS, str(i), "x"))
    wait_for_equal(lambda: source.confirmed, end, "all to be confirmed")
    assert len(rows(good)) == len(rows(bad)) == 50
    assert sum(g.transactions for g in good.groups) == 50


def test_a_transaction_in_pieces_comes_again_whole_after_a_break(source: MemorySource, start: Start) -> None:
    target = database()
    start(source, b=target)
    target.fail_next("commit", ConnectError("gone"))
    end = source.commit(*(insert(ITEMS, str(i), "x") for i in range(9)), pieces=9)
    wait_for_equal(lambda: source.confirmed, end, "it to be confirmed")
    assert len(rows(target)) == 9


def test_the_reader_connects_again_after_the_source_was_away(source: MemorySource, start: Start) -> None:
    target = database()
    running = start(source, b=target)
    source.faults += [ConnectError("gone"), ConnectError("gone")]
    end = source.commit(insert(ITEMS, "1", "x"))
    wait_for_equal(lambda: source.confirmed, end, "the row to be confirmed")
    assert len(source.sessions) >= 3
    wait_for(lambda: running.report().problem is None, "the problem to be over")


def test_a_source_that_restarts_after_an_idle_position_was_confirmed_has_lost_nothing(source: MemorySource, start: Start) -> None:
    running = start(source, b=database())
    source.commit(insert(ITEMS, "first", "x"))
    wait_for(lambda: source.confirmed == source.end, "the transaction to be confirmed")
    source.end = LSN(source.end + 50)  # WAL of others
    source.faults.append(ConnectError("gone"))
    wait_for(lambda: source.confirmed == source.end, "the idle position to be confirmed")
    sessions = len(source.sessions)
    source.faults.append(ConnectError("gone again"))
    wait_for(lambda: len(source.sessions) > sessions or running.report().problem is not None, "a new session")
    source.commit(insert(ITEMS, "last", "x"))
    wait_for(lambda: source.confirmed == source.end, "the last transaction to be confirmed")
    assert running.report().state is State.STREAMING


def test_nodes_that_note_steps_on_each_other_come_to_rest_although_each_write_fills_a_file_of_wal(
    source: MemorySource, start: Start
) -> None:
    file = 16 << 20
    source.quiet, source.idle_bytes = True, 2 * file
    target = database()
    start(source, b=target)
    wait_for_equal(lambda: source.confirmed, source.commit(insert(ITEMS, "1", "x")), "the row to be confirmed")
    groups = len(target.groups)
    end = source.end
    source.end = LSN(end + file)
    wait_for_equal(lambda: source.told, source.end, "the first file to be told")
    source.end = LSN(end + 2 * file)
    wait_for_equal(lambda: source.confirmed, source.end, "the second to be noted")
    assert [group.idle for group in target.groups[groups:]] == [True]


def test_a_new_session_knows_what_the_source_had_seen_where_each_edge_stands(source: MemorySource, start: Start) -> None:
    start(source, b=database(), d=database())
    seen = {"c": datetime.now(UTC)}
    end = source.commit(insert(ITEMS, "1", "x"), seen=seen)
    wait_for_equal(lambda: source.confirmed, end, "the row to be confirmed")
    sessions = len(source.sessions)
    source.faults.append(ConnectError("gone"))
    wait_for(lambda: len(source.sessions) > sessions, "a new session")
    assert source.known[-1] == [(source.end, seen), (source.end, seen)]


def test_changes_that_the_copied_rows_hold_are_left_out(source: MemorySource, start: Start) -> None:
    source.rows_of[NAME] = [("1", "copied")]
    source.commit(insert(ITEMS, "1", "old"))
    target = database()
    start(source, policy="always", b=target)
    wait_for_equal(lambda: rows(target), [("1", "copied")], "the copy")
    end = source.commit(update(ITEMS, "1", "new"))
    wait_for_equal(lambda: source.confirmed, end, "the update to be confirmed")
    assert rows(target) == [("1", "new")]


def resumed(source: MemorySource) -> MemoryDatabase:
    """A target whose rows up to 5 were copied when the stream began, and the others 20 bytes of WAL later."""
    target, later = database(), LSN(START + 20)
    copied = (CopiedRange(KeyRange("id", high="5"), START, 0), CopiedRange(KeyRange("id", low="5"), later, 0))
    target.progress[EdgeName("shop", "a", "b")] = Progress(SLOT, START, {NAME: later}, ranges={NAME: copied})
    return target


def test_changes_are_applied_from_where_the_range_of_their_row_was_copied(source: MemorySource, start: Start) -> None:
    target = resumed(source)
    source.commit(insert(ITEMS, "1", "x"), insert(ITEMS, "6", "copied already"))
    source.commit(insert(ITEMS, "7", "copied already"))
    running = start(source, b=target)
    end = source.commit(insert(ITEMS, "8", "x"))
    wait_for_equal(lambda: source.confirmed, end, "all to be confirmed")
    assert rows(target) == [("1", "x"), ("8", "x")]
    assert running.report().edges[0].consistent_from == ""


def test_it_is_told_from_where_on_a_resumed_table_is_consistent(source: MemorySource, start: Start) -> None:
    running = start(source, b=resumed(source))
    source.end = LSN(START + 20)
    wait_for_equal(lambda: running.report().edges[0].consistent_from, str(LSN(START + 20)), "the position")


def test_tables_of_one_snapshot_are_as_of_one_time_though_the_stream_is_not_there_yet(source: MemorySource, start: Start) -> None:
    target, later = database(), LSN(START + 20)
    target.progress[EdgeName("shop", "a", "b")] = Progress(SLOT, START, {NAME: later})
    running = start(source, b=target)
    wait_for(lambda: running.report().edges[0].connected, "the edge to be ready")
    assert running.report().edges[0].consistent_from == ""


def test_a_change_that_is_refused_between_the_copies_of_ranges_has_the_table_copied_anew(
    source: MemorySource, start: Start
) -> None:
    target = resumed(source)
    source.rows_of[NAME] = [("1", "now"), ("9", "now")]
    target.fail_next("write", ApplyError("1 is there already"))
    start(source, b=target)
    end = source.commit(insert(ITEMS, "1", "then"))
    wait_for_equal(lambda: source.confirmed, end, "the change to be confirmed")
    assert rows(target) == [("1", "now"), ("9", "now")]
    assert target.progress[EdgeName("shop", "a", "b")].ranges == {}


def test_a_table_that_joined_after_the_edge_began_is_left_out_until_it_is_copied(source: MemorySource, start: Start) -> None:
    later = table("later", id="integer", x="text")
    target = database()
    start(source, b=target)
    source.commit(insert(relation(later), "1", "x"))
    end = source.commit(insert(ITEMS, "1", "x"))
    wait_for_equal(lambda: source.confirmed, end, "both to be confirmed")
    assert rows(target) == [("1", "x")]


def test_a_transaction_that_the_target_made_is_not_sent_back(source: MemorySource, start: Start) -> None:
    target = database()
    start(source, b=target)
    source.commit(insert(ITEMS, "1", "x"), origin="b", via="b")
    end = source.commit(insert(ITEMS, "2", "x"))
    wait_for_equal(lambda: source.confirmed, end, "both to be confirmed")
    assert rows(target) == [("2", "x")]


def test_once_ends_when_all_that_was_there_is_durable(source: MemorySource, start: Start) -> None:
    target = database()
    end = source.commit(insert(ITEMS, "1", "x"))
    running = start(source, once=True, b=target)
    running.thread.join(timeout=20)
    assert not running.thread.is_alive()
    assert (rows(target), source.confirmed) == ([("1", "x")], end)


def test_once_ends_with_the_first_error(source: MemorySource, start: Start) -> None:
    target = database()
    source.commit(insert(ITEMS, "1", "x"))
    target.fail_next("write", ApplyError("refused"))
    running = start(source, once=True, b=target)
    running.thread.join(timeout=20)
    problem = running.report().edges[0].problem
    assert problem is not None
    assert problem.message == "refused"


def test_stop_finishes_the_group_in_hand_and_confirms_it(source: MemorySource, start: Start) -> None:
    target = database()
    running = start(source, b=target)
    target.gate.clear()
    end = source.commit(insert(ITEMS, "1", "x"))
    wait_for(lambda: running.report().edges[0].lag_bytes, "the group to be in hand")
    running.stream.stop()
    target.gate.set()
    running.thread.join(timeout=20)
    assert (rows(target), source.confirmed) == ([("1", "x")], end)
    assert running.report().state is State.STOPPED


def test_stop_amid_several_groups_does_not_take_the_rest_of_them_for_written(source: MemorySource, start: Start) -> None:
    target = database()
    target.gate.clear()
    running = start(source, b=target)
    in_hand = threading.Event()

    def stop_amid(groups: int, interrupted: Callable[[], bool]) -> None:
        in_hand.set()
        if groups > 1:
            running.stream.stop()
            wait_for(interrupted, "the edge to hear of it")

    target.on_write = stop_amid
    source.commit(insert(ITEMS, "1", "x"))
    wait_for(in_hand.is_set, "the first group to be in hand")
    for number, origin in enumerate(("c", "d", "e"), start=2):  # a group of its own for each origin
        source.commit(insert(ITEMS, str(number), "x"), origin=origin, via=origin)
    wait_for(lambda: source.told == source.end, "the idle position behind them to be read")
    target.gate.set()
    running.thread.join(timeout=20)
    assert not running.thread.is_alive()
    assert [number for number, _ in rows(target)] == ["1", "2"]
    target.on_write = lambda groups, interrupted: None
    start(source, b=target)
    wait_for_equal(lambda: [number for number, _ in rows(target)], ["1", "2", "3", "4"], "the rest")


def test_a_bug_is_shown_and_does_not_end_in_silence(source: MemorySource, start: Start) -> None:
    target = database()
    target.fail_next("write", ZeroDivisionError("oops"))
    running = start(source, b=target)
    source.commit(insert(ITEMS, "1", "x"))
    wait_for(lambda: running.report().edges[0].state is State.FAILED, "the edge to have failed")
    problem = running.report().edges[0].problem
    assert problem is not None
    assert "unexpected ZeroDivisionError: oops" in problem.message


def test_the_lag_of_an_edge_that_failed_is_what_its_target_lacks(source: MemorySource, start: Start) -> None:
    target = database()
    target.fail_next("write", ZeroDivisionError("oops"))
    running = start(source, b=target)
    end = source.commit(insert(ITEMS, "1", "x"))
    wait_for(lambda: running.report().edges[0].problem, "the edge to have failed")
    assert running.report().edges[0].lag_bytes == end - START
    assert running.report().edges[0].lag_seconds > 0


@pytest.mark.parametrize(
    ("slot", "position", "expected"),
    [
        (SlotIdentity("6999", "shop", "streamer_shop_a"), START, "belongs to cluster 6999"),
        (SlotIdentity("7000", "other", "streamer_shop_a"), START, 'database "other"'),
        (SLOT, LSN(START - 1), "the slot was created anew or advanced"),
        (SLOT, LSN(START + 1), "restored from a backup"),
    ],
    ids=["another cluster", "another database", "a slot that has gone on without us", "a source that has gone back"],
)
def test_progress_that_does_not_belong_to_the_slot_is_refused(
    slot: SlotIdentity, position: LSN, expected: str, source: MemorySource, start: Start
) -> None:
    target = database()
    target.progress[EdgeName("shop", "a", "b")] = Progress(slot, position, {NAME: position})
    running = start(source, b=target)
    wait_for(lambda: running.report().edges[0].state is State.FAILED, "the edge to have failed")
    problem = running.report().edges[0].problem
    assert problem is not None
    assert expected in problem.message
    assert "streamer teardown --sync shop" in problem.hint


def test_a_missing_slot_is_told_by_what_it_means(source: MemorySource, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise SlotError('slot "s" does not exist', "changes are lost")

    monkeypatch.setattr(source, "state", missing)
    running = start(source, b=database())
    wait_for(lambda: running.report().edges[0].state is State.FAILED, "the edge to have failed")
    problem = running.report().edges[0].problem
    assert problem is not None
    assert problem.hint == "run: streamer setup"
