"""What the WAL guard makes of the slots of a node: levels, who has to wait, and what is dropped."""

from __future__ import annotations

import threading

import pytest
import structlog

from streamer.errors import ConnectError, StreamerError
from streamer.node_config import WalGuard
from streamer.report import DeltaReport, GuardLevel, SlotReport
from streamer.slot_monitor import NodeMonitor
from streamer.wal_guard import Guard, size

MB = 1 << 20
LIMIT = 100 * MB


def slot(retained: int | None, sync: str = "shop", name: str | None = None) -> SlotReport:
    """A slot of a sync from `a`, or of nobody."""
    source = "a" if sync else ""
    return SlotReport(
        "a",
        name or f"streamer_{sync}_a",
        "shop",
        "pgoutput",
        True,
        7,
        retained,
        None,
        "reserved",
        "0/10",
        0,
        sync=sync,
        source=source,
    )


@pytest.mark.parametrize(
    ("retained", "level"),
    [
        (None, GuardLevel.OK),
        (LIMIT // 2, GuardLevel.OK),
        (LIMIT // 2 + 1, GuardLevel.HALF),
        (LIMIT, GuardLevel.HALF),
        (LIMIT + 1, GuardLevel.EXCEEDED),
    ],
)
def test_the_level_is_that_of_the_worst_slot_of_ours(retained: int | None, level: GuardLevel) -> None:
    guard = Guard("a", LIMIT, "alert")
    guard.look([slot(0, "old"), slot(retained), slot(1000 * MB, "", "somebody")])
    assert guard.level is level


def test_without_a_limit_nothing_is_too_much() -> None:
    guard = Guard("a", None, "alert")
    assert not guard.look([slot(1 << 50)])
    assert guard.level is GuardLevel.OK


def test_it_says_what_is_held_back_by_which_slot() -> None:
    guard = Guard("a", LIMIT, "alert")
    assert guard.look([slot(150 * MB)])
    assert guard.finding == 'slot "streamer_shop_a" holds back 150 MB of WAL on "a" (max_retained_wal is 100 MB)'


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 kB"), (21 << 30, "21.0 GB"), (200 << 40, "200 TB")]
)
def test_sizes_are_for_people(number: int, text: str) -> None:
    assert size(number) == text


def test_other_work_waits_until_it_is_well_again_but_never_the_stream_that_is_behind() -> None:
    guard = Guard("a", LIMIT, "pause")
    assert guard.obstacle("reports", "a") == ""
    guard.look([slot(LIMIT + 1), slot(0, "reports"), slot(60 * MB, "late")])
    assert "lets no other work begin" in guard.obstacle("reports", "a")
    assert guard.obstacle("shop", "a") == ""
    assert guard.obstacle("late", "a") == ""
    guard.look([slot(60 * MB), slot(0, "reports")])  # below the limit, but not yet below half
    assert guard.obstacle("reports", "a")
    guard.look([slot(50 * MB), slot(0, "reports")])
    assert guard.obstacle("reports", "a") == ""
    guard.look([slot(60 * MB), slot(0, "reports")])  # half alone holds up nobody
    assert guard.obstacle("reports", "a") == ""


@pytest.mark.parametrize("mode", ["alert", "drop-slot"])
def test_only_pause_makes_others_wait(mode: WalGuard) -> None:
    guard = Guard("a", LIMIT, mode)
    guard.look([slot(LIMIT + 1)])
    assert guard.obstacle("reports", "a") == ""


class Server:
    """Implements slot_monitor.Watch."""

    def __init__(self, *slots: SlotReport) -> None:
        self.slots = list(slots)
        self.dropped: list[str] = []
        self.away: StreamerError | None = None

    def read(self) -> list[SlotReport]:
        if self.away:
            raise self.away
        return self.slots

    def read_deltas(self) -> list[DeltaReport]:
        return []

    def drop(self, slot: str) -> None:
        if self.away:
            raise self.away
        self.dropped.append(slot)
        self.slots = [s for s in self.slots if s.slot != slot]

    def close(self) -> None: ...


def monitor(server: Server, mode: WalGuard, given_up: list[StreamerError] | None = None) -> NodeMonitor:
    found = [] if given_up is None else given_up
    return NodeMonitor("a", server, LIMIT, mode, lambda sync, source, error: found.append(error))


def test_a_slot_above_the_limit_is_dropped_loudly_and_its_stream_given_up_with_the_remedy() -> None:
    given_up: list[StreamerError] = []
    server = Server(slot(LIMIT + 1), slot(LIMIT, "late"), slot(1000 * MB, "", "somebody"))
    with structlog.testing.capture_logs() as records:
        monitor(server, "drop-slot", given_up).sample()
    assert server.dropped == ["streamer_shop_a"]
    assert [(r["event"], r["log_level"]) for r in records] == [("wal_held_back", "error"), ("slot_dropped", "error")]
    assert len(given_up) == 1
    assert given_up[0].permanent
    assert given_up[0].message.startswith('slot "streamer_shop_a" on "a" was dropped by the WAL guard')
    assert "streamer teardown --sync shop" in given_up[0].hint


@pytest.mark.parametrize("mode", ["alert", "pause"])
def test_nothing_is_dropped_unless_the_config_says_so(mode: WalGuard) -> None:
    server = Server(slot(1000 * LIMIT))
    monitor(server, mode).sample()
    assert server.dropped == []


def test_a_transaction_that_is_open_for_long_is_named_among_what_may_hold_wal_back() -> None:
    """The targets had everything, and nothing else said why the slot kept so much."""
    with structlog.testing.capture_logs() as records:
        monitor(Server(slot(LIMIT + 1)), "alert").sample()
    assert "pg_stat_activity.xact_start" in records[0]["remedy"]


def test_a_level_is_told_once_and_so_is_that_it_is_well_again() -> None:
    server = Server(slot(60 * MB))
    watched = monitor(server, "alert")
    with structlog.testing.capture_logs() as records:
        watched.sample()
        watched.sample()
        server.slots = [slot(0)]
        watched.sample()
    assert [(r["event"], r["log_level"]) for r in records] == [("wal_held_back", "warning"), ("wal_released", "info")]


def test_a_source_that_is_away_keeps_the_last_sample_and_says_why() -> None:
    server = Server(slot(5))
    watched = monitor(server, "alert")
    watched.sample()
    server.away = ConnectError("away")
    with structlog.testing.capture_logs() as records:
        watched.sample()
        watched.sample()
    report = watched.report()
    assert [s.retained_bytes for s in report.slots] == [5]
    assert report.problem is not None
    assert (report.problem.message, len(records)) == ("away", 1)


def test_a_monitor_ends_when_it_is_told_to() -> None:
    watched = monitor(Server(), "alert")
    watched.start()
    watched.stop()
    watched.join()
    assert not [t for t in threading.enumerate() if t.name == "slots of a"]
