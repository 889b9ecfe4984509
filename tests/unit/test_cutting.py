"""Where a table is cut by what its server knows of the key."""

from __future__ import annotations

import pytest

from streamer.capture.key_ranges import Statistics
from streamer.model import KeyRange

#: a thousand rows from one to the next
KNOWN = Statistics(1.0, [str(1000 * n) for n in range(11)], 1000.0)


def ends(known: Statistics, rows: int, low: str | None = None, high: str | None = None) -> list[str | None]:
    """Where the ranges end that are cut one after the other."""
    found: list[str | None] = []
    while (end := known.end_of_first(KeyRange("id", low=low, high=high), rows)) is not None:
        found.append(end)
        low = end
    return found


def test_ranges_have_as_many_rows_as_wanted_about_and_the_rest_is_left() -> None:
    assert ends(KNOWN, 3000) == ["3000", "6000", "9000"]
    assert ends(KNOWN, 2600) == ["3000", "6000", "9000"]
    assert ends(KNOWN, 20_000) == []


def test_a_gap_is_cut_from_its_beginning_to_its_end() -> None:
    assert ends(KNOWN, 2000, low="1500", high="6500") == ["3000", "5000"]
    assert ends(KNOWN, 2000, low="-7", high="4000") == ["2000"]
    assert ends(KNOWN, 2000, low="10000") == []
    assert ends(KNOWN, 2000, low="99999") == []


@pytest.mark.parametrize(
    "known",
    [
        Statistics(1.0, (), 0.0),
        Statistics(1.0, KNOWN.bounds, 100_000.0),
        Statistics(1.0, KNOWN.bounds, 0.0),
        Statistics(1.0, KNOWN.bounds, -0.1),
    ],
    ids=["unknown", "coarse", "truncated", "truncated, version 14"],
)
def test_without_good_statistics_nothing_is_known(known: Statistics) -> None:
    assert ends(known, 3000) == []


@pytest.mark.parametrize(("correlation", "scattered"), [(None, False), (1.0, False), (-0.98, False), (0.01, True), (-0.3, True)])
def test_rows_are_scattered_where_their_order_says_nothing_of_their_place(correlation: float | None, scattered: bool) -> None:
    assert Statistics(correlation, (), 0.0).is_scattered is scattered
