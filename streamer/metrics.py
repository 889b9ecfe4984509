"""What Prometheus sees: the reports of the streams, turned into metrics when it asks. Nothing is counted a second time here.

https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamer.report import CONTINUOUS, EdgeReport, Result, State, StreamReport
from streamer.sinks.policy import ConflictKind

EDGE: Final = ("sync", "source", "target")
GAUGES: Final[dict[str, tuple[str, Callable[[EdgeReport], float]]]] = {
    "streamer_edge_up": (
        "1 while the edge is streaming, or rests until its next run",
        lambda e: float(e.state in (State.STREAMING, State.RESTING)),
    ),
    "streamer_edge_lag_bytes": ("WAL that the source has sent and the target does not hold yet", lambda e: e.lag_bytes),
    "streamer_edge_lag_seconds": ("Age of the last applied transaction while more is waiting", lambda e: e.lag_seconds),
    "streamer_edge_delay_seconds": ("From commit on the source to commit on the target, last group", lambda e: e.delay_seconds),
    "streamer_edge_clock_skew_seconds": (
        "How far the last commit time lay ahead of the target's clock when it came",
        lambda e: e.skew_seconds,
    ),
    "streamer_edge_queue_bytes": ("Changes waiting in memory for the target", lambda e: e.queue_bytes),
}
COUNTERS: Final[dict[str, tuple[str, Callable[[EdgeReport], float]]]] = {
    "streamer_edge_transactions": ("Source transactions applied", lambda e: e.counters.transactions),
    "streamer_edge_groups": ("Target transactions committed", lambda e: e.counters.groups),
    "streamer_edge_missing_rows": ("Updates and deletes that found no row", lambda e: e.counters.missing),
    "streamer_edge_replaced_values": (
        "Values that the target cannot hold, written as NULL or as the nearest one",
        lambda e: e.counters.replaced,
    ),
    "streamer_edge_copied_rows": ("Rows of finished initial copies", lambda e: e.counters.copied),
    "streamer_edge_retries": ("Failures after which the edge began again", lambda e: e.counters.retries),
}
ROWS: Final = "streamer_edge_rows"
CONFLICTS: Final = "streamer_edge_conflicts"
STREAM: Final = ("sync", "source")
RUNS: Final = "streamer_stream_runs"
LAST_RUN: Final = "streamer_stream_last_run_timestamp_seconds"
KINDS: Final = ("inserted", "updated", "deleted", "truncated")


class ReportCollector(Collector):
    """Collects the metrics of all edges from `report`."""

    def __init__(self, report: Callable[[], Sequence[StreamReport]]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        streams = self._report()
        yield from _runs([stream for stream in streams if stream.schedule != CONTINUOUS])
        edges = [edge for stream in streams for edge in stream.edges]
        for name, (text, value) in GAUGES.items():
            yield _filled(GaugeMetricFamily(name, text, labels=EDGE), edges, value)
        for name, (text, value) in COUNTERS.items():
            yield _filled(CounterMetricFamily(name, text, labels=EDGE), edges, value)
        rows = CounterMetricFamily(ROWS, "Rows written by changes, by kind; truncated counts tables", labels=[*EDGE, "kind"])
        for edge in edges:
            for kind in KINDS:
                rows.add_metric([*_labels(edge), kind], getattr(edge.counters, kind))
        yield rows
        conflicts = CounterMetricFamily(CONFLICTS, "Conflicts resolved, by kind", labels=[*EDGE, "kind"])
        for edge in edges:
            for kind in ConflictKind:
                conflicts.add_metric([*_labels(edge), kind.value], edge.counters.conflicts[kind.value])
        yield conflicts


def _runs(streams: Sequence[StreamReport]) -> Iterator[Metric]:
    """The metrics of streams that rest between their runs."""
    runs = CounterMetricFamily(RUNS, "Runs that have ended, by result", labels=[*STREAM, "result"])
    last = GaugeMetricFamily(LAST_RUN, "When the last run that was done has ended, as Unix time; 0 before", labels=STREAM)
    for stream in streams:
        runs.add_metric([stream.sync, stream.source, Result.DONE], stream.kicks.runs_done)
        runs.add_metric([stream.sync, stream.source, Result.FAILED], stream.kicks.runs_failed)
        done = stream.kicks.last_done
        last.add_metric([stream.sync, stream.source], done.timestamp() if done else 0.0)
    yield runs
    yield last


def _labels(edge: EdgeReport) -> list[str]:
    return [edge.sync, edge.source, edge.target]


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, edges: Sequence[EdgeReport], value: Callable[[EdgeReport], float]
) -> GaugeMetricFamily | CounterMetricFamily:
    for edge in edges:
        family.add_metric(_labels(edge), value(edge))
    return family


def exposition(report: Callable[[], Sequence[StreamReport]]) -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(ReportCollector(report))
    return generate_latest(registry)
