"""What slots hold back on real servers: a quiet sync holds back nothing, a guard acts, and a daemon tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer import slot_monitor
from streamer.admin.setup import setup
from streamer.admin.slots import find
from streamer.admin.status import Severity, status
from streamer.config import Config
from streamer.report import GuardLevel, NodeReport, SlotReport, State
from tests.configs import checked, document, make_config
from tests.conftest import Databases
from tests.integration.streams import Running, running
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for

MB = 1 << 20
TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text)"
BUSY = "CREATE TABLE busy (id int, v text)"
WRITE = "INSERT INTO busy SELECT g, repeat('x', 1000) FROM generate_series(1, 12000) g"  # about 12 MB of WAL


@pytest.fixture(autouse=True)
def _samples_come_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_monitor, "SAMPLE_SECONDS", 0.1)


def slot(config: Config, name: str = "streamer_shop_a") -> SlotReport:
    return next(s for s in find(config).slots if s.slot == name)


def guarded(nodes: dict[str, str], limit: str, guard: str, **options: object) -> Config:
    """A config with a limit on node `a`."""
    values = document(nodes, **options)  # type: ignore[arg-type]
    values["nodes"]["a"] |= {"max_retained_wal": limit, "wal_guard": guard}
    return checked(values)


# -- no heartbeat is needed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in another table", "in another database"])
@pytest.mark.parametrize("plugin", ["pgoutput", "wal2json"])
def test_a_sync_whose_tables_are_quiet_holds_no_wal_back(
    plugin: str, where: str, databases: Databases, pg15: PostgresServer, target18: Database
) -> None:
    quiet = databases.create(pg15, "quiet")
    busy = quiet if where == "in another table" else databases.create(pg15, "busy")
    quiet.execute(TABLE)
    busy.execute(BUSY)
    config = make_config({"a": quiet.url, "b": target18.url}, capture=plugin, tables=["public.t"])
    with running(config):
        before = slot(config)
        assert before.retained_bytes is not None
        for _ in range(3):
            busy.execute(WRITE)
        written = _end(busy) - _start(before)
        assert written > 30 * MB
        wait_for(lambda: (slot(config).lag_bytes or 0) < 4 * MB, "what was written by others to be confirmed")

        # too little to be worth moving the target's progress, but the server looks where decoding may begin anew behind it only
        busy.execute("INSERT INTO busy VALUES (1)")

        def released() -> bool:
            busy.execute("CHECKPOINT")  # where decoding may begin anew moves with the records that this writes
            return (slot(config).retained_bytes or 0) < 8 * MB

        wait_for(released, "the WAL to be released")


def _end(database: Database) -> int:
    return int(database.query("SELECT pg_current_wal_lsn() - '0/0'")[0][0])


def _start(slot: SlotReport) -> int:
    assert slot.confirmed is not None
    high, low = slot.confirmed.split("/")
    return (int(high, 16) << 32) + int(low, 16)


# -- the guard -------------------------------------------------------------------------------------------------------------------


def node(streams: Running) -> NodeReport:
    (report,) = wait_for(lambda: streams.nodes, "the source to be watched")
    return report


def the_only_slot(report: NodeReport) -> SlotReport | None:
    """The slot, once there is no other."""
    return report.slots[0] if len(report.slots) == 1 else None


def test_the_daemon_tells_what_is_held_back_and_status_is_critical_when_it_is_too_much(
    source18: Database, target15: Database
) -> None:
    source18.execute(f"{TABLE}; {BUSY}")
    config = guarded({"a": source18.url, "b": target15.url}, "4MB", "alert")
    setup(config, None, lambda line: None)
    source18.execute(WRITE)
    found = status(config)
    assert found.severity is Severity.CRITICAL
    assert any("holds back" in finding.finding for finding in found.nodes)  # also where no daemon looks
    with running(config, set_up=False) as streams:
        ours = wait_for(lambda: the_only_slot(node(streams)), "a sample without the slot of the copy")
        assert (ours.slot, ours.sync, ours.source, ours.plugin) == ("streamer_shop_a", "shop", "a", "pgoutput")

        def released() -> bool:
            source18.execute("CHECKPOINT")
            return node(streams).level is GuardLevel.OK

        wait_for(released, "the stream to have caught up")


def test_a_limit_below_a_file_of_wal_did_not_stay_exceeded_on_a_source_that_had_become_quiet(
    source18: Database, target15: Database
) -> None:
    """Where decoding may begin anew lies before the oldest open transaction; when that ended, too little followed to be noted."""
    source18.execute(f"{TABLE}; {BUSY}")
    config = guarded({"a": source18.url, "b": target15.url}, "4MB", "alert")
    with running(config) as streams, source18.connect() as open_one:
        open_one.execute("BEGIN")
        open_one.execute("INSERT INTO t VALUES (1)")
        source18.execute(WRITE)
        source18.execute("CHECKPOINT")
        wait_for(lambda: (slot(config).lag_bytes or 0) < MB, "what was written to be confirmed")
        wait_for(lambda: node(streams).level is GuardLevel.EXCEEDED, "the guard to see what the open transaction holds")
        open_one.execute("ROLLBACK")

        def released() -> bool:
            source18.execute("CHECKPOINT")
            return node(streams).level is GuardLevel.OK

        wait_for(released, "the WAL to be released")


def test_a_manual_sync_that_never_runs_is_noticed_and_its_slot_dropped_if_the_config_says_so(
    source18: Database, target15: Database
) -> None:
    source18.execute(f"{TABLE}; {BUSY}")
    config = guarded({"a": source18.url, "b": target15.url}, "4MB", "drop-slot", run="manual")
    with running(config, wait=False) as streams:
        wait_for(lambda: node(streams).slots, "the slot to be seen")
        source18.execute(WRITE)
        wait_for(lambda: not find(config).slots, "the slot to be dropped")
        said = streams.wait_for_problem("was dropped by the WAL guard")
        assert said.startswith('slot "streamer_shop_a" on "a" was dropped by the WAL guard (wal_guard = "drop-slot"): ')
        assert "max_retained_wal is 4.0 MB" in said
        (stream,) = streams.reports
        assert (stream.state, stream.problem and "streamer teardown --sync shop" in stream.problem.hint) == ("failed", True)


def test_the_guard_watches_while_rows_are_copied(source18: Database, target15: Database) -> None:
    for node_ in (source18, target15):
        node_.execute(TABLE)
    source18.execute(f"{BUSY}; INSERT INTO t VALUES (1, 'x')")
    config = guarded({"a": source18.url, "b": target15.url}, "4MB", "drop-slot")
    with target15.connect() as locker:
        locker.execute("BEGIN; LOCK TABLE t IN EXCLUSIVE MODE")
        with running(config, wait=False) as streams:
            wait_for(lambda: streams.edges["a->b"].state == State.COPYING, "the copy to be under way")
            source18.execute(WRITE)
            streams.wait_for_problem("was dropped by the WAL guard")


def test_other_work_waits_while_a_stream_holds_too_much_back(source18: Database, target15: Database, tmp_path: Path) -> None:
    source18.execute(f"{TABLE}; {BUSY}; INSERT INTO t VALUES (1, 'x')")
    late = {"sources": ["a"], "targets": ["b"], "tables": ["public.busy"], "run": "manual"}
    reports = {"sources": ["a"], "targets": ["s"], "tables": ["public.t"], "run": "manual"}
    urls = {"a": source18.url, "b": target15.url, "s": f"sqlite:///{tmp_path}/s.sqlite"}
    config = guarded(urls, "4MB", "pause", syncs={"late": late, "reports": reports})
    setup(config, "late", lambda line: None)
    source18.execute(WRITE)
    setup(config, "reports", lambda line: None)
    with running(config, wait=False, set_up=False) as streams:
        wait_for(lambda: node(streams).level is GuardLevel.EXCEEDED, "the guard to see it")
        streams.kick("reports")
        held = wait_for(lambda: next(s.held for s in streams.reports if s.sync == "reports"), "the run to be held")
        assert held.startswith('the WAL guard lets no other work begin: slot "streamer_late_a" holds back')
        streams.kick("late")  # what holds WAL back is let go on

        def released() -> bool:
            source18.execute("CHECKPOINT")
            streams.kick("late")
            return all(stream.kicks.done for stream in streams.reports)

        wait_for(released, "both to be done")
