"""The two dashboards, as code: `python grafana/dashboards.py` writes them as JSON, which Grafana reads, to grafana/dashboards.

Change a panel here, run this, and commit both: a test compares them, and asks a real Prometheus every query.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from panels import STATES, Json, dashboard, lines, panel, query, row, stat, state_names, states, thresholds, timeline, variable

OVERVIEW: Final = "streamer-overview"
STREAM: Final = "streamer-stream"
SYNC: Final = 'sync=~"$sync"'
OF_STREAM: Final = 'sync=~"$sync", source=~"$source"'
OF_SLOT: Final = 'sync=~"$sync", node=~"$source"'
OF_EDGE: Final = 'sync=~"$sync", source=~"$source", target=~"$target"'
EDGE: Final = "{{sync}}: {{source}} → {{target}}"
BY_STREAM: Final = "sync, source"
BY_EDGE: Final = "sync, source, target"
LAG: Final = "Age of the oldest transaction that the daemon has read and the target does not hold yet; 0 when caught up."
LAG_SECONDS: Final = thresholds(orange=30, red=300)
WITH_SLOT: Final = 'label_replace(streamer_slot_active, "source", "$1", "node", "(.+)")'
"""The streams that read a slot."""
BAD: Final = thresholds(red=1)
WORRYING: Final = thresholds(orange=1)
RETAINED: Final = thresholds(orange=1 << 30, red=10 << 30)


def rate(metric: str, selector: str, by: str) -> str:
    """What a counter grows by in a second."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def overview() -> Json:
    """All syncs at a glance: is everything running, how far behind is it, what does it do."""
    of_process = 'job="streamer"'
    return dashboard(
        OVERVIEW,
        "streamer: overview",
        "All syncs at a glance: is everything running, how far behind is it, and what does it do. "
        "Click an edge in the table to see its stream in depth.",
        [variable("sync", "Sync", "streamer_edge_up")],
        [_link("One stream in depth", STREAM)],
        [
            row("Now"),
            stat(
                "Daemons that do not answer",
                "Daemons of the Prometheus job `streamer` that could not be scraped.",
                f"count(up{{{of_process}}} == 0) or vector(0)",
                limits=BAD,
            ),
            stat(
                "Edges that do not stream",
                "Edges that retry, have failed, are paused, copy or start: all but those that stream, rest until their next run, "
                "or stand by.",
                f'sum(streamer_edge_state{{{SYNC}, state!~"streaming|resting|standby"}})',
                limits=WORRYING,
            ),
            stat(
                "Edges that need a person",
                "Edges that have failed for good. `streamer status` tells the error and its remedy.",
                f'sum(streamer_edge_state{{{SYNC}, state="failed"}})',
                limits=BAD,
            ),
            stat(
                "Greatest lag",
                "Age of the oldest transaction that was read and is not on some target yet; 0 when all have caught up.",
                f"max(streamer_edge_lag_seconds{{{SYNC}}})",
                unit="s",
                limits=LAG_SECONDS,
            ),
            stat(
                "Most WAL kept by a slot",
                "WAL that a source keeps for the slot that is furthest behind. Too much of it fills the source's disk.",
                f"max(streamer_slot_retained_bytes{{{SYNC}}})",
                unit="bytes",
                limits=RETAINED,
            ),
            stat(
                "Rows a second",
                "Rows inserted, updated and deleted on all targets together.",
                f'sum(rate(streamer_edge_rows_total{{{SYNC}, kind!="truncated"}}[$__rate_interval]))',
                unit="rowsps",
            ),
            _edges(),
            row("Over time"),
            timeline(
                "State of the edges",
                "What every edge was doing. Hours of orange mean that streamer cannot cure it by itself.",
                query(states("streamer_edge_state", BY_EDGE, SYNC), EDGE),
            ),
            lines(
                "Lag",
                LAG,
                query(f"streamer_edge_lag_seconds{{{SYNC}}}", EDGE),
                unit="s",
                width=12,
                limits=LAG_SECONDS,
            ),
            lines(
                "Delay",
                "From the commit on the source to the commit on the target, for the last group; by both machines' clocks.",
                query(f"streamer_edge_delay_seconds{{{SYNC}}}", EDGE),
                unit="s",
                width=12,
            ),
            lines(
                "Rows",
                "Rows inserted, updated and deleted on each target.",
                query(rate("streamer_edge_rows_total", f'{SYNC}, kind!="truncated"', BY_EDGE), EDGE),
                unit="rowsps",
                width=12,
            ),
            lines(
                "Transactions",
                "Transactions of the source that were applied on each target.",
                query(rate("streamer_edge_transactions_total", SYNC, BY_EDGE), EDGE),
                unit="ops",
                width=12,
            ),
            lines(
                "WAL kept by slots",
                "WAL that each source keeps because a target does not have it yet.",
                query(f"streamer_slot_retained_bytes{{{SYNC}}}", "{{node}}: {{slot}}"),
                unit="bytes",
                limits=RETAINED,
            ),
            lines(
                "Conflicts",
                "Conflicts between several sources that were resolved, by kind. `streamer conflicts list` shows the rows.",
                query(rate("streamer_edge_conflicts_total", SYNC, "kind"), "{{kind}}"),
                unit="ops",
                stacked=True,
            ),
            lines(
                "Failures",
                "Failures after which an edge, or the reading of a source, began again.",
                query(f"sum by ({BY_EDGE}) (increase(streamer_edge_retries_total{{{SYNC}}}[$__rate_interval]))", EDGE),
                query(
                    f"sum by ({BY_STREAM}) (increase(streamer_stream_retries_total{{{SYNC}}}[$__rate_interval]))",
                    "{{sync}}: reading {{source}}",
                ),
            ),
            row("Daemons"),
            lines(
                "Processor",
                "Processor time; 1 is one core. Decoding and writing share it.",
                query(f"rate(process_cpu_seconds_total{{{of_process}}}[$__rate_interval])", "{{instance}}"),
                unit="percentunit",
            ),
            lines(
                "Memory",
                "Resident memory. Each edge's queue holds 32 MB at most, so it is bounded by the number of edges.",
                query(f"process_resident_memory_bytes{{{of_process}}}", "{{instance}}"),
                unit="bytes",
            ),
            panel(
                "table",
                "Versions",
                "Which streamer and which Python run where.",
                query(f"streamer_build_info{{{of_process}}}", instant=True, format="table"),
                transformations=[_columns(["instance", "version", "python", "form"], {"instance": "daemon"})],
            ),
        ],
    )


def _edges() -> Json:
    """A row for each edge, with a link to its stream.

    The trap: Grafana merges lines only if they agree in every label that they share, and the name of a metric counts as one.
    """
    queries = {
        "state": states("streamer_edge_state", BY_EDGE, SYNC),
        "lag": f"max by ({BY_EDGE}) (streamer_edge_lag_seconds{{{SYNC}}})",
        "behind": f"max by ({BY_EDGE}) (streamer_edge_lag_bytes{{{SYNC}}})",
        "rows/s": rate("streamer_edge_rows_total", f'{SYNC}, kind!="truncated"', BY_EDGE),
        "failures, 1 h": f"sum by ({BY_EDGE}) (increase(streamer_edge_retries_total{{{SYNC}}}[1h]))",
    }
    values = {f"Value #{chr(ord('A') + number)}": name for number, name in enumerate(queries)}
    labels = ["sync", "source", "target"]
    table = panel(
        "table",
        "Edges",
        "How every edge stands now. A click on a target leads to its stream.",
        *(query(expression, instant=True, format="table") for expression in queries.values()),
        width=24,
        transformations=[{"id": "merge", "options": {}}, _columns([*labels, *values], values)],
    )
    colors = thresholds("text", orange=STATES["retrying"][0], red=STATES["failed"][0])
    colored = {"custom.cellOptions": {"type": "color-text"}}
    link = f"/d/{STREAM}?var-sync=${{__data.fields.sync}}&var-source=${{__data.fields.source}}&var-target=${{__data.fields.target}}"
    table["fieldConfig"]["overrides"] = [
        _override("target", {"links": [{"title": "this stream in depth", "url": f"{link}&${{__url_time_range}}"}]}),
        _override("state", {"mappings": state_names(), "thresholds": colors} | colored),
        _override("lag", {"unit": "s", "decimals": 1, "thresholds": LAG_SECONDS} | colored),
        _override("behind", {"unit": "bytes"}),
        _override("rows/s", {"unit": "rowsps", "decimals": 1}),
        _override("failures, 1 h", {"decimals": 0}),
    ]
    return table


def _columns(names: list[str], titles: dict[str, str]) -> Json:
    """Show these columns in this order, under these titles, and no others."""
    order = {name: number for number, name in enumerate(names)}
    return {
        "id": "organize",
        "options": {"includeByName": dict.fromkeys(names, True), "indexByName": order, "renameByName": titles},
    }


def _override(column: str, properties: Json) -> Json:
    """What holds for one column of a table."""
    return {
        "matcher": {"id": "byName", "options": column},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _link(title: str, uid: str) -> Json:
    """A link at the top of a dashboard to another one, with the time range and what was chosen."""
    return {
        "type": "link",
        "title": title,
        "url": f"/d/{uid}",
        "icon": "dashboard",
        "tags": [],
        "tooltip": "",
        "asDropdown": False,
        "keepTime": True,
        "includeVars": True,
        "targetBlank": False,
    }


def _copied(what: str) -> str:
    """How much of the initial copy is there, as a part of what it comes to."""
    return f"streamer_edge_copy_{what}{{{OF_EDGE}}} / (streamer_edge_copy_expected_{what}{{{OF_EDGE}}} > 0)"


def stream() -> Json:
    """One stream in depth: where it stands, what it does, where the time goes, what went wrong."""
    return dashboard(
        STREAM,
        "streamer: one stream",
        "One sync read from one source, and its targets: where it stands, what it does, where the time goes, what went wrong.",
        [
            variable("sync", "Sync", "streamer_edge_up"),
            variable("source", "Source", "streamer_edge_up", of=SYNC),
            variable("target", "Target", "streamer_edge_up", of=OF_STREAM),
        ],
        [_link("All syncs", OVERVIEW)],
        [
            row("Where it stands"),
            timeline(
                "State",
                "What the reading of the source and each edge were doing.",
                query(states("streamer_stream_state", BY_STREAM, OF_STREAM), "{{sync}}: reading {{source}}"),
                query(states("streamer_edge_state", BY_EDGE, OF_EDGE), EDGE),
            ),
            lines(
                "Lag",
                LAG,
                query(f"streamer_edge_lag_seconds{{{OF_EDGE}}}", EDGE),
                unit="s",
                limits=LAG_SECONDS,
            ),
            lines(
                "Behind",
                "WAL that the source has sent and the target does not hold yet.",
                query(f"streamer_edge_lag_bytes{{{OF_EDGE}}}", EDGE),
                unit="bytes",
            ),
            lines(
                "Delay",
                "From the commit on the source to the commit on the target, for the last group; by both machines' clocks.",
                query(f"streamer_edge_delay_seconds{{{OF_EDGE}}}", EDGE),
                unit="s",
            ),
            lines(
                "WAL kept by the slot",
                "WAL that the source keeps because a target does not have it yet, and how much more may be written before the slot "
                "is lost (`max_slot_wal_keep_size`; PostgreSQL 13 and newer).",
                query(f"streamer_slot_retained_bytes{{{OF_SLOT}}}", "{{slot}} keeps"),
                query(f"streamer_slot_safe_bytes{{{OF_SLOT}}}", "{{slot}}: may still be written"),
                unit="bytes",
            ),
            lines(
                "Captured changes that wait",
                "Where triggers capture: changes that not every target holds yet. `streamer status` tells them by table.",
                query(f"sum(streamer_delta_rows_pending{{{OF_STREAM}}}) or vector(0)", "changes"),
            ),
            lines(
                "WAL passed",
                "How fast the targets move along the source's WAL. Nothing where triggers capture: there positions count batches.",
                query(f"rate(streamer_edge_position_bytes{{{OF_EDGE}}}[$__rate_interval]) and on ({BY_STREAM}) {WITH_SLOT}", EDGE),
                unit="Bps",
            ),
            row("The initial copy"),
            panel(
                "bargauge",
                "Initial copy",
                "Rows, bytes and ranges of large tables that were copied since the daemon started, of those expected by the "
                "source's statistics; it may pass 100 %.",
                *(query(_copied(what), f"{EDGE}: {what}", instant=True) for what in ("rows", "bytes", "ranges")),
                unit="percentunit",
                defaults={"min": 0, "max": 1, "noValue": "no copy since the daemon started"},
                options={"displayMode": "basic", "orientation": "horizontal", "valueMode": "color"},
            ),
            lines(
                "Rate of the copy",
                "Rows a second since the present copy began.",
                query(f"streamer_edge_copy_rows_per_second{{{OF_EDGE}}}", EDGE),
                unit="rowsps",
            ),
            lines(
                "Time left",
                "How long the rest of the copy takes at that rate.",
                query(f"streamer_edge_copy_remaining_seconds{{{OF_EDGE}}}", EDGE),
                unit="s",
            ),
            row("What it does"),
            lines(
                "Rows by kind",
                "Rows written on the targets; truncated counts tables.",
                query(rate("streamer_edge_rows_total", OF_EDGE, "kind"), "{{kind}}"),
                unit="rowsps",
                stacked=True,
            ),
            lines(
                "Transactions and groups",
                "Transactions of the source, and the transactions on the target that they were gathered in.",
                query(rate("streamer_edge_transactions_total", OF_EDGE, BY_EDGE), f"{EDGE}: transactions"),
                query(rate("streamer_edge_groups_total", OF_EDGE, BY_EDGE), f"{EDGE}: groups"),
                unit="ops",
            ),
            lines(
                "Conflicts",
                "Conflicts between several sources that were resolved. `streamer conflicts list` shows the rows.",
                query(rate("streamer_edge_conflicts_total", OF_EDGE, "kind"), "{{kind}}"),
                unit="ops",
                stacked=True,
            ),
            row("Where the time goes"),
            lines(
                "Time for a group",
                "What the target takes for a group: half of them, 95 of 100, and 99 of 100 take at most this long.",
                *(query(_quantile(share), f"{EDGE}: {share:.0%}") for share in (0.5, 0.95, 0.99)),
                unit="s",
            ),
            lines(
                "Target busy",
                "The part of the time in which the edge waits for its target to write. Near 100 % the target is the bottleneck.",
                query(rate("streamer_edge_apply_seconds_sum", OF_EDGE, BY_EDGE), EDGE),
                unit="percentunit",
                limits=thresholds(orange=0.9),
            ),
            lines(
                "Queue",
                "Changes that wait in memory for the target. If it stays at its 32 MB, the target is the bottleneck.",
                query(f"streamer_edge_queue_bytes{{{OF_EDGE}}}", EDGE),
                unit="bytes",
                limits=thresholds(orange=30 << 20),
            ),
            lines(
                "Waiting for clocks",
                "The part of the time spent waiting until the target's clock had passed commit times (several sources only).",
                query(rate("streamer_edge_commit_wait_seconds_total", OF_EDGE, BY_EDGE), EDGE),
                unit="percentunit",
                width=12,
            ),
            lines(
                "Clock skew",
                "How far the last commit time lay ahead of the target's clock when it came (several sources only). "
                "Beyond `max_clock_skew` the edge stops.",
                query(f"streamer_edge_clock_skew_seconds{{{OF_EDGE}}}", EDGE),
                unit="s",
                width=12,
                limits=thresholds(orange=1),
            ),
            row("What went wrong"),
            lines(
                "Failures and connections",
                "Failures after which an edge or the reading began again, and how often each was connected.",
                query(f"increase(streamer_edge_retries_total{{{OF_EDGE}}}[$__rate_interval])", f"{EDGE}: failures"),
                query(f"increase(streamer_edge_connects_total{{{OF_EDGE}}}[$__rate_interval])", f"{EDGE}: connected"),
                query(
                    f"increase(streamer_stream_retries_total{{{OF_STREAM}}}[$__rate_interval])",
                    "{{sync}}: reading {{source}}: failures",
                ),
                query(
                    f"increase(streamer_stream_connects_total{{{OF_STREAM}}}[$__rate_interval])",
                    "{{sync}}: reading {{source}}: connected",
                ),
            ),
            lines(
                "Rows not found, values replaced",
                "Updates and deletes whose row was not on the target, and values that its columns cannot hold.",
                query(f"increase(streamer_edge_missing_rows_total{{{OF_EDGE}}}[$__rate_interval])", f"{EDGE}: rows not found"),
                query(f"increase(streamer_edge_replaced_values_total{{{OF_EDGE}}}[$__rate_interval])", f"{EDGE}: values replaced"),
            ),
            lines(
                "Quarantine",
                "Changes that the target refused, with later ones of the same rows: held until somebody retries or discards them.",
                query(f"streamer_edge_quarantine_changes{{{OF_EDGE}}}", EDGE),
            ),
            lines(
                "Rows that differ",
                "What the comparison all the time has found, by the last look at each table.",
                query(f"streamer_edge_proof_differences{{{OF_EDGE}}}", EDGE),
            ),
            lines(
                "Age of the proof",
                "How long ago the oldest rows were compared.",
                query(f"streamer_edge_proof_age_seconds{{{OF_EDGE}}}", EDGE),
                unit="s",
            ),
            lines(
                "Runs",
                "Runs that have ended, of syncs that do not run all the time.",
                query(rate("streamer_stream_runs_total", OF_STREAM, "result"), "{{result}}"),
                unit="ops",
            ),
        ],
    )


def _quantile(share: float) -> str:
    buckets = rate("streamer_edge_apply_seconds_bucket", OF_EDGE, f"{BY_EDGE}, le")
    return f"histogram_quantile({share}, {buckets})"


def main(directory: Path) -> None:
    """Write both dashboards to the directory."""
    for made in (overview(), stream()):
        text = json.dumps(made, indent=2, ensure_ascii=False)
        (directory / f"{made['uid']}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("dashboards"))
