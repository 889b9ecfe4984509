"""By its last transaction an edge recognises the WAL that it has been reading; what else comes is another history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from streamer.errors import SlotError
from streamer.intake import Intake
from streamer.model import LSN, NOTHING_SEEN, EdgeName, Idle, Origin, Piece, SlotIdentity, Transaction
from streamer.ports import SlotState

EDGE = EdgeName("shop", "a", "b")
TIME = datetime(2026, 1, 2, tzinfo=UTC)
LAST, NEXT = LSN(95), LSN(100)


def piece(position: int, time: datetime = TIME) -> Piece:
    transaction = Transaction(LSN(position), Origin("a", LSN(position), time), "a")
    return Piece(transaction, [], 0, LSN(position + 5), NOTHING_SEEN)


def idle(position: int) -> Idle:
    return Idle(LSN(position), urgent=False)


def begun(confirmed: int, *, exact: bool = True, batches: bool = False) -> Intake:
    """The intake of an edge in a session that has just begun."""
    intake = Intake(NEXT, NOTHING_SEEN, NEXT, NEXT, (LAST, TIME))
    intake.begin_session(SlotState(SlotIdentity("1/1", "shop", "slot"), LSN(confirmed), LSN(1000), exact=exact, batches=batches))
    return intake


def test_a_session_is_read_from_the_last_transaction_on() -> None:
    assert begun(90).since == LAST
    assert Intake(NEXT, NOTHING_SEEN, NEXT, NEXT).since == NEXT


def test_the_transaction_that_is_there_already_is_recognised() -> None:
    intake = begun(90)
    for item in (idle(90), piece(91), idle(95), piece(95), piece(95), piece(105), idle(200)):
        intake.recognise(EDGE, item)


@pytest.mark.parametrize("other", [piece(96), piece(105), piece(95, TIME + timedelta(microseconds=1)), idle(96)], ids=str)
def test_anything_else_in_its_place_is_another_history(other: Piece | Idle) -> None:
    intake = begun(90)
    for _ in range(2):  # what is refused is not taken for it at the next look
        with pytest.raises(SlotError, match="restored from a backup"):
            intake.recognise(EDGE, other)


@pytest.mark.parametrize(
    "intake", [begun(96), begun(90, exact=False), begun(90, batches=True)], ids=["confirmed", "old", "batches"]
)
def test_what_the_slot_need_not_give_again_is_not_awaited(intake: Intake) -> None:
    intake.recognise(EDGE, piece(105))
    intake.recognise(EDGE, idle(200))
