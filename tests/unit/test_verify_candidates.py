"""Which rows that differ are really different, and what is compared of values."""

from __future__ import annotations

import random

import pytest

from streamer.sinks.mysql_values import TargetColumn, converter
from streamer.sinks.sqlite_values import conversion
from streamer.verify.candidates import LOOKS, Candidates
from streamer.verify.foreign_values import expected, mysql_alike, mysql_expression, sqlite_alike
from streamer.verify.parts import Key, Rows, Seen, hash_of, together

ROW: Key = ("1",)


def at(*seen: tuple[int, str] | None) -> list[Rows]:
    """What one row is at consecutive looks: hash and version; None where it is not there."""
    return [{} if one is None else {ROW: Seen(*one)} for one in seen]


def looked(source: list[Rows], target: list[Rows]) -> Candidates:
    candidates = Candidates(source[0], target[0])
    for here, there in zip(source[1:], target[1:], strict=True):
        candidates.look(here, there)
    return candidates


def test_a_row_that_becomes_equal_was_only_on_its_way() -> None:
    candidates = looked(at((1, "v1"), (1, "v1")), at(None, (1, "w1")))
    assert (candidates.open, candidates.different, candidates.undecided) == (0, [], [])


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [((1, "v"), None, "missing"), (None, (1, "w"), "extra"), ((1, "v"), (2, "w"), "different")],
)
def test_a_row_that_stays_as_it_is_on_both_sides_is_different(
    source: tuple[int, str] | None, target: tuple[int, str] | None, kind: str
) -> None:
    candidates = looked(at(source, source), at(target, target))
    assert [(d.key, d.kind, d.source) for d in candidates.different] == [(ROW, kind, source and Seen(*source))]
    assert candidates.open == 0


def test_a_row_that_was_written_and_written_back_between_two_looks_is_not_decided_by_them() -> None:
    assert looked(at((1, "v1"), (1, "v2")), at((2, "w1"), (2, "w1"))).open == 1
    assert looked(at((1, "v1"), (1, "v1")), at((2, "w1"), (2, "w2"))).open == 1


def test_a_row_that_never_holds_still_is_undecided() -> None:
    many = range(LOOKS)
    candidates = looked(at(*((n, f"v{n}") for n in many)), at(*((-n - 1, f"w{n}") for n in many)))
    assert (candidates.different, candidates.undecided) == ([], [ROW])


def test_a_row_that_never_holds_still_is_missing_if_it_never_is_there() -> None:
    candidates = looked(at(*((n, f"v{n}") for n in range(LOOKS))), at(*[None] * LOOKS))
    assert [d.kind for d in candidates.different] == ["missing"]


def test_a_row_of_the_target_that_never_moves_while_the_source_does_is_different() -> None:
    candidates = looked(at(*((n, f"v{n}") for n in range(LOOKS))), at(*[(99, "w")] * LOOKS))
    assert [d.kind for d in candidates.different] == ["different"]


def test_only_rows_that_differ_are_looked_at() -> None:
    source: Rows = {(str(i),): Seen(i) for i in range(100)}
    target: Rows = {(str(i),): Seen(i if i % 10 else -1) for i in range(1, 101)}
    assert set(Candidates(source, target).keys()) == {("0",), ("100",), *((str(i),) for i in range(10, 100, 10))}


def test_random_histories_of_a_faithful_stream_never_look_different() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(300):
        # values repeat, versions never do
        history = [None if dice.random() < 0.2 else (dice.randint(0, 2), f"v{n}") for n in range(200)]
        now, reached = 0, 0
        candidates: Candidates | None = None
        while now < 150:
            source = at(history[now])[0]
            target = at(history[reached])[0]
            if candidates is None:
                candidates = Candidates(source, target)
            else:
                candidates.look(source, target)
            moment = now
            now += dice.choice([0, 0, 1, 2, 5])
            reached = dice.randint(max(moment, reached), now)  # the stream has passed the moment of the look
        assert candidates is not None
        assert candidates.different == []


def test_a_hash_tells_what_is_alike_as_text() -> None:
    rows = [
        ("a", None),
        (None, "a"),
        ("a", ""),
        ("", "a"),
        ("a", "None"),
        (b"a", None),
        ("'a'", None),
        ("a,", None),
        (1, None),
        ("1", None),
    ]
    assert len({hash_of(row) for row in rows}) == len(rows)
    assert all(-(2**63) <= hash_of(row) < 2**63 for row in rows)


def test_two_rows_of_one_key_count_as_one() -> None:
    both = together(together(None, Seen(1, "a")), Seen(2, "b"))
    assert both == Seen(3, "a b")


# -- values ----------------------------------------------------------------------------------------------------------------------


def mysql(type_oid: int, text: str, column: TargetColumn) -> object:
    return expected(converter(type_oid, column), mysql_alike(column), "error")(text)


@pytest.mark.parametrize(
    ("oid", "text", "column", "read"),
    [
        (23, "7", TargetColumn("c", "bigint", "bigint"), 7),
        (16, "t", TargetColumn("c", "tinyint", "tinyint(1)"), 1),
        (1560, "101", TargetColumn("c", "bit", "bit(3)", precision=3), 5),
        (1700, "1.5", TargetColumn("c", "decimal", "decimal(9,2)", precision=9, scale=2), "1.50"),
        (1700, "-0.00", TargetColumn("c", "decimal", "decimal(9,2)", precision=9, scale=2), "0.00"),
        (701, "0.1", TargetColumn("c", "double", "double"), 0.1),
        (700, "0.1", TargetColumn("c", "float", "float"), 0.10000000149011612),
        (1114, "2020-01-01 00:00:00.5", TargetColumn("c", "datetime", "datetime(6)", fraction=6), "2020-01-01 00:00:00.500000"),
        (1083, "24:00:00", TargetColumn("c", "time", "time(6)", fraction=6), "24:00:00.000000"),
        (1042, "a   ", TargetColumn("c", "char", "char(4)", length=4), "a"),
        (3802, '{"b": 1, "a": 2}', TargetColumn("c", "json", "json"), '{"a": 2, "b": 1}'),
        (2950, "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", TargetColumn("c", "uuid", "uuid"), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (869, "2001:db8::1", TargetColumn("c", "inet6", "inet6"), "2001:0db8::1"),
        (17, "\\x00ff", TargetColumn("c", "longblob", "longblob", length=2**32 - 1), b"\0\xff"),
    ],
)
def test_what_mysql_gives_back_is_what_it_was_given(oid: int, text: str, column: TargetColumn, read: object) -> None:
    assert mysql(oid, text, column) == mysql_alike(column)(read)
    assert mysql_expression(column).replace("`c`", "").strip() in ("", "+ 0", "+ 0e0", "CAST( AS CHAR)")


@pytest.mark.parametrize(
    ("oid", "text", "declared", "strict", "read"),
    [
        (23, "7", "INTEGER", True, 7),
        (16, "f", "INTEGER", True, 0),
        (701, "5", "ANY", True, 5.0),
        (701, "0.1", "ANY", True, 0.1),
        (701, "NaN", "ANY", True, "NaN"),
        (701, "5", "REAL", False, 5.0),
        (25, "07", "TEXT", True, "07"),
        (25, "07", "NUMERIC", False, 7),
        (25, "1.50", "NUMERIC", False, 1.5),
        (25, "word", "NUMERIC", False, "word"),
        (16, "t", "TEXT", False, "1"),
        (17, "\\x00", "BLOB", True, b"\0"),
    ],
)
def test_what_sqlite_gives_back_is_what_it_was_given(oid: int, text: str, declared: str, strict: bool, read: object) -> None:
    alike = sqlite_alike(declared, strict=strict)
    assert expected(conversion(oid, declared, strict=strict), alike, "error")(text) == alike(read)


def test_a_value_that_was_replaced_is_expected_as_what_replaced_it() -> None:
    column = TargetColumn("c", "smallint", "smallint")
    assert expected(converter(23, column), mysql_alike(column), "null")("99999") is None
    assert expected(converter(23, column), mysql_alike(column), "clamp")("99999") == 32767
    assert expected(converter(23, column), mysql_alike(column), "error")("99999") == "unrepresentable: 99999"
