"""The log tells of missing and refused rows now and then, and forgets none that it was silent of; a report of a blocked target."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from streamer.complaints import BLOCKED_SECONDS, COMPLAIN_SECONDS, Complaints, blocked
from streamer.model import LSN, EdgeName
from streamer.ports import Written


def test_refused_rows_are_told_at_once_and_then_together() -> None:
    now = 0.0
    with structlog.testing.capture_logs() as logged:
        complaints = Complaints(structlog.get_logger(), lambda: now)
        complaints.look([Written(), Written(quarantined=2, refusal="first")], 0, LSN(1))
        complaints.look([Written(quarantined=1, refusal="second"), Written(quarantined=1, refusal="third")], 0, LSN(2))
        complaints.look([Written(quarantined=5)], 0, LSN(3))
        now = COMPLAIN_SECONDS
        complaints.look([Written()], 0, LSN(4))
        now *= 3
        complaints.look([Written(quarantined=1)], 0, LSN(5))  # follows an earlier one: nothing new
    assert [(r["event"], r["changes"], r["first"], r["position"]) for r in logged] == [
        ("changes_quarantined", 2, "first", "0/1"),
        ("changes_quarantined", 7, "second", "0/4"),
    ]


def test_what_a_truncate_makes_void_is_told_each_time() -> None:
    with structlog.testing.capture_logs() as logged:
        complaints = Complaints(structlog.get_logger(), lambda: 0.0)
        complaints.look([Written(voided=2), Written(voided=1)], 0, LSN(1))
        complaints.look([Written(voided=1)], 0, LSN(2))
    assert [(r["event"], r["changes"], r["log_level"]) for r in logged] == [
        ("quarantine_emptied", 3, "info"),
        ("quarantine_emptied", 1, "info"),
    ]


def test_missing_rows_are_told_now_and_then() -> None:
    now = 0.0
    with structlog.testing.capture_logs() as logged:
        complaints = Complaints(structlog.get_logger(), lambda: now)
        for missing in (1, 2, 3):
            complaints.look([Written(missing=1)], missing, LSN(1))
            now += COMPLAIN_SECONDS / 2
        complaints.look([Written()], 3, LSN(1))
    assert [(r["event"], r["rows"]) for r in logged] == [("rows_missing", 1), ("rows_missing", 3)]


def test_a_target_that_does_not_answer_is_told_with_what_to_look_at() -> None:
    edge, now = EdgeName("shop", "a", "b"), datetime(2026, 1, 1, tzinfo=UTC)
    assert blocked(edge, BLOCKED_SECONDS - 1, now) is None
    problem = blocked(edge, 42.4, now)
    assert problem is not None
    assert problem.message == 'node "b" is at work on one group of changes for 42 s: it is blocked there, or a very large one'
    assert '"streamer shop: a -> b"' in problem.hint
