"""What `cutover` says to what the daemon knows of the rows: old proof, none, half of one, differences."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from streamer.admin.cutover_proof import proven
from streamer.admin.findings import Finding, error, ok, warning
from streamer.errors import UsageError
from streamer.model import EdgeName
from streamer.verify.proofs import Proof, Told, of_body, to_body
from streamer.verify.tables import Verdict, Verified

EDGE: Final = EdgeName("forth", "old", "new")
NOW: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
EQUAL: Final = Verified("forth", "old", "new", "public.t", Verdict.EQUAL, NOW - timedelta(hours=3), rows=10)
WHAT: Final = "rows of forth: old -> new"
VERIFY: Final = "streamer verify forth --target new"


def judged(*found: Verified, whole: bool = True, again: bool = False) -> Finding:
    """What is said after the daemon was told this."""
    proof = Proof(EDGE, continuous=False)
    for one in found:
        proof.note(one)
    if whole:
        proof.gone_through([one.table for one in found])
    report = proof.report()
    told = {"different": report.different, "since": report.since and report.since.isoformat(), "rows": report.rows}
    return proven(told, EDGE, NOW, again=again)


def test_a_proof_of_today_is_told_with_its_age() -> None:
    assert judged(EQUAL) == ok(WHAT, "were equal when they were compared last: 10 rows, the oldest part 3:00:00 ago")
    younger = replace(EQUAL, table="public.u", rows=5, began=NOW)
    assert judged(EQUAL, younger) == ok(WHAT, "were equal when they were compared last: 15 rows, the oldest part 3:00:00 ago")
    assert judged(younger).reason.endswith("5 rows, the oldest part 0:00:00 ago")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            judged(replace(EQUAL, began=NOW - timedelta(days=9))),
            "were equal when they were compared last: 10 rows, the oldest part 9 days, 0:00:00 ago",
        ),
        (judged(EQUAL, whole=False), "were not all compared yet"),
        (judged(EQUAL, replace(EQUAL, table="public.u", verdict=Verdict.BEHIND)), "were not all compared yet"),
        (proven(None, EDGE, NOW, again=False), "were not compared since the daemon was started"),
    ],
    ids=["old", "half", "behind", "none"],
)
def test_without_a_proof_of_today_who_leaves_out_the_comparison_is_warned(found: Finding, told: str) -> None:
    assert found == warning(WHAT, f"{told}, and --skip-verify leaves that out", f"run: {VERIFY}")


def test_who_compares_anyway_needs_no_proof() -> None:
    assert proven(None, EDGE, NOW, again=True) == ok(WHAT, "were not compared since the daemon was started; they are now")


def test_rows_that_differ_are_in_the_way_until_they_are_mended_or_compared_again() -> None:
    different = replace(EQUAL, verdict=Verdict.DIFFERENT, different=2)
    refused = error(WHAT, "2 rows differed when they were compared last", f"see which: {VERIFY} --repair")
    assert judged(different) == refused
    assert judged(EQUAL, different, whole=False) == refused
    told = f"{refused.reason}; they are compared again now"
    assert judged(different, again=True) == warning(WHAT, told, f"see which: {VERIFY}")
    mended = replace(different, verdict=Verdict.REPAIRED, repaired=2)
    assert judged(different, mended).reason.startswith("were equal")


def test_what_a_command_has_found_gets_over_the_wire_whole() -> None:
    told = Told(EDGE, True, [EQUAL, replace(EQUAL, verdict=Verdict.FAILED, problem="no table", remedy="make it")])
    assert of_body("forth", to_body(told)) == told
    with pytest.raises(UsageError, match="this is a result of sync"):
        of_body("other", to_body(told))
    for body in (b"", b"[]", b'{"edge": 1}'):
        with pytest.raises(UsageError, match="this is no result of verify"):
            of_body("forth", body)
