"""When a commit counts as durable on a PostgreSQL target."""

from __future__ import annotations

import pytest

from streamer.model import LSN
from streamer.sinks.postgres_session import end_of_record

PAGE = 5 * 8192


@pytest.mark.parametrize(
    ("told", "ends"),
    [
        (PAGE + 24, PAGE),  # the page before is full: nothing is written to this one yet
        (PAGE + 32, PAGE + 32),
        (PAGE + 40, PAGE + 40),
        (PAGE, PAGE),
    ],
)
def test_a_commit_whose_record_ends_on_the_next_page_is_not_durable_before_that_is_flushed(told: int, ends: int) -> None:
    assert end_of_record(LSN(told)) == ends
