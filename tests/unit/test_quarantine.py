"""What is held of a group, told by a target that refuses what it is told to: found in few attempts, with what follows, in order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from streamer.assembly import on_error
from streamer.errors import ApplyError, StreamerError
from streamer.model import UNCHANGED, Change, EdgeName, Identity, Kind, TableName
from streamer.ports import Written
from streamer.sinks.quarantine import Care, Hold, Quarantine, RowIds
from streamer.sinks.quarantine_table import QuarantineTable, Wanted, changes_of
from tests.changes import PLAIN, delete, group, insert, relation, table, truncate, update
from tests.configs import make_config

EDGE = EdgeName("shop", "a", "b")
T = relation(table(id="integer", name="text"))
U = relation(table("u", id="integer", name="text"))
BAD = "bad"


class Target:
    """Refuses every run of changes with a bad one, and keeps the others."""

    def __init__(self, *held: Change, on: Callable[[TableName], bool] = lambda table: True) -> None:
        self.written: list[Change] = []
        self.attempts = 0
        rows = RowIds(EDGE, lambda relation: relation.key or None)
        self.hold = Hold(rows, {row for change in held for row in rows.of(change)})
        self._on = on

    def attempt(self, changes: Sequence[Change]) -> None:
        self.attempts += 1
        if any(BAD in (new or ()) for _, _, _, new in changes):
            raise ValueError(BAD)
        self.written += changes

    @property
    def care(self) -> Care:
        return Care(self.hold, self.attempt, lambda e: str(e) if isinstance(e, ValueError) else None, complaint, self._on)

    def write(self, *changes: Change) -> Target:
        self.care.write(changes)
        return self

    @property
    def kept(self) -> list[tuple[Change, str | None]]:
        return [(held.change, held.error) for held in self.hold.kept]


def complaint(change: Change, error: Exception) -> StreamerError:
    return ApplyError(f"{change[0]} refused: {error}")


def test_what_is_taken_at_once_is_tried_once() -> None:
    changes = [insert(T, str(n), "good") for n in range(1000)]
    target = Target().write(*changes)
    assert (target.written, target.attempts, target.kept) == (changes, 1, [])


def test_one_bad_row_of_a_thousand_is_found_in_few_attempts() -> None:
    changes = [insert(T, str(n), BAD if n == 617 else "good") for n in range(1000)]
    target = Target().write(*changes)
    assert target.kept == [(changes[617], BAD)]
    assert target.written == [c for c in changes if c is not changes[617]]
    assert target.attempts <= 22  # two for each halving


def test_what_comes_later_of_a_refused_row_follows_and_is_not_tried() -> None:
    first, second, third = insert(T, "1", BAD), update(T, "1", "good"), delete(T, "1", None)
    target = Target().write(insert(T, "2", "x"), first, second, update(T, "2", "y"), third)
    assert target.kept == [(first, BAD), (second, None), (third, None)]
    assert target.written == [insert(T, "2", "x"), update(T, "2", "y")]


def test_a_changed_key_is_followed_under_both_keys() -> None:
    moved = update(T, "2", "x", old=("1", UNCHANGED))
    target = Target(insert(T, "1", "x")).write(moved, insert(T, "1", "new"), update(T, "2", "y"), insert(T, "3", "z"))
    assert [change for change, _ in target.kept] == [moved, insert(T, "1", "new"), update(T, "2", "y")]
    assert target.written == [insert(T, "3", "z")]


def test_a_row_that_moves_to_a_held_key_is_held() -> None:
    target = Target(insert(T, "1", "x")).write(update(T, "1", "y", old=("5", UNCHANGED)), update(T, "5", "z"))
    assert [error for _, error in target.kept] == [None, None]
    assert target.written == []


def test_a_key_that_an_update_leaves_unchanged_is_that_of_the_old_row() -> None:
    rows = RowIds(EDGE, lambda relation: relation.key)
    wide = (Kind.UPDATE, T, ("1", UNCHANGED), (UNCHANGED, "y"))
    assert set(rows.of(wide)) == {rows.of(insert(T, "1", "x"))[0]}
    assert rows.key(wide) == {"id": "1"}


def test_rows_of_different_tables_and_edges_are_different() -> None:
    other = RowIds(EdgeName("shop", "a", "c"), lambda relation: relation.key)
    rows = RowIds(EDGE, lambda relation: relation.key)
    one = insert(T, "1", "x")
    assert len({rows.of(one)[0], rows.of(insert(U, "1", "x"))[0], other.of(one)[0], rows.of(insert(T, "2", "x"))[0]}) == 4


def test_without_a_key_a_row_is_all_its_values() -> None:
    full = relation(PLAIN, Identity.FULL)
    target = Target().write(
        insert(full, "1", BAD), update(full, "2", "x", old=("1", BAD)), delete(full, "2", "x"), insert(full, "1", "x")
    )
    assert [error for _, error in target.kept] == [BAD, None, None]
    assert target.written == [insert(full, "1", "x")]


def test_a_truncate_frees_the_rows_of_its_table() -> None:
    changes = [insert(T, "1", BAD), insert(U, "1", BAD), truncate(T), insert(T, "1", "x"), update(U, "1", "x"), insert(T, "2", BAD)]
    target = Target(insert(T, "7", "x")).write(*changes, update(T, "7", "y"))
    assert [change for change, _ in target.kept] == [changes[1], changes[4], changes[5]]
    assert target.written == [truncate(T), insert(T, "1", "x"), update(T, "7", "y")]
    assert target.hold.emptied == {T.table}


def test_truncates_that_stand_together_are_tried_together() -> None:
    target = Target().write(insert(T, "1", "x"), truncate(T), truncate(U), truncate(T), insert(T, "1", BAD))
    assert target.written == [insert(T, "1", "x"), truncate(T), truncate(U), truncate(T)]
    assert len(target.kept) == 1


def test_a_truncate_that_is_refused_stops_everything() -> None:
    target = Target()
    refusing = Care(target.hold, _refuse, lambda e: str(e) if isinstance(e, ValueError) else None, complaint, lambda table: True)
    with pytest.raises(ApplyError, match="truncate refused"):
        refusing.write([truncate(T), truncate(U)])


def _refuse(changes: Sequence[Change]) -> None:
    raise ValueError("no")


def test_a_table_without_a_quarantine_stops_everything() -> None:
    target = Target(on=lambda table: table.name == "u")
    assert Target(on=lambda table: table.name == "u").write(insert(U, "1", BAD)).kept
    with pytest.raises(ApplyError, match="insert refused: bad"):
        target.write(insert(U, "1", BAD), insert(T, "1", BAD))


def test_what_is_no_matter_of_a_row_is_not_held() -> None:
    target = Target()

    def broken(changes: Sequence[Change]) -> None:
        raise ConnectionError("gone")

    care = Care(target.hold, broken, lambda e: str(e) if isinstance(e, ValueError) else None, complaint, lambda table: True)
    with pytest.raises(ConnectionError):
        care.write([insert(T, "1", "x"), insert(T, "2", "x")])
    assert target.kept == []


def test_a_transaction_that_is_refused_at_its_end_is_held_whole() -> None:
    transactions = [[insert(T, str(n), "x"), insert(U, str(n), "late" if n == 3 else "x")] for n in range(6)]
    transactions.append([update(T, "3", "y"), update(T, "4", "y")])
    target = Target()

    def together(work: Callable[[], None]) -> None:
        before = list(target.written)
        work()
        if any("late" in (new or ()) for _, _, _, new in target.written):
            target.written = before
            raise ValueError("at the end")

    target.care.write_whole(transactions, together)
    held = [(transactions[3][0], "at the end"), (transactions[3][1], "at the end"), (transactions[6][0], None)]
    assert target.kept == held
    assert target.written == [c for t in transactions for c in t if c not in [change for change, _ in held]]


def test_random_histories_hold_what_a_slow_and_simple_writer_holds() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(100):
        changes = [_random_change(chance) for _ in range(chance.randrange(1, 60))]
        fast = Target().write(*changes)
        slow = Target()
        for change in changes:
            slow.write(change)
        assert (fast.kept, fast.written) == (slow.kept, slow.written)


def _random_change(chance: random.Random) -> Change:
    r, key, name = chance.choice((T, U)), str(chance.randrange(8)), chance.choice((BAD, "x", "y", "z"))
    kind = chance.randrange(10)
    if kind == 0:
        return truncate(r)
    if kind < 4:
        return update(r, key, name)
    if kind < 6:
        return update(r, str(chance.randrange(8)), name, old=(key, UNCHANGED))
    return insert(r, key, name) if kind < 8 else delete(r, key, None)


# -- the config -------------------------------------------------------------------------------------------------------------------


def test_a_table_may_differ_from_its_sync_and_is_known_by_its_name_on_the_target(tmp_path: Path) -> None:
    nodes = {"a": "postgresql://a", "b": f"sqlite:///{tmp_path}/b"}
    tables = {"t": {"on_error": "stop", "rename": "crm.u"}, "u": {}}
    config = make_config(nodes, on_error="quarantine", table=tables)
    sync = config.syncs["shop"]
    assert [sync.quarantines(TableName("public", name)) for name in "tuv"] == [False, True, True]
    on_target = on_error(config, EDGE)
    assert [on_target(TableName(*name)) for name in (("crm", "u"), ("public", "u"))] == [False, True]
    plain = make_config(nodes, table={"t": {"on_error": "quarantine"}}).syncs["shop"]
    assert [plain.quarantines(TableName("public", name)) for name in "tu"] == [True, False]


# -- the sink's side ----------------------------------------------------------------------------------------------------


class Ledger:
    """Counts what it is asked."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.asked: list[str] = []

    def count(self) -> int:
        self.asked.append("count")
        return self.number

    def known(self, rows: object) -> set[str]:
        self.asked.append("known")
        return set()

    def empty(self, table: TableName) -> int:
        self.asked.append("empty")
        emptied, self.number = self.number, 0
        return emptied

    def keep(self, held: Sequence[object], group: object) -> None:
        self.asked.append("keep")
        self.number += len(held)


def test_while_nothing_is_held_the_target_is_asked_once() -> None:
    ledger = Ledger()
    quarantine = Quarantine(EDGE, ledger, lambda table: True)
    for _ in range(3):
        one = group(insert(T, "1", "x"))
        hold = quarantine.hold(one.changes, lambda relation: relation.key)
        assert quarantine.keep(hold, one, Written(inserted=1)) == Written(inserted=1)
        assert quarantine.held() == 0
    assert ledger.asked == ["count"]


def test_what_was_held_is_counted_and_noticed_when_it_is_gone() -> None:
    ledger = Ledger()
    quarantine = Quarantine(EDGE, ledger, lambda table: True)
    one = group(insert(T, "1", BAD))
    hold = quarantine.hold(one.changes, lambda relation: relation.key)
    hold.keep(one.changes[0], "no")
    written = quarantine.keep(hold, one, Written())
    assert (written.quarantined, written.refusal) == (1, 'insert of "public.t" id=1: no')
    assert quarantine.holding
    ledger.number = 0
    assert quarantine.held() == 0
    assert not quarantine.holding


def test_after_an_undone_transaction_the_target_is_asked_again() -> None:
    ledger = Ledger(2)
    quarantine = Quarantine(EDGE, ledger, lambda table: True)
    one = group(truncate(T))
    hold = quarantine.hold(one.changes, lambda relation: relation.key)
    hold.follows(one.changes[0])
    assert quarantine.keep(hold, one, Written()) == Written(voided=2)
    assert not quarantine.holding
    ledger.number = 2
    quarantine.undone()
    assert quarantine.holding
    assert quarantine.held() == 2


def test_what_is_stored_is_plain_ascii_and_comes_back_as_it_was() -> None:
    stored: list[object] = []

    def execute(statement: str, parameters: Sequence[object]) -> list[tuple[object, ...]]:
        if statement.startswith("INSERT"):
            stored.extend(parameters)
            return []
        return [(1, *stored)]

    quarantine_table = QuarantineTable(EDGE, execute)
    change = (Kind.UPDATE, relation(PLAIN, Identity.FULL), ("1", None), (UNCHANGED, "Zürich €"))
    hold = Target().hold
    hold.keep(change, "no")
    quarantine_table.keep(hold.kept, group(change))
    assert all(value.isascii() for value in stored if isinstance(value, str))
    (back,) = changes_of(quarantine_table.read(Wanted()))
    assert (back[0], back[2], back[3]) == (change[0], change[2], change[3])
    assert (back[1].table, back[1].columns, back[1].identity) == (change[1].table, change[1].columns, change[1].identity)
