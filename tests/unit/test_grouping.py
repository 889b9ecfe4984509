"""From pieces to groups; the queue; and which position may be confirmed."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.grouping import groups, idle_group
from streamer.model import LSN, Idle, Origin, Piece, Sharing, Transaction
from streamer.progress import Confirmation
from streamer.queue import MUCH, PieceQueue
from tests.changes import insert, relation, table
from tests.waiting import wait_for

T = relation(table(id="integer"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE_ORIGIN = Sharing.ONE_ORIGIN


def piece(position: int, *keys: str, origin: str = "a", whole: bool = True, transaction: Transaction | None = None) -> Piece:
    made = transaction or Transaction(LSN(position), Origin(origin, LSN(position), NOW), origin)
    return Piece(made, [insert(T, key) for key in keys], 10, LSN(position + 5) if whole else None)


def sized(position: int, size: int) -> Piece:
    return replace(piece(position, "1"), size=size)


def test_whole_transactions_of_one_origin_share_a_group_that_ends_with_the_last() -> None:
    (group,) = groups([piece(10, "1"), piece(20, "2", "3")], ONE_ORIGIN)
    assert ([c[3] for c in group.changes], group.position) == ([("1",), ("2",), ("3",)], LSN(25))
    assert (group.complete, group.transactions) == (True, 2)
    assert group.origin.position == LSN(20)


def test_a_group_tells_where_its_transactions_end() -> None:
    begun = piece(30, "4", whole=False)
    (group,) = groups([piece(10, "1"), piece(20, "2", "3"), begun], ONE_ORIGIN)
    assert list(group.ends) == [1, 3]
    (rest,) = groups([piece(30, "5", "6", transaction=begun.transaction), piece(40, "7")], ONE_ORIGIN)
    assert list(rest.ends) == [2, 3]


def test_a_group_mixes_origins_only_where_the_sink_lets_it() -> None:
    pieces = [piece(10, "1"), piece(20, "2", origin="c"), piece(30, "3", origin="b")]
    made = list(groups(pieces, ONE_ORIGIN))
    assert [(g.origin.node, g.position) for g in made] == [("a", LSN(15)), ("c", LSN(25)), ("b", LSN(35))]
    (group,) = groups(pieces, Sharing.ANY)
    assert (group.origin.node, group.position, group.transactions) == ("b", LSN(35), 3)


def test_an_unfinished_transaction_leaves_its_group_incomplete_just_past_the_commit_record() -> None:
    begun = piece(20, "2", whole=False)
    (group,) = groups([piece(10, "1"), begun], ONE_ORIGIN)
    assert (group.complete, group.position, group.transactions) == (False, LSN(21), 1)
    (rest,) = groups([piece(20, "3", transaction=begun.transaction)], ONE_ORIGIN)
    assert (rest.complete, rest.position) == (True, LSN(25))
    assert group.commit == rest.commit == LSN(20)


def test_an_idle_group_only_moves_progress() -> None:
    last = Origin("a", LSN(5), NOW)
    group = idle_group(last, Idle(LSN(99), urgent=False, seen={"c": NOW}))
    assert (group.origin, list(group.changes), group.position, group.seen) == (last, [], LSN(99), {"c": NOW})
    assert group.idle
    assert not any(group.idle for group in groups([piece(10, "1"), piece(20, "2", whole=False)], Sharing.NONE))


def test_transactions_are_kept_apart_where_the_sink_wants_each_by_itself() -> None:
    begun = piece(20, "2", whole=False)
    rest = piece(20, "3", transaction=begun.transaction)
    made = list(groups([piece(10, "1"), begun, rest, piece(30, "4")], Sharing.NONE))
    assert [[c[3] for c in group.changes] for group in made] == [[("1",)], [("2",), ("3",)], [("4",)]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=20), st.sampled_from(Sharing))
def test_groups_keep_every_change_in_order(drawn: list[tuple[str, int]], sharing: Sharing) -> None:
    pieces = [piece(10 * i, *(f"{i}.{n}" for n in range(size)), origin=o) for i, (o, size) in enumerate(drawn)]
    made = list(groups(pieces, sharing))
    assert [c for g in made for c in g.changes] == [c for p in pieces for c in p.changes]
    assert sum(g.transactions for g in made) == len(pieces)
    assert [g.position for g in made] == sorted(g.position for g in made)


def test_a_queue_is_bounded_in_bytes_but_takes_anything_when_empty() -> None:
    queue = PieceQueue(15)
    assert queue.put([piece(1, "1"), piece(2, "2")], 0)
    assert not queue.put([piece(3, "3")], 0)
    assert len(queue.take(10, 0)) == 1
    assert not queue.put([piece(3, "3")], 0)
    queue.take(100, 0)
    assert queue.put([piece(3, "3")], 0)


def test_take_gives_at_least_one_item_however_large() -> None:
    queue = PieceQueue(15)
    queue.put([piece(1, "1"), piece(2, "2"), Idle(LSN(9), urgent=False)], 0)
    assert [len(queue.take(1, 0)) for _ in range(4)] == [1, 1, 1, 0]


def test_where_much_is_waiting_a_group_lets_more_come_and_where_little_is_it_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BREATH_SECONDS", "GATHER_SECONDS"):
        monkeypatch.setattr(f"streamer.queue.{name}", 60.0)
    queue = PieceQueue(10 * MUCH)
    queue.put([sized(1, MUCH - 1)], 0)
    assert len(queue.take(3 * MUCH, 0)) == 1

    queue.put([sized(2, MUCH)], 0)
    taken: list[Piece | Idle] = []
    thread = threading.Thread(target=lambda: taken.extend(queue.take(3 * MUCH, 0)))
    thread.start()
    queue.put([sized(3, MUCH)], 0)
    assert thread.is_alive()
    queue.put([sized(4, MUCH)], 0)
    thread.join(20)
    assert [item.size for item in taken if isinstance(item, Piece)] == [MUCH] * 3


def test_a_group_that_lets_more_come_goes_at_once_when_the_edge_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.queue.BREATH_SECONDS", 60.0)
    queue = PieceQueue(10 * MUCH)
    queue.put([sized(1, MUCH)], 0)
    thread = threading.Thread(target=queue.take, args=(3 * MUCH, 0))
    thread.start()

    def woken() -> bool:
        queue.wake()
        return not thread.is_alive()

    wait_for(woken, "the writer to go")


def test_what_the_writer_has_in_hand_waits_like_what_is_queued() -> None:
    queue = PieceQueue(1000)
    assert (queue.empty, queue.oldest, queue.held_seconds) == (True, None, 0.0)
    first, second = piece(1, "1"), piece(2, "2")
    later = replace(second.transaction, origin=replace(second.transaction.origin, commit_time=NOW + timedelta(seconds=1)))
    queue.put([Idle(LSN(1), urgent=False), first, replace(second, transaction=later)], 0)
    assert queue.oldest == NOW
    queue.take(120, 0)
    queue.clear()
    assert (queue.size, queue.oldest, queue.held_seconds > 0) == (0, NOW, True)
    queue.put([replace(second, transaction=later)], 0)
    queue.done()
    assert (queue.oldest, queue.held_seconds, queue.empty) == (NOW + timedelta(seconds=1), 0.0, False)


def test_what_was_let_go_of_is_lacked_until_it_comes_again() -> None:
    queue = PieceQueue(1000)
    queue.put([piece(1, "1")], 0)
    queue.take(120, 0)
    queue.drop()
    queue.clear()
    assert (queue.empty, queue.oldest) == (True, NOW)
    assert (queue.take(120, 0), queue.oldest) == ([], NOW)
    queue.put([piece(1, "1")], 0)
    queue.take(120, 0)
    queue.done()
    assert (queue.empty, queue.oldest) == (True, None)


def test_a_blocked_put_goes_on_when_the_queue_is_cleared() -> None:
    queue = PieceQueue(10)
    queue.put([piece(1, "1")], 0)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(queue.put([piece(2, "2")], 20)))
    thread.start()
    queue.clear()
    thread.join()
    assert done == [True]


def test_only_what_every_edge_holds_is_confirmed() -> None:
    confirmation = Confirmation(LSN(0))
    assert confirmation.advance([LSN(10), LSN(20)]) == LSN(10)
    assert confirmation.advance([LSN(30), None]) == LSN(10)
    assert confirmation.advance([LSN(30), LSN(25)]) == LSN(25)


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 50).map(LSN)), min_size=1, max_size=3), max_size=20))
def test_confirmation_never_goes_back_and_never_past_an_edge(rounds: list[list[LSN | None]]) -> None:
    confirmation, last = Confirmation(LSN(0)), LSN(0)
    for durable in rounds:
        position = confirmation.advance(durable)
        assert position >= last
        if position > last:
            assert all(d is not None and d >= position for d in durable)
        last = position
