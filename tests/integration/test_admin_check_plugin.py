"""`streamer check` of a source before version 10, which has no temporary slots: is wal2json there."""

from __future__ import annotations

import pytest

from streamer.admin import check_connection
from streamer.admin.check_connection import try_slot
from streamer.admin.findings import error, ok
from tests.servers import Database


def test_a_plugin_that_is_not_installed_is_found_where_there_are_no_temporary_slots(
    source15: Database, source18: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_connection, "TEMPORARY_SLOTS", 999999)
    lacking = error(
        'node "a"',
        "has no plugin wal2json",
        "install it on that server (Debian: postgresql-VERSION-wal2json), or set nodes.a.capture = "
        '"pgoutput" (from version 10 on), or "trigger"',
    )
    for source in (source15, source18):
        expected = ok('node "a"', "has the plugin wal2json") if source.server.wal2json else lacking
        assert try_slot("a", source.url, "shop", "wal2json").findings == [expected]
    source15.execute("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'plain'")
    try:
        (found,) = try_slot("a", source15.server.url("source", "plain", "plain"), "shop", "wal2json").findings
        assert (found.severity, found.reason) == (
            "ok",
            "tells nobody but superusers whether it has the plugin wal2json; setup will see",
        )
    finally:
        source15.execute("DROP ROLE plain")
