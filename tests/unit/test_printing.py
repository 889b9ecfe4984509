"""Tables on terminals of any width: no word is broken, no line is longer than the terminal where that can be had, nothing is hidden
without being told.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from streamer.admin import printing
from streamer.admin.findings import ok, print_findings
from streamer.admin.slots_peek import print_records
from streamer.admin.tables import Listed, print_tables
from streamer.admin.verify import print_verified
from streamer.cli_options import say
from streamer.verify.tables import Verdict, Verified

HEADERS = ("sync", "state", "last applied", "copied")
ROWS = [
    ["shop", "streaming", "2026-11-21 15:40:06 UTC", "11000"],
    ["a-sync-with-a-long-name", "retrying", "-", "0"],
]
SPARE = ("copied", "last applied")
WORDS = {word for row in ROWS for cell in row for word in cell.split()}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(printing, "on_terminal", lambda: True)
    return monkeypatch


def printed(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, spare: tuple[str, ...]) -> str:
    terminal.setenv("COLUMNS", str(width))
    printing.print_table(HEADERS, ROWS, spare=spare)
    return capsys.readouterr().out


def test_a_wide_terminal_shows_all(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(terminal, capsys, 100, SPARE)
    assert all(cell in shown for row in (HEADERS, *ROWS) for cell in row)
    assert "no room" not in shown


def test_a_narrower_one_leaves_out_what_can_be_spared_and_tells(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no room for: copied\n" in printed(terminal, capsys, 70, SPARE)
    shown = printed(terminal, capsys, 60, SPARE)
    assert shown.endswith("no room for: last applied, copied\n")
    assert "15:40:06" not in shown


def test_where_nothing_can_be_spared_cells_are_broken_between_words(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = printed(terminal, capsys, 70, ())
    assert "2026-11-21 15:40:06 UTC" not in shown
    assert max(map(len, shown.splitlines())) <= 70
    assert all(word in shown for word in WORDS)


def test_each_row_is_a_block_where_words_would_have_to_be_broken(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(terminal, capsys, 30, SPARE).split("\n\n")[0].splitlines() == [
        "sync          shop",
        "state         streaming",
        "last applied  2026-11-21 15:40:06 UTC",
        "copied        11000",
    ]


@pytest.mark.parametrize("spare", [(), SPARE], ids=["nothing", "some"])
def test_no_word_is_ever_broken(spare: tuple[str, ...], terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for width in range(10, 120):
        shown = printed(terminal, capsys, width, spare)
        assert "a-sync-with-a-long-name" in shown, width
        assert "streaming" in shown, width
        drawn = [line for line in shown.splitlines() if "│" in line]
        assert all(len(line) <= width for line in drawn), width


def test_what_is_compared_side_by_side_stays_so(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.setenv("COLUMNS", "30")
    printing.print_table(("", "", "current", "incoming"), [["*", "note", "x" * 40, "y" * 40]], side_by_side=True)
    assert any("note" in line and "x" in line and "y" in line for line in capsys.readouterr().out.splitlines())


def test_elsewhere_lines_are_plain_and_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    printing.print_table(("a", "b"), [["1", "x y"]], spare=("b",))
    assert capsys.readouterr().out == "a  b\n1  x y\n"


def test_a_name_with_a_newline_breaks_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_table(("table", "rows"), [["public.two\nlines", "1"]])
    print_findings([ok('table "public.two\nlines"', "is there")], as_json=False)
    say('b: created table public."two\nlines"')
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "table              rows",
        "public.two\\nlines  1",
        'ok: table "public.two\\nlines": is there',
        "0 errors, 0 warnings",
        'b: created table public."two\\nlines"',
    ]


def test_a_slot_without_changes_is_not_answered_with_silence(capsys: pytest.CaptureFixture[str]) -> None:
    print_records([], as_json=False)
    assert capsys.readouterr().out == "the slot holds no changes\n"


def test_tables_with_usual_names_are_a_line_each_on_80_columns(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", "80")
    table, target = "public.customer_addresses", "warehouse"
    print_verified([Verified("shop", "main", target, table, Verdict.EQUAL, datetime.now(UTC), 12345678, 99)], as_json=False)
    print_tables([Listed("shop", "main", table, ("id",), "primary key", 12345678, 10**9, {target: "stream"})], as_json=False)
    shown = [line for line in capsys.readouterr().out.splitlines() if table in line]
    assert [target in line for line in shown] == [True, True]
    assert max(map(len, shown)) <= 80
