"""The metrics say what the reports say, and docs/metrics.md describes each of them, and none else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from streamer import metrics
from streamer.copy_report import CopyTotals
from streamer.ports import Written
from streamer.report import (
    APPLY_SECONDS,
    Counters,
    DeltaReport,
    Durations,
    EdgeReport,
    GuardLevel,
    Kicks,
    NodeReport,
    ProofReport,
    Sessions,
    SlotReport,
    State,
    StreamReport,
)

PAGE: Final = Path(__file__).parents[2] / "docs/metrics.md"
NOW: Final = datetime(2026, 10, 1, tzinfo=UTC)
PROOF: Final = ProofReport(True, 2, 1000, 3, NOW, 2000, 2, 1, "", None)
COPIED: Final = CopyTotals(
    1, 3, rows=12, total_rows=30, ranges=2, total_ranges=4, bytes=120, total_bytes=300, rate=6.0, remaining=3.0
)
EDGE: Final = EdgeReport(
    *("shop", "a", "b", State.STREAMING, "1/10", 0, 0.0, 0.0, 0.0, 0, Counters(), None), copy_totals=COPIED, proof=PROOF
)
STREAM: Final = StreamReport("shop", "a", State.STREAMING, "0/20", None, [EDGE])
SLOT: Final = SlotReport("a", "x", "shop", "pgoutput", True, 1, 4096, 8192, "extended", "0/1", 16)
DELTA: Final = DeltaReport("shop", "a", "public.t", 1210, more=False)
NODE: Final = NodeReport("a", NOW, None, 1 << 30, "alert", GuardLevel.HALF, [SLOT], [DELTA])


def samples(*streams: StreamReport) -> dict[tuple[str, ...], float]:
    """What is served, by name and the values of the labels behind sync, source and target."""
    text = metrics.exposition(lambda: streams, lambda: [NODE]).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *(v for k, v in sample.labels.items() if k not in ("sync", "source", "target")))] = sample.value
    return found


def kinds(streams: Sequence[StreamReport]) -> dict[str, str]:
    """The kind of every metric, by the name that queries use."""
    families = text_string_to_metric_families(metrics.exposition(lambda: streams, lambda: [NODE]).decode())
    return {f"{f.name}_total" if f.type == "counter" else f.name: f.type for f in families if f.samples}


def test_every_metric_is_described_with_its_kind_and_none_else() -> None:
    described = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert described == kinds([replace(STREAM, schedule="manual")])


def test_every_metric_has_help_and_a_unit_that_prometheus_knows() -> None:
    for family in text_string_to_metric_families(metrics.exposition(lambda: [STREAM], lambda: [NODE]).decode()):
        assert family.documentation, family.name
        assert not re.search(r"_(ms|milliseconds|mb|kb|minutes|percent)$", family.name)


def test_what_an_edge_has_done_is_counted() -> None:
    counters = Counters()
    counters.add(Written(inserted=2, updated=1, missing=3, conflicts={"update_missing": 1}, waited=0.5), transactions=4)
    counters.apply.add(0.03, 3)
    served = samples(replace(STREAM, edges=[replace(EDGE, counters=counters)]))
    assert served["streamer_edge_rows_total", "inserted"] == 2
    assert served["streamer_edge_rows_total", "deleted"] == 0
    assert served["streamer_edge_transactions_total",] == 4
    assert served["streamer_edge_groups_total",] == 1
    assert served["streamer_edge_missing_rows_total",] == 3
    assert served["streamer_edge_conflicts_total", "update_missing"] == 1
    assert served["streamer_edge_commit_wait_seconds_total",] == 0.5
    assert served["streamer_edge_apply_seconds_bucket", "0.005"] == 0
    assert served["streamer_edge_apply_seconds_bucket", "0.01"] == 3
    assert served["streamer_edge_apply_seconds_bucket", "+Inf"] == served["streamer_edge_apply_seconds_count",] == 3
    assert served["streamer_edge_apply_seconds_sum",] == 0.03


def test_an_lsn_is_a_number_and_one_that_is_not_known_is_left_out() -> None:
    served = samples(replace(STREAM, confirmed=""))
    assert served["streamer_edge_position_bytes",] == (1 << 32) + 16
    assert ("streamer_stream_confirmed_bytes",) not in served


def test_one_state_is_1() -> None:
    served = samples(replace(STREAM, state=State.PAUSED, edges=[replace(EDGE, state=State.RETRYING)]))
    assert {key for key, value in served.items() if "_state" in key[0] and value} == {
        ("streamer_edge_state", "retrying"),
        ("streamer_stream_state", "paused"),
    }


def test_an_edge_that_rests_is_up_and_one_that_copies_is_not_yet() -> None:
    ups = [samples(replace(STREAM, edges=[replace(EDGE, state=state)]))["streamer_edge_up",] for state in State]
    assert Counter(ups) == {1.0: 2, 0.0: len(State) - 2}


def test_the_progress_of_a_copy_is_told_by_edge() -> None:
    served = samples(STREAM)
    assert [served[f"streamer_edge_copy_{name}",] for name in ("rows", "ranges", "bytes")] == [12, 2, 120]
    assert [served[f"streamer_edge_copy_expected_{name}",] for name in ("rows", "ranges", "bytes")] == [30, 4, 300]
    assert served["streamer_edge_copy_rows_per_second",] == 6
    assert served["streamer_edge_copy_remaining_seconds",] == 3


def test_nothing_is_said_of_the_rate_where_no_copy_is_under_way() -> None:
    served = {name for name, *_ in samples(replace(STREAM, edges=[replace(EDGE, copy_totals=CopyTotals(rows=12, total_rows=12))]))}
    assert not served & {"streamer_edge_copy_rows_per_second", "streamer_edge_copy_remaining_seconds"}


def test_runs_are_told_of_syncs_that_have_them() -> None:
    run = {"streamer_stream_runs_total", "streamer_stream_last_run_timestamp_seconds"}
    assert not run & {name for name, *_ in samples(STREAM)}
    served = samples(replace(STREAM, schedule="manual", kicks=Kicks(runs_done=2, runs_failed=1, last_done=NOW)))
    assert served["streamer_stream_runs_total", "failed"] == 1
    assert served["streamer_stream_last_run_timestamp_seconds",] == NOW.timestamp()


def test_durations_and_sessions_of_several_runs_add_up() -> None:
    first, second = Durations(), Durations()
    first.add(120.0, 1)
    second.add(0.0, 2)
    second.add(5.0, 0)
    assert first + second == Durations(120.0, [2, *[0] * (len(APPLY_SECONDS) - 1), 1])
    assert Sessions(1, 2) + Sessions(3, 4) == Sessions(4, 6)


def test_deltas_that_wait_are_told_by_table() -> None:
    assert samples()["streamer_delta_rows_pending", "public.t"] == 1210


def test_slots_and_the_wal_guard_are_told() -> None:
    served = samples()
    assert served["streamer_slot_retained_bytes", "a", "x"] == 4096
    assert served["streamer_slot_wal_status", "a", "x", "extended"] == 1
    assert served["streamer_slot_wal_status", "a", "x", "lost"] == 0
    assert served["streamer_node_wal_guard", "half", "a"] == 1
    assert served["streamer_node_sampled_timestamp_seconds", "a"] == NOW.timestamp()
