"""Every alert rule fires when it should and not before, in promtool's simulated time, and leads to a section of the runbook."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.prometheus import RULES, program, rules

DOCS: Final = Path(__file__).parents[2] / "docs"
EDGE: Final = 'sync="shop", source="a", target="b"'
STREAM: Final = 'sync="shop", source="a"'
SLOT: Final = 'node="a", slot="streamer_shop_a", sync="shop"'
DAEMON: Final = 'job="streamer", instance="m"'


@dataclass(frozen=True)
class Case:
    """Series that make an alert fire `fires` minutes after the beginning, and not `quiet` minutes after it."""

    alert: str
    #: by series, in promtool's notation: "0+10x5" is six minutes, growing by ten
    series: dict[str, str]
    quiet: int
    fires: int


def one(alert: str, series: str, values: str, quiet: int, fires: int) -> Case:
    return Case(alert, {series: values}, quiet, fires)


CASES: Final = [
    one("StreamerDown", f"up{{{DAEMON}}}", "1x2 0x10", 4, 6),
    one("StreamerEdgeFailed", f'streamer_edge_state{{{EDGE}, state="failed"}}', "0x2 1x10", 2, 5),
    Case(
        "StreamerEdgeRetrying",
        {
            f'streamer_edge_state{{{EDGE}, state="starting"}}': "0 1x3 0x30",
            f'streamer_edge_state{{{EDGE}, state="retrying"}}': "0 0x3 1x30",
        },
        10,
        12,
    ),
    one("StreamerStreamFailed", f'streamer_stream_state{{{STREAM}, state="failed"}}', "0x2 1x10", 2, 5),
    one("StreamerStreamRetrying", f'streamer_stream_state{{{STREAM}, state="retrying"}}', "0 1x30", 10, 12),
    one("StreamerUnstable", f"streamer_edge_retries_total{{{EDGE}}}", "0x9 0+1x20", 12, 18),
    one("StreamerRestarting", f"process_start_time_seconds{{{DAEMON}}}", "100 200 300 400 500 600", 3, 5),
    one("StreamerLagging", f"streamer_edge_lag_seconds{{{EDGE}}}", "0 301x20", 10, 12),
    Case(
        "StreamerCopyStalled",
        {
            f'streamer_edge_state{{{EDGE}, state="copying"}}': "1x60",
            f"streamer_edge_copy_rows{{{EDGE}}}": "0+10x10 100x60",
        },
        25,
        31,
    ),
    one("StreamerPaused", f'streamer_edge_state{{{EDGE}, state="paused"}}', "0 1x90", 60, 62),
    one("StreamerRunFailed", f'streamer_stream_runs_total{{{STREAM}, result="failed"}}', "0x5 1x10", 5, 7),
    one("StreamerSlotRetainsWal", f"streamer_slot_retained_bytes{{{SLOT}}}", "0 11000000000x20", 10, 12),
    one("StreamerWalGuard", 'streamer_node_wal_guard{node="a", level="exceeded"}', "0x5 1x10", 5, 6),
    one("StreamerSlotEndangered", f'streamer_slot_wal_status{{{SLOT}, status="unreserved"}}', "0x5 1x10", 5, 6),
    one("StreamerSourceUnwatched", 'streamer_node_sampled_timestamp_seconds{node="a"}', "0x20", 5, 6),
    one("StreamerRowsMissing", f"streamer_edge_missing_rows_total{{{EDGE}}}", "0x5 3x10", 5, 7),
    one("StreamerValuesReplaced", f"streamer_edge_replaced_values_total{{{EDGE}}}", "0x5 3x10", 5, 7),
    one("StreamerQuarantined", f"streamer_edge_quarantine_changes{{{EDGE}}}", "0x5 3x10", 5, 7),
    one("StreamerRowsDiffer", f"streamer_edge_proof_differences{{{EDGE}}}", "0x5 3x10", 5, 7),
    one("StreamerProofOld", f"streamer_edge_proof_age_seconds{{{EDGE}}}", "0 700000x90", 60, 62),
    one("StreamerConflicts", f'streamer_edge_conflicts_total{{{EDGE}, kind="update_missing"}}', "0+120x60", 14, 25),
    one("StreamerClockSkew", f"streamer_edge_clock_skew_seconds{{{EDGE}}}", "0 1.5x20", 5, 7),
    Case(
        "StreamerOpenFiles",
        {f"process_open_fds{{{DAEMON}}}": "10 900x20", f"process_max_fds{{{DAEMON}}}": "1024x20"},
        5,
        7,
    ),
    one("StreamerLogLost", f"streamer_log_lost_records_total{{{DAEMON}}}", "0x5 4x10", 5, 7),
]


def test_every_alert_has_a_case() -> None:
    assert [case.alert for case in CASES] == list(rules())


def test_every_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    """One test group an alert; the test file is JSON, which is YAML too."""
    groups = []
    for case in CASES:
        firing = f'count by (alertname) (ALERTS{{alertstate="firing", alertname="{case.alert}"}})'
        alert = {"labels": f'{{alertname="{case.alert}"}}', "value": 1}
        groups.append(
            {
                "name": case.alert,
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "promql_expr_test": [
                    {"expr": firing, "eval_time": f"{case.quiet}m", "exp_samples": []},
                    {"expr": firing, "eval_time": f"{case.fires}m", "exp_samples": [alert]},
                ],
            }
        )
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": groups}), encoding="utf-8")
    tested = subprocess.run([program("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("command", ["check rules alerts.yml", "check config --syntax-only prometheus.yml"])
def test_promtool_finds_nothing_wrong(command: str) -> None:
    checked = subprocess.run([program("promtool"), *command.split()], cwd=RULES.parent, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_and_cases_ask_for_metrics_that_exist() -> None:
    documented = set(re.findall(r"^\| `(\w+)`", (DOCS / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)) | {"up"}
    asked = {name for query in rules().values() for name in re.findall(r"\b(?:streamer|process)_\w+|\bup\b", query)}
    made = {series.partition("{")[0] for case in CASES for series in case.series}
    assert asked - documented == set()
    assert made == asked


def test_every_alert_leads_to_its_section_of_the_runbook_and_none_is_left_over() -> None:
    links = re.findall(r"runbook_url: docs/runbook\.md#(\w+)\n", RULES.read_text(encoding="utf-8"))
    assert links == [name.lower() for name in rules()]
    page = (DOCS / "runbook.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(rules())
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        assert re.findall(r"^\*\*(.*?)\*\*", part, re.MULTILINE) == ["Means", "Look at", "Do"], part
