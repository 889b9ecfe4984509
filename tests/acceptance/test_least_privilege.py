"""Tests of one-way syncs and of several sources again, with streamer as a role that may do only what docs/installation.md grants.

Here are a few of each kind; `make test-as-role` runs all of them so. How: tests/role.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.role import SWITCH

ROOT = Path(__file__).parents[2]
AGAIN = {
    "one way": [
        "integration/test_stream.py::test_rows_are_copied_into_an_empty_table",
        "integration/test_trigger_stream.py::test_inserts_updates_deletes_new_keys_and_truncates_arrive",
        "integration/test_sequences.py::test_a_sequence_that_cannot_follow_is_told_and_does_not_stop_the_rows",
    ],
    "several sources": [
        "integration/test_two_way.py::test_a_node_in_two_syncs_hands_changes_on_with_their_origin",
        "acceptance/test_multi_master.py::test_every_kind_of_conflict_is_resolved_and_told",
        "acceptance/test_multi_master_rows.py::test_truncate_removes_what_was_there_before_it",
    ],
}


@pytest.mark.timeout(300)  # it makes servers of its own
@pytest.mark.parametrize("kind", AGAIN)
def test_the_rights_of_the_installation_page_are_enough(kind: str, tmp_path: Path) -> None:
    tests = [f"tests/{name}" for name in AGAIN[kind]]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/again", *tests],
        cwd=ROOT,
        env=os.environ | {SWITCH: "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout, run.stdout
