"""What `streamer check` says of the slots of syncs that rest."""

from __future__ import annotations

import pytest

from streamer.admin.check_rest import judge_rest
from streamer.config import Sync
from streamer.errors import StreamerError


def told(run: str, **server: str) -> list[tuple[str, str]]:
    settings = Sync(sources=("a",), targets=("b",), tables=("t",), run=run)
    return [(f.severity.value, str(StreamerError(f.reason, f.remedy))) for f in judge_rest("archive", settings, "a", server)]


def test_a_continuous_sync_does_not_rest() -> None:
    assert told("continuous", max_slot_wal_keep_size="-1") == []


@pytest.mark.parametrize("run", ["manual", "every 1h"])
def test_a_slot_without_a_limit_may_fill_the_disk(run: str) -> None:
    ((severity, text),) = told(run, max_slot_wal_keep_size="-1")
    assert severity == "warning"
    assert text.startswith(
        f'keeps all WAL while the sync "archive" rests (run = "{run}"), until the disk is full; ALTER SYSTEM SET '
    )


def test_a_server_without_such_a_limit_is_told_apart() -> None:
    ((severity, text),) = told("manual")
    assert severity == "warning"
    assert "this version knows no limit; run the sync before the disk is full" in text


def test_a_limit_is_good() -> None:
    ((severity, text),) = told("manual", max_slot_wal_keep_size="10240")
    assert severity == "ok"
    assert "keeps up to 10240 MB of WAL" in text


@pytest.mark.parametrize(("run", "warned"), [("manual", True), ("every 10m", False), ("every 1d", True)])
def test_a_slot_that_would_be_invalidated_while_it_rests_is_told(run: str, warned: bool) -> None:
    found = told(run, max_slot_wal_keep_size="10240", idle_replication_slot_timeout="86400")
    warnings = [text for severity, text in found if severity == "warning"]
    assert len(warnings) == warned
    assert all("ALTER SYSTEM SET idle_replication_slot_timeout = 0" in text for text in warnings)
