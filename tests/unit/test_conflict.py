"""The Resolver, one change at a time: what it finds, who wins by which policy, and what remains to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from streamer.errors import SchemaError
from streamer.model import UNCHANGED, Change, Identity, Kind
from streamer.sinks.conflict import (
    Answer,
    ConflictKind,
    Effect,
    HandlerError,
    Premature,
    Removal,
    Resolution,
    Rules,
    Stored,
    Unresolved,
    Version,
)
from streamer.sinks.touched import Unique, Values
from tests.unit.conflict_cases import (
    AFTER,
    BEFORE,
    DELETE,
    INSERT,
    LATEST,
    UPDATE,
    T,
    at,
    changes,
    delete,
    insert,
    only,
    relation,
    resolve,
    stored,
    tombstone,
    update,
)

# -- no conflict -------------------------------------------------------------------------------------------------------------------


def test_changes_that_meet_what_their_origin_knew_are_written_as_they_are() -> None:
    rows = {"1": stored("1", "x"), "2": stored("2", "x", by="b", when=2)}
    resolution = resolve(update(("1", "x"), ("1", "y")), delete("2", "x"), insert("3", "z"), rows=rows, seen={"a": 1})
    assert resolution.conflicts == []
    assert changes(resolution) == [
        (UPDATE, ("1", "x"), ("1", "y")),
        (DELETE, ("2", "x"), None),
        (INSERT, None, ("3", "z")),
    ]


def test_an_insert_that_meets_a_row_did_not_know_it_though_its_origin_had_seen_as_much_of_other_tables() -> None:
    """A copy of one table tells the time of its snapshot for all; what was added to a row of another table was lost."""
    of, rules = relation("kn"), Rules("latest", delta=frozenset("n"))
    resolution = resolve(insert("1", "3", into=of), rows={"1": stored("1", "2")}, rules=rules, seen={"a": 5})
    assert changes(resolution) == [(UPDATE, ("1", "2"), ("1", "5"))]
    assert only(resolution).kind is ConflictKind.INSERT_EXISTS


def test_a_change_from_the_origin_of_the_stored_version_applies_though_its_clock_stepped_back() -> None:
    resolution = resolve(update(("1", "x"), ("1", "y")), rows={"1": stored("1", "x", by="b", when=20)})
    assert resolution == Resolution([Effect(update(("1", "x"), ("1", "y")))])


def test_later_changes_of_a_transaction_see_the_earlier_ones() -> None:
    resolution = resolve(insert("1", "x"), update(("1", "x"), ("1", "y")), delete("1", "y"), insert("1", "z"))
    assert resolution.conflicts == []
    assert [kind for kind, _, _ in changes(resolution)] == [INSERT, UPDATE, DELETE, INSERT]


@pytest.mark.parametrize(("old", "conflicts"), [("x", 0), ("w", 1)])
def test_a_row_of_unknown_age_was_written_meanwhile_if_it_is_not_the_old_row(old: str, conflicts: int) -> None:
    resolution = resolve(update(("1", old), ("1", "y")), rows={"1": stored("1", "x", when=None)})
    assert len(resolution.conflicts) == conflicts
    assert changes(resolution) == [(UPDATE, ("1", "x"), ("1", "y"))]


def test_a_row_of_unknown_age_is_no_conflict_without_the_old_row() -> None:
    rows = {"1": stored("1", "x", when=None)}
    assert not resolve(update(None, ("1", "y"), relation(identity=Identity.DEFAULT)), rows=rows).conflicts


# -- the eight kinds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "there", "kind"),
    [
        (insert("1", "y"), stored("1", "x"), ConflictKind.INSERT_EXISTS),
        (update(("1", "w"), ("1", "y")), stored("1", "x"), ConflictKind.UPDATE_ORIGIN_DIFFERS),
        (update(("1", "w"), ("1", "y")), None, ConflictKind.UPDATE_MISSING),
        (update(("1", "w"), ("1", "y")), tombstone(), ConflictKind.UPDATE_DELETED),
        (delete("1", "w"), stored("1", "x"), ConflictKind.DELETE_ORIGIN_DIFFERS),
        (delete("1", "w"), None, ConflictKind.DELETE_MISSING),
        (update(("2", "w"), ("1", "w")), stored("1", "x"), ConflictKind.UPDATE_EXISTS),
    ],
)
def test_a_conflict_has_a_kind_and_both_rows(change: Change, there: Stored | None, kind: ConflictKind) -> None:
    rows = {"2": stored("2", "w", by="b")} | ({"1": there} if there else {})
    conflict = only(resolve(change, rows=rows))
    assert (conflict.kind, conflict.key, conflict.change, conflict.winner) == (kind, ("1",), change[0], "incoming")
    assert (conflict.current, conflict.incoming) == (there.row if there else None, change[3])
    assert (conflict.current_version, conflict.incoming_version) == (there.version if there else None, Version(at(10), "b"))
    assert (conflict.rule, conflict.error) == ("latest", None)


def test_several_unique_keys_that_are_held_are_one_kind() -> None:
    rows = {"2": stored("2", "x", "p"), "3": stored("3", "y", "q")}
    resolution = resolve(insert("1", "x", "q", into=relation("kvw")), rows=rows, uniques=((1,), (2,)))
    assert {conflict.kind for conflict in resolution.conflicts} == {ConflictKind.MULTIPLE_UNIQUE_CONFLICTS}
    both = resolve(insert("2", "y", "p", into=relation("kvw")), rows=rows, uniques=((1,), (2,)), removed=["3"])
    assert only(both).kind is ConflictKind.MULTIPLE_UNIQUE_CONFLICTS


def test_a_unique_value_that_is_equal_to_one_here_collides_though_its_text_differs() -> None:
    rows = {"2": stored("2", "x", when=BEFORE)}
    alike: dict[Unique, dict[Values, Values]] = {(1,): {("X",): ("x",)}}
    (removal,) = resolve(insert("1", "X"), rows=rows, uniques=((1,),), alike=alike).removals
    assert removal.key == ("2",)
    freed = resolve(update(("2", "x"), ("2", "y")), insert("1", "X"), rows=rows, uniques=((1,),), alike=alike, seen={"a": AFTER})
    assert (freed.removals, len(freed.effects)) == ([], 2)


def test_null_collides_with_null_only_where_nulls_are_not_distinct() -> None:
    rows = {"2": stored("2", None, when=BEFORE)}
    assert not resolve(insert("1", None), rows=rows, uniques=((1,),)).removals
    (removal,) = resolve(insert("1", None), rows=rows, uniques=((1,),), nulls_alike={(1,)}).removals
    assert removal.key == ("2",)


# -- policies ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "when", "winner"),
    [
        ("latest", BEFORE, "incoming"),
        ("latest", AFTER, "current"),
        ("apply", AFTER, "incoming"),
        ("keep", BEFORE, "current"),
        (("a", "b"), BEFORE, "current"),
        (("b", "a"), AFTER, "incoming"),
        (("b",), AFTER, "incoming"),
    ],
)
@pytest.mark.parametrize(
    "change", [insert("1", "y"), update(("1", "w"), ("1", "y")), delete("1", "w")], ids=["insert", "update", "delete"]
)
def test_a_policy_decides(policy: str | tuple[str, ...], when: int, winner: str, change: Change) -> None:
    resolution = resolve(change, rows={"1": stored("1", "x", when=when)}, rules=Rules(policy))
    assert only(resolution).winner == winner
    assert only(resolution).rule == (policy if isinstance(policy, str) else ", ".join(policy))
    assert len(resolution.effects) == (winner == "incoming")


@pytest.mark.parametrize(("when", "expected"), [(10, "incoming"), (11, "current")])
def test_at_the_same_time_the_greater_node_name_wins(when: int, expected: str) -> None:
    assert only(resolve(insert("1", "y"), rows={"1": stored("1", "x", when=when)})).winner == expected


@pytest.mark.parametrize(
    ("policy", "when", "winner"),
    [
        ("latest", BEFORE, "incoming"),
        ("latest", AFTER, "current"),
        ("apply", AFTER, "incoming"),
        ("keep", BEFORE, "current"),
        (("a", "b"), BEFORE, "current"),
        (("b", "a"), AFTER, "incoming"),
    ],
)
def test_a_tombstone_is_a_version_like_others(policy: str | tuple[str, ...], when: int, winner: str) -> None:
    resolution = resolve(update(("1", "w"), ("1", "y")), rows={"1": tombstone(when=when)}, rules=Rules(policy))
    assert only(resolution).winner == winner
    assert changes(resolution) == ([(INSERT, None, ("1", "y"))] if winner == "incoming" else [])


@pytest.mark.parametrize("policy", ["latest", "apply", "python:m:f", "error"])
def test_an_insert_that_comes_after_its_delete_stays_out(policy: str) -> None:
    resolution = resolve(insert("1", "y"), rows={"1": tombstone(when=AFTER)}, rules=Rules(policy))
    assert (only(resolution).kind, resolution.effects) == (ConflictKind.UPDATE_DELETED, [])


@pytest.mark.parametrize("there", [None, tombstone(when=BEFORE)])
def test_a_delete_of_nothing_leaves_its_tombstone(there: Stored | None) -> None:
    resolution = resolve(delete("1", "x"), rows={"1": there} if there else {})
    assert resolution.effects == [Effect(delete("1", "x"))]
    assert only(resolution).winner == "incoming"


def test_a_delete_that_is_older_than_the_tombstone_leaves_none() -> None:
    assert resolve(delete("1", "x"), rows={"1": tombstone(when=AFTER)}).effects == []


def test_error_leaves_the_conflict_to_a_person() -> None:
    with pytest.raises(Unresolved, match=r'"public.t": update_origin_differs at key \(1\) of a change from "b"') as caught:
        resolve(update(("1", "w"), ("1", "y")), rows={"1": stored("1", "x")}, rules=Rules("error"))
    assert (caught.value.conflict.winner, caught.value.conflict.current) == (None, ("1", "x"))


# -- functions ---------------------------------------------------------------------------------------------------------------------

PYTHON = Rules("python:shop.rules:newest")


@pytest.mark.parametrize("answer", ["incoming", "current"])
def test_a_function_chooses(answer: Answer) -> None:
    resolution = resolve(insert("1", "y"), rows={"1": stored("1", "x")}, rules=PYTHON, answer=answer)
    assert (only(resolution).winner, only(resolution).rule) == (answer, "python:shop.rules:newest")
    assert len(resolution.effects) == (answer == "incoming")


@pytest.mark.parametrize(
    ("change", "there", "kind"),
    [
        (insert("1", "y"), stored("1", "x"), UPDATE),
        (update(("1", "w"), ("1", "y")), stored("1", "x"), UPDATE),
        (update(("1", "w"), ("1", "y")), tombstone(when=AFTER), INSERT),
        (delete("1", "w"), stored("1", "x"), UPDATE),
    ],
)
def test_a_function_answers_with_a_row(change: Change, there: Stored, kind: Kind) -> None:
    resolution = resolve(change, rows={"1": there}, rules=PYTHON, answer={"k": "1", "v": "both"})
    assert changes(resolution) == [(kind, there.row, ("1", "both"))]
    assert only(resolution).winner == "merged"


@pytest.mark.parametrize(
    ("fallback", "when", "winner"), [("latest", AFTER, "current"), ("apply", AFTER, "incoming"), ("keep", 5, "current")]
)
def test_a_function_that_fails_falls_back(fallback: str, when: int, winner: str) -> None:
    rules = replace(PYTHON, fallback=fallback)
    resolution = resolve(insert("1", "y"), rows={"1": stored("1", "x", when=when)}, rules=rules, answer=HandlerError("it raised"))
    assert (only(resolution).winner, only(resolution).error) == (winner, "it raised")
    assert only(resolution).rule == f"python:shop.rules:newest, then {fallback}"


@pytest.mark.parametrize("answer", [HandlerError("it raised"), {"k": "2", "v": "y"}])
def test_a_function_that_fails_stops_the_stream(answer: Answer | Exception) -> None:
    with pytest.raises(Unresolved) as caught:
        resolve(insert("1", "y"), rows={"1": stored("1", "x")}, rules=PYTHON, answer=answer)
    assert caught.value.conflict.error in ("it raised", "it answered with a row that has another key than (1)")


def test_a_function_cannot_make_one_row_of_two_keys() -> None:
    with pytest.raises(Unresolved, match="the two rows have different keys"):
        resolve(insert("1", "x"), rows={"2": stored("2", "x")}, rules=PYTHON, uniques=((1,),), answer={"k": "1", "v": "x"})


# -- keys that change --------------------------------------------------------------------------------------------------------------

MOVE = update(("1", "x"), ("2", "y"))


def test_a_key_changes_in_place_where_nothing_is_in_the_way() -> None:
    resolution = resolve(MOVE, rows={"1": stored("1", "x"), "2": tombstone()}, seen={"a": 1})
    assert resolution == Resolution([Effect(update(("1", "x"), ("2", "y")))])


def test_a_row_that_was_changed_later_stays_and_the_moved_one_comes_beside_it() -> None:
    resolution = resolve(MOVE, rows={"1": stored("1", "z", when=AFTER)})
    assert changes(resolution) == [(INSERT, None, ("2", "y"))]
    assert (only(resolution).kind, only(resolution).winner) == (ConflictKind.UPDATE_ORIGIN_DIFFERS, "current")


def test_a_row_moves_to_a_key_that_is_taken_by_an_older_row() -> None:
    resolution = resolve(MOVE, rows={"1": stored("1", "x", by="b"), "2": stored("2", "z")})
    assert changes(resolution) == [(DELETE, ("1", "x"), None), (UPDATE, ("2", "z"), ("2", "y"))]
    assert only(resolution).kind is ConflictKind.UPDATE_EXISTS


def test_a_row_moves_to_a_key_that_is_taken_by_a_newer_row() -> None:
    resolution = resolve(MOVE, rows={"1": stored("1", "x", by="b"), "2": stored("2", "z", when=AFTER)})
    assert changes(resolution) == [(DELETE, ("1", "x"), None)]
    assert only(resolution).winner == "current"


def test_a_missing_row_moves_and_leaves_a_tombstone() -> None:
    resolution = resolve(MOVE)
    assert changes(resolution) == [(DELETE, ("1", "x"), None), (INSERT, None, ("2", "y"))]
    assert only(resolution).kind is ConflictKind.UPDATE_MISSING


# -- values that an update left unchanged ------------------------------------------------------------------------------------------


def test_a_winning_update_takes_unchanged_values_from_its_old_row() -> None:
    rows = {"1": stored("1", "other", "x")}
    resolution = resolve(update(("1", "big", "w"), ("1", UNCHANGED, "y"), relation("ktv")), rows=rows)
    assert changes(resolution) == [(UPDATE, ("1", "other", "x"), ("1", "big", "y"))]


def test_without_an_old_row_the_stored_values_stay() -> None:
    thin = relation("ktv", Identity.DEFAULT)
    resolution = resolve(update(None, ("1", UNCHANGED, "y"), thin), rows={"1": stored("1", "other", "x")})
    assert changes(resolution) == [(UPDATE, ("1", "other", "x"), ("1", "other", "y"))]


@pytest.mark.parametrize("there", [{}, {"1": tombstone(when=BEFORE)}])
def test_a_row_that_is_not_known_whole_is_not_inserted(there: Mapping[str, Stored]) -> None:
    resolution = resolve(update(None, ("1", UNCHANGED, "y"), relation("ktv", Identity.DEFAULT)), rows=there)
    assert resolution.effects == []
    assert only(resolution).winner == "current"
    assert only(resolution).error == "the change does not carry t: the replica identity must be FULL"


def test_a_row_that_is_not_known_whole_leaves_its_old_key_only() -> None:
    thin = relation("ktv", Identity.DEFAULT)
    resolution = resolve(update(("1", UNCHANGED, UNCHANGED), ("2", UNCHANGED, "y"), thin))
    assert [kind for kind, _, _ in changes(resolution)] == [DELETE]
    assert [conflict.error is None for conflict in resolution.conflicts] == [True, False]


def test_a_replica_identity_without_the_key_is_refused() -> None:
    with pytest.raises(SchemaError, match=r'"public.t" lacks values .*; ALTER TABLE public.t REPLICA IDENTITY FULL'):
        resolve((DELETE, T, (UNCHANGED, "x"), None))


# -- unique values -----------------------------------------------------------------------------------------------------------------


def test_the_older_holder_of_a_unique_value_is_removed_first() -> None:
    resolution = resolve(insert("1", "x"), insert("3", "z"), rows={"2": stored("2", "x")}, uniques=((1,),))
    assert (resolution.effects, resolution.removals) == ([], [Removal(T, ("2",), stored=True)])
    assert (only(resolution).kind, only(resolution).winner) == (ConflictKind.INSERT_EXISTS, "incoming")


def test_what_was_removed_gives_its_value_to_the_incoming_row() -> None:
    rows = {"2": Stored(None, Version(at(AFTER), "a"))}
    resolution = resolve(insert("1", "x"), update(("2", "w"), ("2", "v")), rows=rows, uniques=((1,),), removed=["2"])
    assert resolution == Resolution([Effect(insert("1", "x"))])


@pytest.mark.parametrize(("there", "was"), [({}, False), ({"1": stored("1", "old", by="b")}, True)])
def test_an_incoming_row_that_loses_a_unique_value_is_removed_everywhere(there: Mapping[str, Stored], was: bool) -> None:
    rows = {**there, "2": stored("2", "x", when=AFTER)}
    change = update(("1", "old"), ("1", "x")) if was else insert("1", "x")
    resolution = resolve(change, rows=rows, uniques=((1,),))
    assert resolution.removals == [Removal(T, ("1",), stored=was)]
    assert only(resolution).kind is (ConflictKind.UPDATE_EXISTS if was else ConflictKind.INSERT_EXISTS)
    again = resolve(insert("3", "y"), change, rows={"2": rows["2"]}, uniques=((1,),), removed=["1"])
    assert again == Resolution([Effect(insert("3", "y"))])


def test_a_row_that_this_transaction_made_is_not_in_the_database_when_it_loses() -> None:
    resolution = resolve(
        insert("1", "y"), update(("1", "y"), ("1", "x")), rows={"2": stored("2", "x", when=AFTER)}, uniques=((1,),)
    )
    assert resolution.removals == [Removal(T, ("1",), stored=False)]


def test_null_is_held_by_nobody() -> None:
    null: Change = (INSERT, T, None, ("1", None))
    assert not resolve(null, rows={"2": Stored(("2", None), Version(at(1), "a"))}, uniques=((1,),)).removals


def test_a_value_that_the_transaction_itself_frees_is_free() -> None:
    rows = {"2": stored("2", "x", by="b")}
    assert not resolve(update(("2", "x"), ("2", "y")), insert("1", "x"), rows=rows, uniques=((1,),)).removals


def test_a_removal_comes_with_the_key_only() -> None:
    resolution = resolve(
        (DELETE, relation("k"), ("1",), None), rows={"1": stored("1")}, rules=Rules("latest", delta=frozenset("n"))
    )
    assert [kind for kind, _, _ in changes(resolution)] == [DELETE]


# -- what is still to come ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (insert("1", "x"), LATEST),
        (update(("3", "x"), ("3", "y")), LATEST),
        (insert("4", "w", "1", into=relation("kvn")), Rules("latest", delta=frozenset("n"))),
        (insert("4", "w"), Rules(("a", "b", "c"))),
    ],
    ids=["unique value", "missing row", "sums", "not latest"],
)
def test_what_rests_on_a_change_of_another_node_waits_for_it(change: Change, rules: Rules) -> None:
    rows = {"2": stored("2", "x", by="c")}
    with pytest.raises(Premature):
        resolve(change, rows=rows, rules=rules, uniques=((1,),), seen={"c": 5}, patient=True)
    resolve(change, rows=rows, rules=replace(rules, delta=frozenset()), uniques=((1,),), seen={"c": 5})
