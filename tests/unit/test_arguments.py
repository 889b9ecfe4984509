"""What people type as arguments of commands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from streamer.admin.arguments import moment, node_and_number, table_name
from streamer.errors import UsageError
from streamer.model import TableName


@pytest.mark.parametrize(
    ("text", "table"),
    [("items", ("public", "items")), ("shop.items", ("shop", "items")), ("public.a.b", ("public", "a.b"))],
)
def test_the_schema_of_a_table_ends_at_the_first_dot_as_in_the_config(text: str, table: tuple[str, str]) -> None:
    assert table_name(text) == TableName(*table)


def test_a_time_is_so_long_ago_or_that_of_a_clock_in_utc() -> None:
    before = datetime.now(UTC)
    assert before - timedelta(hours=2) <= moment("2h") <= datetime.now(UTC) - timedelta(hours=2)
    assert moment("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert moment("2026-01-31T12:00") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert moment("2026-01-31T12:00+01:00") == datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=1)))
    with pytest.raises(UsageError, match='"soon" is not a time'):
        moment("soon")


def test_an_id_names_a_node_and_a_number() -> None:
    assert node_and_number("a:12", "a change", "") == ("a", 12)
    for text in ("a", "a:", "a:x", "a:-1", "a:1" + 18 * "0"):
        with pytest.raises(UsageError, match=f'"{text}" is not the id of a change'):
            node_and_number(text, "a change", "")
