"""`setup`, `check`, `triggers` and `teardown` where a source captures by triggers, on real servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamer.admin import triggers as verb
from streamer.admin.check import check
from streamer.admin.findings import Finding, failed
from streamer.admin.setup import setup
from streamer.admin.status import status
from streamer.admin.teardown import teardown
from streamer.capture import delta_list
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.errors import SchemaError, StreamerError, TargetError, UsageError
from streamer.report import State
from tests.configs import make_config
from tests.conftest import Databases, Pair
from tests.integration.streams import daemon_running
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal

TABLES = "CREATE TABLE t (id int PRIMARY KEY, v int, w int); CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE log (line text)"
SCHEMA = "SELECT nspname FROM pg_namespace WHERE nspname = 'streamer'"
FUNCTIONS = "SELECT proname FROM pg_proc WHERE oid >= 16384 ORDER BY 1"
TRIGGERS = "SELECT tgrelid::regclass::text, tgname FROM pg_trigger ORDER BY 1, 2"
SLOTS = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
PUBLICATIONS = "SELECT pubname FROM pg_publication"


def everything(database: Database) -> list[object]:
    """What streamer could leave behind in a database of any version."""
    version = database.server.version
    queries = [SCHEMA, FUNCTIONS, TRIGGERS, *([SLOTS] if version >= 90400 else []), *([PUBLICATIONS] if version >= 100000 else [])]
    return [database.query(query) for query in queries]


def captured_tables(database: Database) -> list[str]:
    query = "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'zzz_streamer_insert' ORDER BY 1"
    return [name for (name,) in database.query(query)]


def config_of(pair: Pair, tables: Sequence[str] = ("*.*",), columns: Mapping[str, Sequence[str]] | None = None) -> Config:
    source, target = pair
    table = {f"public.{name}": {"columns": list(named)} for name, named in (columns or {}).items()}
    return make_config({"a": source.url, "b": target.url}, capture="trigger", tables=list(tables), table=table)


def two_syncs(pair: Pair, file: Path, one: Mapping[str, Any], two: Mapping[str, Any]) -> Config:
    """Two syncs from the same source, to a server and to a file."""
    source, target = pair
    syncs = {"one": {"sources": ["a"], "targets": ["b"]} | dict(one), "two": {"sources": ["a"], "targets": ["s"]} | dict(two)}
    nodes = {"a": source.url, "b": target.url, "s": f"sqlite:///{file}/s.sqlite"}
    return make_config(nodes, capture="trigger", syncs=syncs)


def set_up(config: Config, only: str | None = None) -> list[str]:
    said: list[str] = []
    setup(config, only, said.append)
    return said


def tear_down(config: Config, only: str | None = None) -> tuple[list[str], list[StreamerError]]:
    said: list[str] = []
    return said, teardown(config, only, force=False, confirm=lambda lines: True, say=said.append)


def has(findings: Sequence[Finding], severity: str, *words: str) -> bool:
    lines = [f"{f.object}: {f.reason}; {f.remedy}" for f in findings if f.severity == severity]
    return any(all(word in line for word in words) for line in lines)


@pytest.fixture(scope="module")
def bare(server_b: PostgresServer) -> Iterator[PostgresServer]:
    """A server that has no logical decoding."""
    server = PostgresServer(server_b.bin_dir, {"wal_level": "minimal", "max_wal_senders": "0", "max_replication_slots": "0"})
    try:
        server.start()
        yield server
    finally:
        server.close()


def test_setup_makes_triggers_and_no_slot_and_teardown_leaves_no_trace(trigger_pair: Pair) -> None:
    source, _ = pair = trigger_pair
    source.execute(TABLES)
    before = [everything(database) for database in pair]
    config = config_of(pair)
    assert 'a: created delta reader "streamer_shop_a"' in set_up(config)
    assert captured_tables(source) == ["t", "u"]
    assert everything(source)[3:] == before[0][3:]
    assert source.query("SELECT relname FROM pg_class WHERE relname = 'progress'") == []
    again = set_up(config)
    assert "a: kept capture triggers of 2 tables" in again
    assert 'a: kept delta reader "streamer_shop_a"' in again
    assert source.query("SELECT count(*) FROM streamer.delta_reader") == [(1,)]
    said, problems = tear_down(config)
    assert problems == []
    assert {'a: removed capture triggers of "public.t", "public.u"', 'a: removed schema "streamer"'} <= set(said)
    assert [everything(database) for database in pair] == before
    assert tear_down(config) == (["there is nothing to remove"], [])


def test_a_plain_role_on_a_server_without_logical_decoding_suffices(bare: PostgresServer, target15: Database) -> None:
    for statement in ("CREATE ROLE plain LOGIN PASSWORD 'Geheim-1'", "CREATE DATABASE modest"):
        bare.execute(statement)
    bare.execute(TABLES + "; ALTER TABLE t OWNER TO plain; ALTER TABLE log OWNER TO plain", database="modest")
    bare.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain", database="modest")
    config = make_config({"a": bare.url("modest", "plain", "Geheim-1"), "b": target15.url}, capture="trigger")
    findings = check(config)
    assert has(findings, "error", "GRANT CREATE ON DATABASE", "modest")
    assert has(findings, "error", "only the owner can give it triggers", 'ALTER TABLE "public"."u" OWNER TO "plain"')
    assert not has(findings, "error", "wal_level")
    assert not has(findings, "error", "replicate")
    bare.execute("GRANT CREATE ON DATABASE modest TO plain")
    with pytest.raises(TargetError, match="can only be altered by its owner"):
        set_up(config)
    bare.execute("ALTER TABLE u OWNER TO plain", database="modest")
    assert not failed(check(config))
    set_up(config)
    assert not failed(check(config))
    bare.execute("INSERT INTO t VALUES (1)", database="modest")
    assert bare.query("SELECT key FROM streamer.delta", database="modest") == [(["1"],)]
    assert tear_down(config)[1] == []


def test_check_tells_what_is_missing_disabled_or_made_for_another_config(trigger_pair: Pair) -> None:
    source, _ = pair = trigger_pair
    source.execute(TABLES)
    config = config_of(pair, ["t", "u"])
    findings = check(config)
    assert not failed(findings)
    assert has(findings, "ok", 'stream "streamer_shop_a" on "a": does not exist yet')
    set_up(config)
    findings = check(config)
    assert not failed(findings)
    assert has(findings, "ok", 'node "a": captures with trigger: the config says so')
    assert has(findings, "ok", "the triggers of 2 tables are as they must be")
    source.execute("ALTER TABLE t DISABLE TRIGGER zzz_streamer_delete; DROP TRIGGER zzz_streamer_insert ON u")
    findings = check(config)
    assert has(findings, "error", 'table "public.t" on "a": has triggers that do not fire', "run: streamer setup")
    assert has(findings, "error", 'table "public.u" on "a": lacks triggers', "run: streamer setup")
    narrow = config_of(pair, ["t", "u"], {"t": ["id", "v"]})
    said = set_up(config)
    assert 'a: enabled capture triggers of table "public.t"' in said
    assert any(line.startswith('warning: a: triggers of table "public.t" did not fire') for line in said)
    assert not failed(check(config))
    assert has(check(narrow), "error", 'table "public.t" on "a": has triggers that were made for another key')
    assert 'a: renewed capture triggers of table "public.t"' in set_up(narrow)
    assert not failed(check(narrow))
    source.execute(
        "CREATE OR REPLACE FUNCTION streamer.delta_truncate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    )
    assert has(check(narrow), "error", "what captures changes there was made by another version")
    set_up(narrow)
    assert not failed(check(narrow))


def test_a_table_stays_captured_while_another_sync_needs_it(trigger_source: Database, target18: Database, tmp_path: Path) -> None:
    trigger_source.execute(TABLES)
    config = two_syncs((trigger_source, target18), tmp_path, {"tables": ["t", "u"]}, {"tables": ["u"]})
    set_up(config)
    assert captured_tables(trigger_source) == ["t", "u"]
    said, problems = tear_down(config, "one")
    assert problems == []
    assert 'a: removed capture triggers of "public.t"' in said
    assert captured_tables(trigger_source) == ["u"]
    assert trigger_source.query("SELECT stream FROM streamer.delta_reader") == [("streamer_two_a",)]
    trigger_source.execute("INSERT INTO u VALUES (1)")
    assert trigger_source.query("SELECT count(*) FROM streamer.delta") == [(1,)]
    tear_down(config)
    assert trigger_source.query(SCHEMA) == []


def test_columns_count_only_where_every_sync_names_them(trigger_source: Database, target18: Database, tmp_path: Path) -> None:
    trigger_source.execute(TABLES)
    pair = (trigger_source, target18)
    shaped = {"tables": ["t"], "table": {"public.t": {"columns": ["id", "v"]}}}
    set_up(two_syncs(pair, tmp_path, shaped, {"tables": ["u"]}))
    trigger_source.execute("INSERT INTO t VALUES (1, 1, 1); UPDATE t SET v = v; UPDATE t SET w = 2; UPDATE t SET v = 2")
    assert trigger_source.query("SELECT kind::text FROM streamer.delta ORDER BY id") == [("i",), ("u",)]
    set_up(two_syncs(pair, tmp_path, shaped, {"tables": ["t"]}))
    trigger_source.execute("UPDATE t SET v = v")
    assert trigger_source.query("SELECT count(*) FROM streamer.delta") == [(3,)]


def test_streams_of_another_config_keep_their_triggers(trigger_source: Database, target18: Database) -> None:
    trigger_source.execute(TABLES)
    one = make_config({"a": trigger_source.url, "b": target18.url}, capture="trigger", tables=["t"])
    syncs = {"more": {"sources": ["a"], "targets": ["b"], "tables": ["u"], "table": {"public.u": {"columns": ["id"]}}}}
    other = make_config({"a": trigger_source.url, "b": target18.url}, capture="trigger", syncs=syncs)
    set_up(one)
    set_up(other)
    assert captured_tables(trigger_source) == ["t", "u"]
    with daemon_running(one):
        wait_for(lambda: not left_behind(other), "the stream of the other config to be read")
    tear_down(one)
    assert trigger_source.query("SELECT stream FROM streamer.delta_reader") == [("streamer_more_a",)]
    assert captured_tables(trigger_source) == ["t", "u"]
    tear_down(other)
    assert trigger_source.query(SCHEMA) == []
    assert captured_tables(trigger_source) == []


def left_behind(config: Config) -> list[Finding]:
    return [finding for finding in check(config) if "nobody reads it" in finding.reason]


def test_what_a_sync_that_was_taken_out_leaves_behind_is_told_and_the_remedy_removes_it(
    trigger_source: Database, target18: Database
) -> None:
    trigger_source.execute(TABLES)
    nodes = {"a": trigger_source.url, "b": target18.url}
    stays = {"sources": ["a"], "targets": ["b"], "tables": ["t"]}
    set_up(make_config(nodes, capture="trigger", syncs={"stays": stays, "goes": stays | {"tables": ["u"]}}))
    config = make_config(nodes, capture="trigger", syncs={"stays": stays})
    trigger_source.execute("INSERT INTO u SELECT i FROM generate_series(1, 3) i")
    (finding,) = left_behind(config)
    assert finding.object == 'stream "streamer_goes_a" on "a"'
    assert "3 captured changes, and all to come, are kept for it" in finding.reason
    statements, _, setup_again = finding.remedy.removeprefix("if it is not coming back: ").partition("; then: streamer ")
    trigger_source.execute(statements)
    assert setup_again == "setup"
    set_up(config)
    assert captured_tables(trigger_source) == ["t"]
    assert left_behind(config) == []
    with daemon_running(config):
        wait_for_equal(lambda: trigger_source.query("SELECT count(*) FROM streamer.delta"), [(0,)], "its changes to be purged")


def test_two_syncs_cannot_tell_rows_by_different_keys(trigger_source: Database, target18: Database, tmp_path: Path) -> None:
    trigger_source.execute("CREATE TABLE n (a int NOT NULL, b int NOT NULL)")
    one, two = ({"tables": ["n"], "table": {"public.n": {"key": [name]}}} for name in ("a", "b"))
    with pytest.raises(SchemaError, match=r"different keys \(a; b\)"):
        set_up(two_syncs((trigger_source, target18), tmp_path, one, two))


def test_the_commands_for_triggers_alone(trigger_source: Database, target18: Database, tmp_path: Path) -> None:
    trigger_source.execute(TABLES)
    config = two_syncs((trigger_source, target18), tmp_path, {"tables": ["t"]}, {"tables": ["u"]})
    said: list[str] = []
    verb.install(config, None, said.append)
    assert captured_tables(trigger_source) == ["t", "u"]
    assert target18.query(SCHEMA) == []
    trigger_source.execute("INSERT INTO t SELECT generate_series(1, 30); INSERT INTO u VALUES (1)")
    said.clear()
    assert verb.purge(config, None, said.append) == []
    assert said == [
        "a: deleted 0 captured changes",
        'a: 31 left for stream "streamer_one_a"',
        'a: 31 left for stream "streamer_two_a"',
    ]
    asked: list[Sequence[str]] = []

    def refuse(lines: Sequence[str]) -> bool:
        asked.append(lines)
        return False

    assert verb.remove(config, None, force=False, confirm=refuse, say=said.append) == []
    assert 'a: delta reader "streamer_one_a"' in asked[0]
    assert captured_tables(trigger_source) == ["t", "u"]
    assert verb.remove(config, "one", force=False, confirm=lambda lines: True, say=said.append) == []
    assert captured_tables(trigger_source) == ["u"]
    assert verb.remove(config, None, force=False, confirm=lambda lines: True, say=said.append) == []
    assert captured_tables(trigger_source) == []
    relations = "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'streamer'"
    assert trigger_source.query(relations) == []
    said.clear()
    assert verb.remove(config, None, force=False, confirm=lambda lines: True, say=said.append) == []
    assert said == ["there is nothing to remove"]


def test_changes_that_wait_are_counted_by_table(trigger_source: Database, target18: Database, tmp_path: Path) -> None:
    trigger_source.execute(TABLES)
    config = two_syncs((trigger_source, target18), tmp_path, {"tables": ["t", "u"], "run": "manual"}, {"tables": ["u"]})
    assert status(config).deltas == []
    set_up(config)
    assert status(config).deltas == []
    trigger_source.execute(
        "INSERT INTO t SELECT generate_series(1, 30); UPDATE t SET id = -id WHERE id > 25; INSERT INTO u VALUES (1)"
    )
    told = [(delta["sync"], delta["table"], delta["rows"], delta["more"]) for delta in status(config).deltas]
    assert told == [("one", "public.t", 40, False), ("one", "public.u", 1, False), ("two", "public.u", 1, False)]
    assert Daemon(config, sync="one", once=True).run()
    assert [(delta["sync"], delta["table"]) for delta in status(config).deltas] == [("two", "public.u")]


def test_changes_of_partitions_are_counted_as_the_tables_and_not_for_ever(
    source15: Database, target18: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_list, "MOST", 7)
    source15.execute("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    source15.execute("CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (5) PARTITION BY RANGE (id)")
    source15.execute("CREATE TABLE p_lowest PARTITION OF p_low DEFAULT; CREATE TABLE p_other PARTITION OF p DEFAULT")
    config = config_of((source15, target18), ["p"])
    set_up(config)
    source15.execute("INSERT INTO p SELECT generate_series(1, 6)")
    assert [(delta["table"], delta["rows"], delta["more"]) for delta in status(config).deltas] == [("public.p", 6, False)]
    source15.execute("INSERT INTO p SELECT generate_series(7, 10)")
    assert [(delta["table"], delta["rows"], delta["more"]) for delta in status(config).deltas] == [("public.p", 7, True)]


def test_what_a_running_daemon_reads_is_only_removed_by_force(trigger_source: Database, target18: Database) -> None:
    trigger_source.execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)")
    config = make_config({"a": trigger_source.url, "b": target18.url}, capture="trigger")
    set_up(config)
    with daemon_running(config) as daemon:
        wait_for(lambda: daemon.report()[0].state is State.STREAMING, "the stream to begin")
        trigger_source.execute("UPDATE t SET v = 2; INSERT INTO t VALUES (2, 2)")
        wait_for_equal(lambda: target18.query("SELECT * FROM t ORDER BY id"), [(1, 2), (2, 2)], "the rows on the target")
        assert not failed(check(config))
        assert [node.problem for node in daemon.nodes()] == [None]
        with pytest.raises(
            UsageError, match=r'delta reader "streamer_shop_a" on "a" is read by process \d+; stop streamer run first'
        ):
            verb.remove(config, None, force=False, confirm=lambda lines: True, say=print)
        said: list[str] = []
        assert verb.remove(config, None, force=True, confirm=lambda lines: True, say=said.append) == []
        assert 'a: removed delta reader "streamer_shop_a"' in said
        wait_for(lambda: daemon.report()[0].state in (State.FAILED, State.RETRYING), "the daemon to notice")
    assert captured_tables(trigger_source) == []


def test_commands_for_triggers_need_a_source_that_captures_by_them(source15: Database, target18: Database) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "b": target18.url})
    with pytest.raises(UsageError, match="no source captures by triggers"):
        verb.install(config, None, print)


def test_a_table_that_is_locked_does_not_keep_setup_waiting_for_ever(
    trigger_source: Database, target18: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.sinks.postgres_triggers.PATIENCE_SECONDS", 1)
    trigger_source.execute(TABLES)
    with trigger_source.connect() as session:
        session.execute("BEGIN; INSERT INTO t VALUES (1)")
        with pytest.raises(TargetError, match=r'table "public\.t" could not be locked within 1 s'):
            set_up(make_config({"a": trigger_source.url, "b": target18.url}, capture="trigger", tables=["t"]))
        session.rollback()


def test_hundreds_of_tables_share_a_few_functions(databases: Databases, server_b: PostgresServer, target15: Database) -> None:
    source = databases.create(server_b, "many")
    pairs = "CREATE TABLE t{n} (id int PRIMARY KEY); CREATE TABLE s{n} (a text, b int, PRIMARY KEY (a, b));"
    source.execute("".join(pairs.format(n=n) for n in range(200)))
    config = make_config({"a": source.url, "b": target15.url}, capture="trigger", copy="never", tables=["public.t*", "public.s*"])
    verb.install(config, None, lambda line: None)
    assert len(captured_tables(source)) == 400
    assert source.query("SELECT count(*) FROM pg_proc WHERE proname LIKE 'delta\\_%\\_%'") == [(6,)]
    said: list[str] = []
    verb.install(config, None, said.append)
    assert "a: kept capture triggers of 400 tables" in said
    verb.remove(config, None, force=False, confirm=lambda lines: True, say=lambda line: None)
    assert captured_tables(source) == []
