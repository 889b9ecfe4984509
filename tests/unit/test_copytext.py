"""COPY's text format, read and written."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import copytext

VALUES = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
TRICKY = st.none() | st.text("\\Nntbrfv.\t\n\r\b\f\v\x85\u2028 ä")


@given(st.lists(st.tuples(VALUES | TRICKY, VALUES | TRICKY, VALUES | TRICKY), min_size=1))
def test_rows_survive_being_written_and_read(rows: list[tuple[str | None, ...]]) -> None:
    assert list(copytext.parse(copytext.format_rows(rows))) == rows


@pytest.mark.parametrize(
    ("block", "rows"),
    [
        (b"", []),
        (b"1\ta\n2\tb\n", [("1", "a"), ("2", "b")]),
        (b"\\N\t\n", [(None, "")]),
        (b"\\\\N\tx\n", [("\\N", "x")]),
        (b"a\\tb\\nc\\rd\\be\\ff\\vg\\\\h\n", [("a\tb\nc\rd\be\ff\vg\\h",)]),
        (b"\\.\\q\n", [(".q",)]),
        (b"\n", [("",)]),
        ("ä\u2028\x0b\x85€𝄞\n".encode(), [("ä\u2028\x0b\x85€𝄞",)]),
        (b'{\\\\x01,"a\\tb"}\t\\N\n', [('{\\x01,"a\tb"}', None)]),
    ],
)
def test_what_the_server_writes_is_read(block: bytes, rows: list[tuple[str | None, ...]]) -> None:
    assert list(copytext.parse(block)) == rows
    assert list(copytext.parse(memoryview(block))) == rows


def test_a_long_text_with_many_escapes_takes_little_memory() -> None:
    """It took more than a hundred bytes for each: gigabytes for a text of a hundred megabytes."""
    block = b"\\n" * 300_000 + b"\n"
    tracemalloc.start()
    try:
        rows = list(copytext.parse(block))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == [("\n" * 300_000,)]
    assert peak < 10 * len(block)


def test_a_block_that_ends_within_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="ends within a row"):
        copytext.parse(b"1\ta\n2\tb")


def test_a_block_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        copytext.parse(b"\xff\n")
