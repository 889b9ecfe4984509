"""What a server says when it refuses to decode is understood in its own language too, as far as the SQLSTATE tells it."""

from __future__ import annotations

import pytest

from streamer.capture.diagnose import Diagnosis
from streamer.errors import HeldBackError, SlotError, SourceError, StreamerError, TakenError

SAID = [
    ("WARNUNG: Laden der Publikation »streamer_shop_a« übersprungen", "W55000", SlotError, "changes made without it"),
    ("FEHLER: Replikations-Slot »streamer_shop_a« ist aktiv für PID 4711", "55006", TakenError, "pg_terminate_backend(4711)"),
    ("FEHLER: ungültige Byte-Sequenz für Kodierung »UTF8«: 0xe9", "22021", SourceError, "streamer slots advance a"),
]


@pytest.mark.parametrize(("text", "code", "kind", "remedy"), SAID, ids=[code for _, code, _, _ in SAID])
def test_a_translated_complaint_is_understood_by_its_code(text: str, code: str, kind: type[StreamerError], remedy: str) -> None:
    """A warning that is not understood leaves changes out in silence."""
    error = Diagnosis("a", "shop", "streamer_shop_a")(text, code)
    assert type(error) is kind
    assert remedy in error.hint


def test_a_code_that_says_little_leaves_the_servers_own_words() -> None:
    error = Diagnosis("a", "shop", "streamer_shop_a")("FEHLER: irgendetwas ist falsch", "55000")
    assert (type(error), error.message) == (SourceError, 'slot "streamer_shop_a" on "a": FEHLER: irgendetwas ist falsch')


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('replication slot "two" specified in parameter "synchronized_standby_slots" does not have active_pid', "W55000"),
        ("Parameter »synchronized_standby_slots«: Slot »two« hat keine active_pid", "W55000"),
        ('physical replication slot "two" specified in parameter "synchronized_standby_slots" has been invalidated', "55000"),
    ],
)
def test_a_source_that_waits_for_its_standby_has_lost_nothing(text: str, code: str) -> None:
    error = Diagnosis("a", "shop", "streamer_shop_a")(text, code)
    assert (type(error), error.permanent) == (HeldBackError, False)


def test_a_warning_of_something_else_is_none_of_a_missing_publication() -> None:
    assert not Diagnosis("a", "shop", "streamer_shop_a")("WARNUNG: irgendetwas fehlt", "W55000").permanent


def test_of_several_sources_the_one_whose_slot_is_lost_is_told_to_leave() -> None:
    """Another one may leave only when all of its changes are passed, which this one's stream cannot say any more."""
    error = Diagnosis("c", "shop", "streamer_shop_c")('ERROR: can no longer access replication slot "streamer_shop_c"')
    assert "with several sources, instead: streamer teardown --node c (what only it has is lost), empty its tables" in error.hint
