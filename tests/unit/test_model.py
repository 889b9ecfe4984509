"""Positions and times: their text forms, there and back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.model import (
    LSN,
    POSTGRES_EPOCH,
    UNCHANGED,
    Column,
    Identity,
    Relation,
    TableName,
    from_postgres_time,
)

POSITIONS = st.integers(0, 2**64 - 1).map(LSN)


@given(POSITIONS)
def test_a_position_survives_being_written_and_read(position: LSN) -> None:
    assert LSN.parse(str(position)) == position
    assert LSN.parse(str(position).lower()) == position
    assert LSN.parse("/".join(half.rjust(8, "0") for half in str(position).split("/"))) == position


@given(POSITIONS, POSITIONS)
def test_positions_are_ordered_as_the_halves_of_their_text(one: LSN, other: LSN) -> None:
    def halves(position: LSN) -> list[int]:
        return [int(half, 16) for half in str(position).split("/")]

    assert (one < other) == (halves(one) < halves(other))


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0/0"), (1, "0/1"), (0x16B374D848, "16/B374D848"), (2**32, "1/0"), (2**64 - 1, "FFFFFFFF/FFFFFFFF")],
)
def test_positions_are_written_as_postgresql_writes_them(number: int, text: str) -> None:
    position = LSN(number)
    assert (str(position), f"{position}", f"{position:>20}") == (text, text, text.rjust(20))
    assert repr(position) == f"LSN({text})"
    assert LSN.parse(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "16",
        "16/",
        "/16",
        "1/2/3",
        "G/0",
        "123456789/0",
        "0/123456789",
        "0x1/0",
        "-1/0",
        "+1/0",
        "1_0/0",
        " 1/0",
        "1/0\n",
        "\u0661/0",
    ],
)
def test_what_is_not_a_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN: "):
        LSN.parse(text)


def test_times_count_from_2000_in_utc() -> None:
    assert from_postgres_time(0) == POSTGRES_EPOCH == datetime(2000, 1, 1, tzinfo=UTC)
    assert from_postgres_time(1).microsecond == 1
    assert from_postgres_time(-1) < POSTGRES_EPOCH
    assert from_postgres_time(86_400_000_000) == datetime(2000, 1, 2, tzinfo=UTC)


def relation() -> Relation:
    columns = Column("id", 23, identity=True), Column("name", 25, identity=False)
    return Relation(TableName("public", "Orders"), columns, Identity.DEFAULT)


def test_versions_of_a_relation_are_told_apart_even_if_they_look_alike() -> None:
    one, other = relation(), relation()
    assert one != other
    assert len({one, other}) == 2


def test_a_relation_knows_the_names_of_its_columns() -> None:
    assert relation().names == ("id", "name")
    assert str(relation()) == '"public.Orders"'


def test_unchanged_is_not_null_and_says_what_it_is() -> None:
    assert UNCHANGED is not None
    assert repr(UNCHANGED) == "UNCHANGED"
