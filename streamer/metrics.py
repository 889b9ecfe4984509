"""What Prometheus sees: the reports of the streams, turned into metrics when it asks. Nothing is counted a second time here.

A metric is one entry in a table below: name, text, and how its value is read off a report; docs/metrics.md says the same for
people, and a test compares them. A value that is not known is left out, never 0.

https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streamer import FORM, __version__
from streamer.logs import lost_records
from streamer.model import LSN
from streamer.report import (
    APPLY_SECONDS,
    CONTINUOUS,
    DeltaReport,
    EdgeReport,
    GuardLevel,
    NodeReport,
    ProofReport,
    Result,
    SlotReport,
    State,
    StreamReport,
)
from streamer.sinks.policy import ConflictKind

Report = TypeVar("Report", EdgeReport, StreamReport, SlotReport, NodeReport, DeltaReport)
COUNTER: Final = CounterMetricFamily
GAUGE: Final = GaugeMetricFamily
WAL_STATUSES: Final = ("reserved", "extended", "unreserved", "lost")
"""https://www.postgresql.org/docs/current/view-pg-replication-slots.html"""


@dataclass(frozen=True, slots=True)
class Series(Generic[Report]):
    """A metric that every report has. With `label`, `value` gives one value for each value of that label; None is left out."""

    make: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    text: str
    value: Callable[[Report], float | Mapping[str, float] | None]
    label: str = ""

    def family(self, labels: Sequence[str], reports: Sequence[Report]) -> Metric:
        """Return the metric with the values of all reports, which `labels` tell apart."""
        family = self.make(self.name, self.text, labels=[*labels, self.label] if self.label else labels)
        for report in reports:
            names: list[str] = [getattr(report, label) for label in labels]
            value = self.value(report)
            if isinstance(value, Mapping):
                for kind, part in value.items():
                    family.add_metric([*names, kind], part)
            elif value is not None:
                family.add_metric(names, value)
        return family


def _states(report: EdgeReport | StreamReport) -> dict[str, float]:
    return {state.value: float(state is report.state) for state in State}


def _rows(edge: EdgeReport) -> dict[str, float]:
    return {kind: getattr(edge.counters, kind) for kind in ("inserted", "updated", "deleted", "truncated")}


def _post_data(edge: EdgeReport) -> dict[str, float]:
    told = edge.post_data
    return {"waiting": told.waiting, "building": len(told.building), "refused": len(told.refused)}


def _conflicts(edge: EdgeReport) -> dict[str, float]:
    return {kind.value: edge.counters.conflicts[kind.value] for kind in ConflictKind}


def _lsn(text: str) -> float | None:
    return float(LSN.parse(text)) if text else None


def _of_proof(value: Callable[[ProofReport], float | None]) -> Callable[[EdgeReport], float | None]:
    return lambda edge: value(edge.proof) if edge.proof is not None and edge.proof.continuous else None


def _wal_status(slot: SlotReport) -> dict[str, float] | None:
    return None if slot.wal_status is None else {status: float(status == slot.wal_status) for status in WAL_STATUSES}


def _last_run(stream: StreamReport) -> float | None:
    if stream.schedule == CONTINUOUS:
        return None
    done = stream.kicks.last_done
    return done.timestamp() if done else 0.0


def _runs(stream: StreamReport) -> dict[str, float] | None:
    if stream.schedule == CONTINUOUS:
        return None
    return {Result.DONE.value: stream.kicks.runs_done, Result.FAILED.value: stream.kicks.runs_failed}


OF_EDGES: Final[Sequence[Series[EdgeReport]]] = (
    Series(
        GAUGE,
        "streamer_edge_up",
        "1 while the edge is streaming, or rests until its next run",
        lambda e: float(e.state in (State.STREAMING, State.RESTING)),
    ),
    Series(GAUGE, "streamer_edge_state", "1 for the state that the edge is in, 0 for all others", _states, "state"),
    Series(GAUGE, "streamer_edge_connected", "1 while the target is connected and takes rows", lambda e: float(e.connected)),
    Series(GAUGE, "streamer_edge_position_bytes", "What the target holds durably: the LSN as a number", lambda e: _lsn(e.position)),
    Series(
        GAUGE,
        "streamer_edge_lag_bytes",
        "WAL that the source has sent and the target does not hold yet; where triggers capture, what waits in memory",
        lambda e: e.lag_bytes,
    ),
    Series(GAUGE, "streamer_edge_lag_seconds", "Age of the oldest transaction that the target lacks", lambda e: e.lag_seconds),
    Series(
        GAUGE,
        "streamer_edge_delay_seconds",
        "From commit on the source to commit on the target, last group",
        lambda e: e.delay_seconds,
    ),
    Series(
        GAUGE,
        "streamer_edge_clock_skew_seconds",
        "How far the last commit time lay ahead of the target's clock when it came",
        lambda e: e.skew_seconds,
    ),
    Series(GAUGE, "streamer_edge_queue_bytes", "Changes waiting in memory for the target", lambda e: e.queue_bytes),
    Series(GAUGE, "streamer_edge_copy_rows", "Rows that initial copies have sent", lambda e: e.copy_totals.rows),
    Series(GAUGE, "streamer_edge_copy_expected_rows", "Estimate of what copy_rows comes to", lambda e: e.copy_totals.total_rows),
    Series(GAUGE, "streamer_edge_copy_bytes", "Bytes that initial copies have sent", lambda e: e.copy_totals.bytes),
    Series(GAUGE, "streamer_edge_copy_expected_bytes", "Estimate of what copy_bytes comes to", lambda e: e.copy_totals.total_bytes),
    Series(GAUGE, "streamer_edge_copy_ranges", "Ranges of tables that are copied", lambda e: e.copy_totals.ranges),
    Series(
        GAUGE,
        "streamer_edge_copy_expected_ranges",
        "Estimate of what copy_ranges comes to",
        lambda e: e.copy_totals.total_ranges,
    ),
    Series(GAUGE, "streamer_edge_copy_rows_per_second", "Rate of the present initial copy", lambda e: e.copy_totals.rate),
    Series(GAUGE, "streamer_edge_copy_remaining_seconds", "Estimate of what it still takes", lambda e: e.copy_totals.remaining),
    Series(
        GAUGE,
        "streamer_edge_post_data",
        "Indexes and constraints that tables are still to get, by state: waiting, building, or refused by the target",
        _post_data,
        "state",
    ),
    Series(COUNTER, "streamer_edge_rows", "Rows written by changes, by kind; truncated counts tables", _rows, "kind"),
    Series(COUNTER, "streamer_edge_transactions", "Source transactions applied", lambda e: e.counters.transactions),
    Series(COUNTER, "streamer_edge_groups", "Target transactions committed", lambda e: e.counters.groups),
    Series(COUNTER, "streamer_edge_missing_rows", "Updates and deletes that found no row", lambda e: e.counters.missing),
    Series(COUNTER, "streamer_edge_conflicts", "Conflicts resolved, by kind", _conflicts, "kind"),
    Series(
        COUNTER,
        "streamer_edge_replaced_values",
        "Values that the target cannot hold, written as NULL or as the nearest one",
        lambda e: e.counters.replaced,
    ),
    Series(GAUGE, "streamer_edge_quarantine_changes", "Changes that the target holds in quarantine", lambda e: e.quarantined),
    Series(COUNTER, "streamer_edge_quarantined_changes", "Changes put into quarantine", lambda e: e.counters.quarantined),
    Series(
        GAUGE,
        "streamer_edge_proof_rows",
        "Rows of the source that the target has alike, by the last comparison of each table",
        _of_proof(lambda p: p.rows),
    ),
    Series(
        GAUGE,
        "streamer_edge_proof_age_seconds",
        "How long ago the oldest part of that was read; not known until every table was compared",
        _of_proof(lambda p: p.age(datetime.now(UTC))),
    ),
    Series(GAUGE, "streamer_edge_proof_differences", "Rows that differ, by the same", _of_proof(lambda p: p.different)),
    Series(COUNTER, "streamer_edge_proof_compared_rows", "Rows compared without end", _of_proof(lambda p: p.compared)),
    Series(COUNTER, "streamer_edge_proof_failures", "Comparisons that failed", _of_proof(lambda p: p.failures)),
    Series(COUNTER, "streamer_edge_copied_rows", "Rows of finished initial copies", lambda e: e.counters.copied),
    Series(COUNTER, "streamer_edge_retries", "Failures after which the edge began again", lambda e: e.counters.retries),
    Series(COUNTER, "streamer_edge_connects", "Times that the target was connected and ready", lambda e: e.counters.connects),
    Series(
        COUNTER,
        "streamer_edge_commit_wait_seconds",
        "Time spent waiting until the target's clock had passed commit times",
        lambda e: e.counters.waited,
    ),
)
APPLY: Final = ("streamer_edge_apply_seconds", "What the target took for a group; groups written at once have equal shares")
OF_STREAMS: Final[Sequence[Series[StreamReport]]] = (
    Series(GAUGE, "streamer_stream_state", "1 for the state that the stream is in, 0 for all others", _states, "state"),
    Series(GAUGE, "streamer_stream_connected", "1 while the source is being read", lambda s: float(s.connected)),
    Series(
        GAUGE,
        "streamer_stream_confirmed_bytes",
        "What was confirmed to the source: the LSN as a number",
        lambda s: _lsn(s.confirmed),
    ),
    Series(COUNTER, "streamer_stream_connects", "Times that the source was connected and read", lambda s: s.sessions.opened),
    Series(COUNTER, "streamer_stream_retries", "Failures after which the stream began again", lambda s: s.sessions.failed),
    Series(COUNTER, "streamer_stream_runs", "Runs that have ended, by result", _runs, "result"),
    Series(
        GAUGE,
        "streamer_stream_last_run_timestamp_seconds",
        "When the last run that was done has ended, as Unix time; 0 before",
        _last_run,
    ),
)
OF_SLOTS: Final[Sequence[Series[SlotReport]]] = (
    Series(GAUGE, "streamer_slot_retained_bytes", "WAL that the server keeps for the slot", lambda s: s.retained_bytes),
    Series(GAUGE, "streamer_slot_safe_bytes", "WAL that may be written before the slot is in danger", lambda s: s.safe_wal_bytes),
    Series(GAUGE, "streamer_slot_lag_bytes", "WAL behind what was confirmed", lambda s: s.lag_bytes),
    Series(GAUGE, "streamer_slot_active", "1 while somebody reads the slot", lambda s: float(s.active)),
    Series(GAUGE, "streamer_slot_wal_status", "1 for the slot's wal_status, 0 for all others", _wal_status, "status"),
)
OF_NODES: Final[Sequence[Series[NodeReport]]] = (
    Series(
        GAUGE,
        "streamer_node_sampled_timestamp_seconds",
        "When the node's slots were looked at, as Unix time",
        lambda n: None if n.sampled_at is None else n.sampled_at.timestamp(),
    ),
    Series(GAUGE, "streamer_node_max_retained_bytes", "max_retained_wal of the config", lambda n: n.max_retained_bytes),
    Series(
        GAUGE,
        "streamer_node_wal_guard",
        "1 for the level that the WAL guard has found, 0 for all others",
        lambda n: {level.value: float(level is n.level) for level in GuardLevel},
        "level",
    ),
)
OF_DELTAS: Final[Series[DeltaReport]] = Series(
    GAUGE,
    "streamer_delta_rows_pending",
    "Changes that triggers have noted and not every target holds yet; at least this many from 100,000 a stream on",
    lambda d: d.rows,
)


class ReportCollector(Collector):
    """Collects the metrics of all streams and edges from `report`, and of sources, their slots and deltas from `nodes`."""

    def __init__(self, report: Callable[[], Sequence[StreamReport]], nodes: Callable[[], Sequence[NodeReport]]) -> None:
        self._report = report
        self._nodes = nodes

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        build = GaugeMetricFamily(
            "streamer_build_info",
            "1, with the versions of streamer and Python, and how the hot path runs",
            labels=["version", "python", "form"],
        )
        build.add_metric([__version__, platform.python_version(), FORM], 1)
        yield build
        streams = self._report()
        edges = [edge for stream in streams for edge in stream.edges]
        for of_edge in OF_EDGES:
            yield of_edge.family(("sync", "source", "target"), edges)
        yield _applied(edges)
        for of_stream in OF_STREAMS:
            yield of_stream.family(("sync", "source"), streams)
        nodes = self._nodes()
        for of_node in OF_NODES:
            yield of_node.family(("node",), nodes)
        slots = [slot for node in nodes for slot in node.slots]
        for of_slot in OF_SLOTS:
            yield of_slot.family(("node", "slot", "sync"), slots)
        yield OF_DELTAS.family(("sync", "source", "table"), [delta for node in nodes for delta in node.deltas])
        yield CounterMetricFamily("streamer_log_lost_records", "Log records that could not be written", lost_records())


def _applied(edges: Sequence[EdgeReport]) -> Metric:
    family = HistogramMetricFamily(*APPLY, labels=("sync", "source", "target"))
    bounds = [*map(str, APPLY_SECONDS), "+Inf"]
    for edge in edges:
        spent = edge.counters.apply
        buckets = list(zip(bounds, accumulate(spent.counts), strict=True))
        family.add_metric([edge.sync, edge.source, edge.target], buckets, spent.seconds)
    return family


def exposition(report: Callable[[], Sequence[StreamReport]], nodes: Callable[[], Sequence[NodeReport]] = tuple) -> bytes:
    """Return the metrics in Prometheus' text format, those of the process with them."""
    registry = CollectorRegistry()
    registry.register(ReportCollector(report, nodes))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
