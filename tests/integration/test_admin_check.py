"""`streamer check` on real servers: the facts are read right, nothing is changed, and what check lets pass works."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from streamer.admin import check_connection
from streamer.admin.check import check
from streamer.admin.findings import Finding, Severity, failed
from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.config import Config
from streamer.session import connect
from tests.configs import make_config
from tests.conftest import Databases, Pair
from tests.servers import Database, PostgresServer
from tests.unit.test_check_verdicts import told


def has(findings: Sequence[Finding], severity: str, *words: str) -> bool:
    lines = [f"{f.object}: {f.reason}; {f.remedy}" for f in findings if f.severity == severity]
    return any(all(word in line for word in words) for line in lines)


def set_up(config: Config) -> None:
    setup(config, None, lambda line: None)


def test_a_pair_that_is_ready_has_nothing_to_cure(pair: Pair) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    config = make_config({"a": source.url, "b": target.url})
    assert told(check(config)) == ['warning: table "public.t" on "b": does not exist; streamer setup creates it']
    set_up(config)
    findings = check(config)
    assert told(findings) == []
    assert has(findings, "ok", 'node "a": captures with pgoutput: it is part of PostgreSQL from version 10 on')
    assert has(findings, "ok", 'node "a": a trial slot with pgoutput works')
    assert has(findings, "ok", 'slot "streamer_shop_a" on "a": exists')


def test_check_changes_nothing(pair: Pair) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    check(make_config({"a": source.url, "b": target.url}))
    for database in pair:
        assert database.query("SELECT 1 FROM pg_namespace WHERE nspname = 'streamer'") == []
        assert database.query("SELECT 1 FROM pg_replication_slots") == []
        assert database.query("SELECT relname FROM pg_class WHERE relname = 't'") == ([("t",)] if database is source else [])


def test_a_node_that_is_away_is_a_finding_and_the_others_are_looked_at(source15: Database) -> None:
    source15.execute("CREATE TABLE t (id int)")
    findings = check(make_config({"a": source15.url, "b": "postgresql://postgres@127.0.0.1:1/x"}))
    assert has(findings, "error", 'node "b": "127.0.0.1", port 1: ', "Connection refused", "start that server")
    assert has(findings, "warning", 'table "public.t" on "a": has no usable replica identity')


@pytest.fixture
def plain(pair: Pair) -> tuple[Config, Pair]:
    """A config in which both roles may do nothing."""
    source, target = pair
    urls = []
    for database in pair:
        database.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        database.execute("CREATE ROLE plain LOGIN PASSWORD 'Geheim-1'")
        database.execute(f"REVOKE ALL ON DATABASE {database.name} FROM public; GRANT CONNECT ON DATABASE {database.name} TO plain")
        urls.append(database.server.url(database.name, "plain", "Geheim-1"))
    return make_config({"a": urls[0], "b": urls[1]}), (source, target)


def remedies(findings: Sequence[Finding], node: str) -> list[str]:
    """The statements that are proposed for a node."""
    ours = [
        f for f in findings if f.severity != Severity.OK and (f.object == f'node "{node}"' or f.object.endswith(f' on "{node}"'))
    ]
    return list(dict.fromkeys(f.remedy for f in ours))


def test_following_the_remedies_is_enough(plain: tuple[Config, Pair]) -> None:
    """Whatever the proposed statements are: a role that was given them can set up, copy and stream."""
    config, (source, target) = plain
    findings = check(config)
    assert has(findings, "error", "may not replicate", 'ALTER ROLE "plain" REPLICATION')
    assert has(findings, "error", "may not read it", 'GRANT SELECT ON "public"."t" TO "plain"')
    assert has(findings, "error", 'on "b": role plain lacks SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
    for database, node in ((source, "a"), (target, "b")):
        for remedy in remedies(findings, node):
            database.execute(remedy.split(", or GRANT its owner")[0])
    assert told(check(config)) == []
    set_up(config)
    assert told(check(config)) == []
    source.execute("INSERT INTO t VALUES (1, 'x')")
    assert run(config, sync=None, source=None, once=True) == []
    assert target.query("SELECT id FROM t") == [(1,)]


def test_a_role_that_may_not_create_missing_tables_is_found(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA far; CREATE TABLE far.t (id int PRIMARY KEY)")
    target18.execute("CREATE ROLE plain LOGIN PASSWORD 'x'")
    config = make_config({"a": source15.url, "b": target18.server.url("target", "plain", "x")})
    findings = check(config)
    assert has(findings, "error", 'table "public.t" on "b"', 'GRANT USAGE, CREATE ON SCHEMA "public" TO "plain"')
    assert has(findings, "error", 'table "far.t" on "b"', 'GRANT CREATE ON DATABASE "target" TO "plain"')
    for remedy in remedies(findings, "b"):
        target18.execute(remedy)
    set_up(config)
    assert told(check(config)) == []


def test_differences_of_a_target_are_found(pair: Pair) -> None:
    source, target = pair
    source.execute("CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE t (id int PRIMARY KEY, v text, w mood, n int)")
    target.execute("CREATE TABLE t (id int, v varchar(5), n bigint, extra int NOT NULL, fine int NOT NULL DEFAULT 5)")
    findings = check(make_config({"a": source.url, "b": target.url}))
    assert has(findings, "error", 'has no column "w"', 'ADD COLUMN "w" public.mood')
    assert has(findings, "warning", 'column "v" is character varying(5), on the source text')
    assert not has(findings, "warning", 'column "n"')  # bigint holds every integer
    assert has(findings, "error", 'column "extra" is NOT NULL without a default')
    assert has(findings, "warning", "no unique index covers its key (id)", 'CREATE UNIQUE INDEX ON "public"."t" ("id")')
    assert not has(findings, "error", "fine")


def test_triggers_and_rules_that_act_on_replicated_rows_are_told(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id integer PRIMARY KEY)")
    target18.execute("CREATE TABLE t (id integer PRIMARY KEY)")
    target18.execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    for name in ("usual", "Always", "only_here"):
        target18.execute(f'CREATE TRIGGER "{name}" BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()')
    target18.execute("CREATE RULE r AS ON UPDATE TO t DO ALSO NOTHING")
    target18.execute('ALTER TABLE t ENABLE ALWAYS TRIGGER "Always", ENABLE REPLICA TRIGGER only_here, ENABLE ALWAYS RULE r')
    config = make_config({"a": source15.url, "b": target18.url})
    told = [f for f in check(config) if "acts on what streamer writes" in f.reason]
    assert [f.reason.split(" acts")[0] for f in told] == ["its RULE r", 'its TRIGGER "Always"', "its TRIGGER only_here"]
    for finding in told:
        target18.execute(finding.remedy.removeprefix("if it is not meant to: "))
    assert not [f for f in check(config) if "acts on what streamer writes" in f.reason]


def test_what_is_missing_in_an_sqlite_file_is_found(source15: Database, tmp_path: Path) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source15.url, "s": f"sqlite:///{tmp_path}/s.sqlite"})
    assert has(check(config), "warning", 'node "s"', "does not exist yet", "streamer setup")
    set_up(config)
    assert told(check(config)) == []
    source15.execute("ALTER TABLE t ADD COLUMN v text")
    assert has(check(config), "error", 'table "public.t" on "s": has no column "v"', 'ALTER TABLE "t" ADD COLUMN "v" TEXT')


def test_names_that_sqlite_takes_for_one_are_found_before_there_is_a_file(source15: Database, tmp_path: Path) -> None:
    source15.execute('CREATE TABLE t (id int PRIMARY KEY, "Id" int)')
    findings = check(make_config({"a": source15.url, "s": f"sqlite:///{tmp_path}/s.sqlite"}))
    assert has(findings, "error", 'columns "id" and "Id" of table "public.t" would share a name in SQLite')


def test_what_does_not_fit_in_an_sqlite_table_is_found(source15: Database, tmp_path: Path) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(9,2)); CREATE TABLE u (id int PRIMARY KEY, v text)")
    file = tmp_path / "s.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER NOT NULL, v TEXT, n INTEGER, extra TEXT NOT NULL) STRICT")
        connection.execute("CREATE TABLE u (id INTEGER PRIMARY KEY, v INTEGER, extra TEXT NOT NULL DEFAULT 'x')")
    findings = check(make_config({"a": source15.url, "s": f"sqlite:///{file}"}))
    assert has(findings, "warning", 'column "n" is INTEGER in a STRICT table, narrower than numeric(9,2)', "is not a whole number")
    assert has(findings, "error", 'table "public.t" on "s": column "extra" is NOT NULL without a default')
    assert has(findings, "warning", "no unique index over NOT NULL columns covers its key (id)", 'ON "t" ("id")')
    assert not [f for f in findings if "public.u" in f.object and f.object.endswith('"s"')]


def test_one_database_under_two_names_is_found(source15: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    findings = check(make_config({"a": source15.url, "b": source15.url.replace("127.0.0.1", "localhost")}))
    assert has(findings, "error", 'sync "shop": nodes "a" and "b" are the same database')


def test_a_node_without_a_sync_and_a_pattern_without_a_table_are_found(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    nodes = {"a": source15.url, "b": target18.url, "c": target18.url}
    findings = check(make_config(nodes, targets=["b"], tables=["t", "nothing.*"]))
    assert has(findings, "warning", 'node "c": no sync uses it')
    assert has(findings, "warning", 'the pattern "nothing.*" chooses no table')


def test_old_wal2json_is_found_by_what_it_does_not_know(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric); CREATE TABLE keyless (n float8)")
    source15.execute("ALTER TABLE keyless REPLICA IDENTITY FULL")
    findings = check(make_config({"a": source15.url, "b": target18.url}, capture="wal2json"))
    assert has(findings, "ok", 'node "a": captures with wal2json: the config says so')
    old = has(findings, "warning", 'table "public.t" on "a": wal2json before 2.6')
    assert has(findings, "error", 'table "public.keyless" on "a": wal2json before 2.6') == old
    (version,) = source15.query("SELECT current_setting('server_version_num')::int")
    assert old == (version[0] < 170000)  # Debian's packages: 15 has 2.5, 17 has 2.6


def test_a_plugin_that_is_not_installed_is_found(source18: Database, target15: Database) -> None:
    source18.execute("CREATE TABLE t (id int PRIMARY KEY)")
    findings = check(make_config({"a": source18.url, "b": target15.url}, capture="wal2json"))
    assert has(findings, "error", "wal2json")


def test_a_slot_or_publication_that_is_not_right_is_found(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source15.url, "b": target18.url})
    set_up(config)
    source15.execute("DROP PUBLICATION streamer_shop_a")
    assert has(check(config), "error", 'slot "streamer_shop_a" on "a": its publications do not exist', "streamer teardown")
    changed = make_config({"a": source15.url, "b": target18.url}, capture="wal2json")
    assert has(check(changed), "error", "uses the plugin pgoutput, the config says wal2json")


def test_a_transaction_that_holds_up_slots_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_connection, "TRIAL_SECONDS", 1)
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with source.connect() as other:
        other.execute("BEGIN; INSERT INTO t VALUES (1)")
        findings = check(make_config({"a": source.url, "b": target.url}))
        other.rollback()
    assert has(findings, "warning", "a trial slot was not ready within 1 s", "pg_stat_activity")
    assert not failed(findings)


@pytest.fixture(scope="module")
def bare(server_b: PostgresServer) -> Iterator[PostgresServer]:
    """A server as initdb leaves it: not ready for anything."""
    settings = {"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1", "track_commit_timestamp": "off"}
    server = PostgresServer(server_b.bin_dir, settings)
    try:
        server.start()
        yield server
    finally:
        server.close()


def test_a_server_that_is_not_configured_gets_every_setting_told(bare: PostgresServer, target15: Database) -> None:
    bare.execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
    findings = check(make_config({"a": bare.url(), "b": target15.url}, sources=["a", "b"], targets=[]))
    assert has(findings, "error", "wal_level is replica, it must be logical", "; ALTER SYSTEM SET wal_level = logical")
    assert has(findings, "error", "0 of 1 max_replication_slots are in use, 2 more are needed, one of them for the copy")
    assert has(findings, "error", "max_wal_senders")
    assert has(
        findings, "error", 'node "a": has track_commit_timestamp off', "ALTER SYSTEM SET track_commit_timestamp = on", '["a", "b"]'
    )
    assert not has(findings, "ok", 'node "a": a trial slot')


def test_the_handshake_of_a_direct_connection_names_its_process(source15: Database) -> None:
    with connect("a", source15.url, application="one") as one, connect("a", source15.url, application="other") as other:
        assert list(check_connection.judge_probes("a", *check_connection.probe_twice(one, other))) == []


# -- several sources ---------------------------------------------------------------------------------------------------------------

MASTERS = """
CREATE TABLE t (id serial PRIMARY KEY, v text, u int UNIQUE);
CREATE TABLE stock (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, n int, best date, name text);
CREATE TABLE log (line text);
"""
RULES = {"public.stock": {"delta": ["n"], "max": ["best"]}}


@pytest.fixture
def masters(source15: Database, target18: Database) -> tuple[Database, Database]:
    source15.execute(MASTERS)
    target18.execute(MASTERS)
    return source15, target18


def two_way(masters: tuple[Database, Database], **sync: object) -> Config:
    one, other = masters
    settings: dict[str, Any] = {"sources": ["a", "b"], "targets": [], "table": RULES} | sync
    return make_config({"a": one.url, "b": other.url}, **settings)


def test_masters_that_were_set_up_and_have_done_what_they_were_told_are_good(masters: tuple[Database, Database]) -> None:
    config = two_way(masters)
    for node in masters:
        node.execute("INSERT INTO t (v) VALUES ('x'), ('y')")
    before = told(check(config))
    assert (
        'warning: node "a": 2 tables lack the triggers that keep deleted keys: public.stock, public.t; streamer setup makes them'
        in before
    )
    assert (
        'error: table "public.t" on "b": has not REPLICA IDENTITY FULL: an update that wins must carry also the long values that '
        'it left unchanged; ALTER TABLE "public"."t" REPLICA IDENTITY FULL; or run: streamer setup --fix'
    ) in before
    assert any('table "public.stock" on "a"' in line and "best, n can only be merged" in line for line in before)
    setup(config, None, lambda line: None, fix=True)
    sequences = {f.object: f.remedy for f in check(config) if "same numbers" in f.reason}
    assert sequences == {
        'column "id" of table "public.t"': 'on a: ALTER SEQUENCE "public"."t_id_seq" INCREMENT BY 2 RESTART WITH 4; '
        'on b: ALTER SEQUENCE "public"."t_id_seq" INCREMENT BY 2 RESTART WITH 3',
        'column "id" of table "public.stock"': 'on a: ALTER SEQUENCE "public"."stock_id_seq" INCREMENT BY 2 RESTART WITH 2; '
        'on b: ALTER SEQUENCE "public"."stock_id_seq" INCREMENT BY 2 RESTART WITH 1',
    }
    for remedy in sequences.values():
        for statement in remedy.split("; "):
            masters[statement.startswith("on b")].execute(statement.partition(": ")[2])
    findings = check(config)
    assert [line for line in told(findings) if '"public.log"' not in line] == []
    assert has(findings, "ok", 'sync "shop": the clocks of its nodes are 0.', "5 s are allowed")
    for node in masters:
        node.execute("INSERT INTO t (v) VALUES ('z'), ('z'); INSERT INTO stock DEFAULT VALUES")
    assert {i for (i,) in masters[0].query("SELECT id FROM t")} & {i for (i,) in masters[1].query("SELECT id FROM t")} == {1, 2}
    assert told(check(config)) == told(findings)


def test_what_cannot_be_merged_is_told(masters: tuple[Database, Database]) -> None:
    rules = {"public.stock": {"delta": ["best"], "max": ["name", "none"], "min": ["id"]}, "public.log": {"max": ["line"]}}
    findings = check(two_way(masters, table=rules))
    for words in (
        'column "best" is date; delta takes smallint, integer, bigint or numeric; '
        'remove it from syncs.shop.table."public.stock".delta',
        'column "name" is text; max takes',
        'has no column "none" to merge; correct syncs.shop.table."public.stock".max',
        'column "id" is part of the key, and cannot be merged',
    ):
        assert has(findings, "error", 'table "public.stock" on "b"', words)
    assert has(findings, "error", 'table "public.log" on "a": has no key, and columns can only be merged where rows have one')


def test_tables_without_a_key_and_constraints_that_are_not_resolved_are_named(masters: tuple[Database, Database]) -> None:
    masters[0].execute(
        "CREATE UNIQUE INDEX low ON t (lower(v)); ALTER TABLE t ADD CONSTRAINT late UNIQUE (v) DEFERRABLE; "
        "ALTER TABLE t ADD CONSTRAINT room EXCLUDE (u WITH =)"
    )
    findings = check(two_way(masters))
    assert has(findings, "warning", 'table "public.log" on "b": has no key: conflicts in it are not noticed')
    assert has(findings, "warning", 'table "public.t" on "a": constraint "late" is deferrable')
    assert has(findings, "warning", 'table "public.t" on "a": constraint "room" excludes rows')
    assert not has(findings, "warning", '"low"')


def test_a_function_that_cannot_be_called_is_told(masters: tuple[Database, Database]) -> None:
    assert has(check(two_way(masters, conflict="python:no_such_thing:f")), "error", 'there is no module "no_such_thing"')
    findings = check(two_way(masters, conflict="python:builtins:max", conflict_fallback="keep"))
    assert has(findings, "ok", 'sync "shop": python:builtins:max can be called')


def test_roles_without_rights_learn_what_a_master_needs(masters: tuple[Database, Database]) -> None:
    one, other = masters
    one.execute("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'Geheim-1'")
    urls = {"a": one.server.url(one.name, "plain", "Geheim-1"), "b": other.url}
    findings = check(make_config(urls, sources=["a", "b"], targets=[], table=RULES))
    assert has(findings, "error", 'node "a": role plain may not set session_replication_role, and what it merges in public.stock')
    assert has(findings, "error", 'table "public.t" on "a": role plain does not own it, and only the owner can make the triggers')
    assert has(
        findings, "warning", 'column "id" of table "public.t": its sequence may not be read on a', "GRANT SELECT ON SEQUENCE"
    )


def test_clocks_that_are_too_far_apart_are_an_error(source15: Database, databases: Databases, ahead: PostgresServer) -> None:
    other = databases.create(ahead, "ahead")
    for node in (source15, other):
        node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    urls = {"a": source15.url, "b": other.url}
    findings = check(make_config(urls, sources=["a", "b"], targets=[], max_clock_skew=2.0))
    assert has(findings, "error", 'the clock of "b" (', ' s ahead of that of "a", max_clock_skew is 2 s', "NTP")
    findings = check(make_config(urls, sources=["a", "b"], targets=[]))
    assert has(findings, "ok", "the clocks of its nodes are")


def test_a_second_source_that_is_empty_until_setup_fills_it_is_no_error(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"b": target18.url, "a": source15.url}, sources=["b", "a"], targets=[])
    findings = check(config)
    assert has(findings, "ok", 'sync "shop": selects no table on "b" yet; streamer setup makes them')
    assert not failed(findings)
    source15.execute("DROP TABLE t")
    assert has(check(config), "error", 'sync "shop": selects no table on "b" (tables = ')


def test_a_slot_of_a_sync_that_was_taken_out_of_the_config_is_told(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    urls = {"a": source15.url, "b": target18.url}
    set_up(make_config(urls))
    told = 'slot "streamer_shop_a" on "a": is not in the config, and nobody reads it', "streamer slots drop a streamer_shop_a"
    assert not has(check(make_config(urls)), "warning", *told)
    stock = {"sources": ["a"], "targets": ["b"], "tables": ["*.*"]}
    assert has(check(make_config(urls, syncs={"stock": stock})), "warning", *told)
    nodes = {"b": target18.url, "c": f"{target18.url}?application_name=c", "a": source15.url}
    assert has(check(make_config(nodes, syncs={"stock": stock | {"sources": ["b"], "targets": ["c"]}})), "warning", *told)


def test_what_a_node_refuses_is_told_once_and_names_it_once(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    urls = {"a": source15.url, "b": target18.url}
    set_up(make_config(urls, capture="trigger"))
    source15.execute("CREATE ROLE plain LOGIN PASSWORD 'Geheim-1'")
    findings = check(make_config(urls | {"a": source15.server.url(source15.name, "plain", "Geheim-1")}, capture="trigger"))
    (told,) = [f for f in findings if "permission denied for schema streamer" in f.reason]
    assert (told.object, told.reason) == ('node "a"', "permission denied for schema streamer")
