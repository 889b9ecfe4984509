"""What every sink with a quarantine must do with rows that its target refuses: hold them and what follows, and write the rest."""

from __future__ import annotations

import json

import pytest

from streamer.errors import ApplyError
from streamer.model import LSN, UNCHANGED, Change, Identity, TableName
from streamer.sinks.quarantine import OnError
from tests.changes import PLAIN, delete, group, insert, relation, table, truncate, update, write
from tests.integration.targets import Target, has_quarantine, opened
from tests.waiting import wait_for_equal

NAMED = table("named", id="integer", name="text")
R = relation(NAMED)
pytestmark = has_quarantine


def holds(table: TableName) -> bool:
    return True


def held(target: Target) -> list[tuple[str | None, list[str | None] | None, bool]]:
    """What is in quarantine: kind, values of the new row, whether it was refused itself."""
    return [
        (kind, None if row is None else list(json.loads(row).values()), error is not None) for kind, _, row, error in target.held()
    ]


def named(target: Target) -> None:
    """A table with a unique column besides the key, with a row that only the target has."""
    target.create(NAMED, "name")
    with opened(target) as sink:
        write(sink, group(insert(R, "1000", "taken"), to=110))


def quarantined(target: Target, *changes: Change, to: int = 200, on_error: OnError = holds) -> int:
    """Write the changes in one group; return how many of them are held."""
    with opened(target, on_error) as sink:
        return write(sink, group(*changes, to=to)).quarantined


def test_a_refused_row_is_held_with_the_error_and_the_rest_is_written(target: Target) -> None:
    named(target)
    with opened(target, holds) as sink:
        written = write(sink, group(insert(R, "1", "a"), insert(R, "2", "taken"), insert(R, "3", "b")))
        assert (written.inserted, written.quarantined) == (2, 1)
        assert written.refusal.startswith('insert of "public.named" id=2: ')
        assert sink.quarantined() == 1
    assert target.rows(NAMED) == [("1", "a"), ("1000", "taken"), ("3", "b")]
    assert target.position() == LSN(200)
    assert held(target) == [("insert", ["2", "taken"], True)]


def test_without_a_quarantine_a_refused_row_stops_everything(target: Target) -> None:
    named(target)
    others = TableName("public", "others")
    with opened(target, lambda table: table == others) as sink, pytest.raises(ApplyError, match=r"public\.named.*2"):
        write(sink, group(insert(R, "1", "a"), insert(R, "2", "taken")))
    assert (target.rows(NAMED), target.held(), target.position()) == ([("1000", "taken")], [], LSN(110))


def test_later_changes_of_a_held_row_follow_it(target: Target) -> None:
    named(target)
    assert (
        quarantined(target, insert(R, "2", "taken"), update(R, "2", "free"), delete(R, "2", "free")) == 0
    )  # nothing is left of it
    assert quarantined(target, insert(R, "2", "taken")) == 1
    assert quarantined(target, update(R, "2", "free"), insert(R, "3", "c"), to=300) == 1
    assert quarantined(target, delete(R, "2", "free"), update(R, "3", "d"), to=400) == 1
    assert target.rows(NAMED) == [("1000", "taken"), ("3", "d")]
    assert held(target) == [("insert", ["2", "taken"], True), ("update", ["2", "free"], False), ("delete", None, False)]


def test_rows_that_are_held_follow_although_the_config_says_stop_now(target: Target) -> None:
    named(target)
    quarantined(target, insert(R, "2", "taken"))
    with opened(target) as sink:
        assert write(sink, group(update(R, "2", "free"), insert(R, "4", "e"), to=300)).quarantined == 1
        with pytest.raises(ApplyError, match=r"public\.named.*5"):
            write(sink, group(insert(R, "5", "taken"), to=400))
    assert target.rows(NAMED) == [("1000", "taken"), ("4", "e")]


def test_a_row_that_changes_its_key_takes_the_new_key_with_it(target: Target) -> None:
    named(target)
    quarantined(target, insert(R, "2", "taken"))
    quarantined(target, update(R, "7", "taken", old=("2", UNCHANGED)), insert(R, "2", "again"), to=300)
    quarantined(target, update(R, "7", "free"), insert(R, "8", "h"), to=400)
    assert target.rows(NAMED) == [("1000", "taken"), ("8", "h")]
    assert [(kind, row) for kind, row, _ in held(target)] == [
        ("insert", ["2", "taken"]),
        ("update", ["7", "taken"]),
        ("insert", ["2", "again"]),
        ("update", ["7", "free"]),
    ]


def test_a_row_that_takes_the_key_of_a_held_one_is_held_as_well(target: Target) -> None:
    named(target)
    quarantined(target, insert(R, "2", "taken"), insert(R, "3", "c"))
    quarantined(target, delete(R, "2", "taken"), update(R, "2", "c", old=("3", UNCHANGED)), update(R, "2", "d"), to=300)
    assert target.rows(NAMED) == [("1000", "taken"), ("3", "c")]
    assert [kind for kind, _, _ in held(target)] == ["insert", "delete", "update", "update"]


def test_a_truncate_ends_what_is_held_of_the_table_and_of_no_other(target: Target) -> None:
    named(target)
    other = table("other", id="integer", label="text")
    target.create(other, "label")
    o = relation(other)
    with opened(target, holds) as sink:
        write(sink, group(insert(o, "1", "x"), insert(o, "2", "x"), insert(R, "2", "taken"), to=200))
        assert sink.quarantined() == 2
        done = write(sink, group(insert(R, "3", "taken"), truncate(R), insert(R, "2", "b"), update(R, "2", "c"), to=300))
        assert (done.voided, done.quarantined, sink.quarantined()) == (1, 0, 1)
    assert target.rows(NAMED) == [("2", "c")]
    assert held(target) == [("insert", ["2", "x"], True)]


def test_rows_without_a_key_follow_by_all_their_values(target: Target) -> None:
    target.create(PLAIN, "b")
    full = relation(PLAIN, Identity.FULL)
    with opened(target, holds) as sink:
        write(sink, group(insert(full, "1", "x"), insert(full, "2", "x"), to=200))
        write(sink, group(update(full, "2", "y", old=("2", "x")), to=300))
        write(sink, group(delete(full, "2", "y"), update(full, "1", "z", old=("1", "x")), to=400))
    assert target.rows(PLAIN) == [("1", "z")]
    assert [(kind, refused) for kind, _, refused in held(target)] == [("insert", True), ("update", False), ("delete", False)]


def test_a_refused_row_late_in_a_large_transaction_is_held(target: Target) -> None:
    named(target)
    with opened(target, holds) as sink:
        write(sink, group(*(insert(R, str(i), f"n{i}") for i in range(300)), insert(R, "300", "taken"), complete=False))
        write(sink, group(*(update(R, str(i), f"m{i}") for i in range(290, 303)), complete=False))
        assert target.held() == []
        write(sink, group(update(R, "300", "free"), insert(R, "400", "taken"), to=300))
    rows = {key: name for key, name in target.rows(NAMED)}
    assert len(rows) == 301
    assert (rows["299"], rows.get("300"), rows.get("400")) == ("m299", None, None)
    assert held(target) == [
        ("insert", ["300", "taken"], True),
        ("update", ["300", "m300"], False),
        ("update", ["300", "free"], False),
        ("insert", ["400", "taken"], True),
    ]


def test_what_was_not_committed_is_not_held(target: Target) -> None:
    named(target)
    with opened(target, holds) as sink:
        write(sink, group(insert(R, "2", "taken"), complete=False))
        assert sink.quarantined() == 1
    assert target.held() == []
    with opened(target, holds) as sink:
        assert sink.quarantined() == 0
        write(sink, group(insert(R, "2", "taken")))
    assert len(target.held()) == 1


def test_that_nothing_is_held_any_more_is_noticed(target: Target) -> None:
    named(target)
    with opened(target, holds) as sink:
        write(sink, group(insert(R, "2", "taken")))
        target.let_go()
        write(sink, group(insert(R, "2", "b"), to=300))  # its key is free again, at once
        wait_for_equal(sink.quarantined, 0, "what is held")
    assert target.rows(NAMED) == [("1000", "taken"), ("2", "b")]


def test_a_value_that_the_target_cannot_hold_is_held(target: Target) -> None:
    floats = table("floats", id="integer", f="double precision")
    target.create(floats)
    with opened(target, holds) as sink:
        written = write(sink, group(insert(relation(floats), "1", "1.5"), insert(relation(floats), "2", "Infinity")))
    (*_, last) = target.rows(floats)
    if last[0] == "1":  # MySQL knows no infinity
        assert held(target) == [("insert", ["2", "Infinity"], True)]
        assert "Infinity" in written.refusal
    else:
        assert written.quarantined == 0
