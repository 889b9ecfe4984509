"""`streamer setup` on real servers: what it makes, in which order, and that it never harms the source."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from streamer.admin import setup as verb
from streamer.admin.check import check
from streamer.admin.findings import Severity
from streamer.admin.setup import setup
from streamer.capture.assemble import Interest
from streamer.capture.slot import SlotSource
from streamer.config import Config
from streamer.errors import SlotError, SourceError, StreamerError, TargetError, UsageError
from tests.configs import make_config
from tests.conftest import Databases, Pair
from tests.servers import Database, PostgresServer

TABLES = """
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE log (line text);
CREATE TABLE "Odd s" ("A%b" int, "c""d" text, PRIMARY KEY ("A%b", "c""d"));
"""


def run_setup(config: Config) -> list[str]:
    said: list[str] = []
    setup(config, None, said.append)
    return said


def publications(source: Database) -> dict[str, set[str]]:
    """The user's tables in every publication; streamer's own are always there."""
    rows = source.query(
        "SELECT p.pubname, prrelid::regclass::text FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid"
    )
    ours = {table for _, table in rows if table and table.startswith("streamer.")}
    assert not rows or "streamer.progress" in ours
    return {name: {table for other, table in rows if other == name and table} - ours for name, _ in rows}


def carried(config: Config, node: str) -> set[str]:
    sync = config.syncs["shop"]
    source = SlotSource(node, config.nodes[node], "shop", f"streamer_shop_{node}", Interest(sync.selects))
    return {str(t.table) for t in source.tables() if t.carried}


def test_setup_makes_everything_with_publications_before_the_slot(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLES)
    config = make_config({"a": source.url, "b": target.url})
    said = run_setup(config)
    made = [line for line in said if "created" in line]
    assert [line for line in made if line.startswith("a: ")] == [
        'a: created schema "streamer"',
        'a: created publication "streamer_shop_a" for 2 tables',
        'a: created publication "streamer_shop_a-in" for 1 table',
        'a: created slot "streamer_shop_a" with pgoutput',
    ]
    assert 'b: created schema "streamer"' in made
    assert publications(source) == {
        "streamer_shop_a": {"t", '"Odd s"'},
        "streamer_shop_a-in": {"log"},
    }
    assert carried(config, "a") == {"public.t", "public.log", "public.Odd s"}
    assert target.query("SELECT count(*) FROM t") == [(0,)]


def test_a_second_setup_keeps_everything(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLES)
    config = make_config({"a": source.url, "b": target.url})
    run_setup(config)
    assert run_setup(config) == [
        'a: kept schema "streamer"',
        'b: kept schema "streamer"',
        'warning: a: table "public.log" has no usable replica identity: only inserts are replicated; for the ways out run: '
        "streamer tables --sync shop",
        'a: kept publication "streamer_shop_a" for 2 tables',
        'a: kept publication "streamer_shop_a-in" for 1 table',
        'a: kept slot "streamer_shop_a"',
    ]


def test_a_second_setup_follows_the_tables(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLES)
    run_setup(make_config({"a": source.url, "b": target.url}))
    source.execute("CREATE TABLE more (id int PRIMARY KEY); ALTER TABLE log ADD PRIMARY KEY (line)")
    said = run_setup(make_config({"a": source.url, "b": target.url}, exclude=["public.t"]))
    assert any(line.startswith("b: created table") and "more" in line for line in said)
    assert 'a: changed publication "streamer_shop_a": removed public.t; added public.log, public.more' in said
    assert 'a: changed publication "streamer_shop_a-in": removed public.log' in said


def test_a_second_setup_puts_options_right(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLES)
    config = make_config({"a": source.url, "b": target.url})
    run_setup(config)
    source.execute("ALTER PUBLICATION streamer_shop_a SET (publish = 'insert', publish_via_partition_root = false)")
    run_setup(config)
    query = "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication ORDER BY pubname"
    assert source.query(query) == [(True, True, True, True, True), (True, False, False, True, True)]


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE own (id int, v text)",
        "CREATE TABLE own (id int PRIMARY KEY, v text); ALTER TABLE own REPLICA IDENTITY NOTHING",
        "CREATE TABLE own (id int PRIMARY KEY DEFERRABLE, v text)",
        "CREATE TABLE own (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id); "
        "CREATE TABLE own_1 PARTITION OF own FOR VALUES FROM (0) TO (100); ALTER TABLE own_1 REPLICA IDENTITY NOTHING",
        "CREATE TABLE own (id int, v text, g int GENERATED ALWAYS AS (id * 2) STORED); ALTER TABLE own REPLICA IDENTITY FULL",
    ],
)
def test_publishing_a_table_never_breaks_the_users_own_writes(pair: Pair, table: str) -> None:
    source, target = pair
    source.execute(table)
    run_setup(make_config({"a": source.url, "b": target.url}))
    source.execute("INSERT INTO own VALUES (1, 'x')")
    source.execute("UPDATE own SET v = 'y', id = 2")
    source.execute("DELETE FROM own")


def test_publishing_a_virtual_column_never_breaks_the_users_own_writes(source18: Database, target15: Database) -> None:
    source18.execute("CREATE TABLE own (id int, v int GENERATED ALWAYS AS (id * 2) VIRTUAL); ALTER TABLE own REPLICA IDENTITY FULL")
    run_setup(make_config({"a": source18.url, "b": target15.url}))
    source18.execute("INSERT INTO own VALUES (1)")
    source18.execute("UPDATE own SET id = 2")
    assert publications(source18)["streamer_shop_a-in"] == {"own"}


def test_a_partitioned_table_is_published_by_its_root(pair: Pair) -> None:
    source, target = pair
    source.execute(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9)"
    )
    config = make_config({"a": source.url, "b": target.url})
    run_setup(config)
    assert publications(source)["streamer_shop_a"] == {"p"}
    assert carried(config, "a") == {"public.p"}


def test_a_table_that_inherits_from_a_selected_one_is_not_published_with_it(pair: Pair) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (t)")
    run_setup(make_config({"a": source.url, "b": target.url}, tables=["t"]))
    assert publications(source)["streamer_shop_a"] == {"t"}


def test_wal2json_takes_a_slot_and_no_publication(source15: Database, target18: Database) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "b": target18.url}, capture="wal2json")
    assert 'a: created slot "streamer_shop_a" with wal2json' in run_setup(config)
    assert publications(source15) == {}
    assert run_setup(config)[-1] == 'a: kept slot "streamer_shop_a"'
    with pytest.raises(SlotError, match=r"uses the plugin wal2json, the config says pgoutput; .*streamer teardown --sync shop"):
        run_setup(make_config({"a": source15.url, "b": target18.url}))


def test_a_plugin_that_is_not_installed_is_told_with_the_package(source18: Database, target15: Database) -> None:
    source18.execute(TABLES)
    with pytest.raises(SourceError, match=r'node "a" (has no plugin wal2json; install it|refuses the plugin wal2json)'):
        run_setup(make_config({"a": source18.url, "b": target15.url}, capture="wal2json"))


def test_a_sync_without_tables_is_refused_before_anything_is_made(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLES)
    with pytest.raises(UsageError, match=r'sync "shop" selects no table on a .*"public\.T"|selects no table on a .*public\.T'):
        run_setup(make_config({"a": source.url, "b": target.url}, tables=["T"]))
    assert source.query("SELECT 1 FROM pg_namespace WHERE nspname = 'streamer'") == []


def test_a_slot_that_waits_for_a_transaction_names_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "PATIENCE_SECONDS", 1)
    source, target = pair
    source.execute(TABLES)
    config = make_config({"a": source.url, "b": target.url})
    with source.connect() as other:
        other.execute("BEGIN; INSERT INTO log VALUES ('open')")
        pid = other.info.backend_pid
        with pytest.raises(SourceError, match=rf"it waits for the transaction of process {pid} .*pg_terminate_backend\({pid}\)"):
            run_setup(config)
        other.rollback()
    run_setup(config)


def test_two_sources_get_tables_publications_and_slots_both(source15: Database, source18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source15.url, "b": source18.url}, sources=["a", "b"], targets=[])
    run_setup(config)
    assert carried(config, "a") == carried(config, "b") == {"public.t"}


def test_a_slot_of_another_database_is_not_taken(databases: Databases, pg15: PostgresServer, target18: Database) -> None:
    one, other = databases.create(pg15, "one"), databases.create(pg15, "other")
    for database in (one, other):
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    run_setup(make_config({"a": one.url, "b": target18.url}))
    config = make_config({"a": other.url, "b": target18.url})
    with pytest.raises(SlotError, match='belongs to database "one"') as refused:
        run_setup(config)
    # starting over, which cures most of what a slot may have, would do nothing: check tells what does, and nothing else
    (found,) = (f for f in check(config) if f.object == 'slot "streamer_shop_a" on "a"' and f.severity is Severity.ERROR)
    assert (f"{found.object} {found.reason}", found.remedy) == (refused.value.message, refused.value.hint)


@pytest.mark.parametrize(
    ("grants", "message"),
    [
        ([], 'permission denied for database source; GRANT CREATE ON DATABASE source TO "plain"'),
        (["GRANT CREATE ON DATABASE source TO plain"], r'must be owner of table t; .*ALTER TABLE t OWNER TO "plain"'),
        (
            ["GRANT CREATE ON DATABASE source TO plain", "ALTER TABLE t OWNER TO plain"],
            'ALTER ROLE "plain" REPLICATION',
        ),
    ],
)
def test_a_missing_right_is_told_with_the_statement_that_gives_it(pair: Pair, grants: list[str], message: str) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.execute("CREATE ROLE plain LOGIN PASSWORD 'Geheim-1'")
    for grant in grants:
        source.execute(grant)
    url = source.server.url(source.name, "plain", "Geheim-1")
    with pytest.raises(StreamerError, match=message) as raised:
        run_setup(make_config({"a": url, "b": target.url}))
    assert "Geheim-1" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_role_with_just_the_rights_that_are_asked_for_can_set_up(pair: Pair) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.execute("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'Geheim-1'")
    source.execute("GRANT CREATE ON DATABASE source TO plain; ALTER TABLE t OWNER TO plain")
    config = make_config({"a": source.server.url(source.name, "plain", "Geheim-1"), "b": target.url})
    run_setup(config)
    assert carried(config, "a") == {"public.t"}


def test_a_node_that_is_away_is_one_line(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLES)
    nowhere = psycopg.conninfo.conninfo_to_dict(target.url) | {"port": "1"}
    url = f"postgresql://{nowhere['user']}@{nowhere['host']}:1/{nowhere['dbname']}"
    with pytest.raises(StreamerError, match=r'node "b": .*Connection refused.*; start that server'):
        run_setup(make_config({"a": source.url, "b": url}))


# -- several sources ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def masters(source15: Database, target18: Database) -> Config:
    """Two sources with the tables of `TABLES`, and one with merged columns."""
    for node in (source15, target18):
        node.execute(TABLES)
        node.execute("CREATE TABLE stock (id int PRIMARY KEY, n int, best int)")
    rules = {"public.stock": {"delta": ["n"], "max": ["best"]}}
    return make_config({"a": source15.url, "b": target18.url}, sources=["a", "b"], targets=[], table=rules)


def keepers(node: Database) -> set[str]:
    """The tables with triggers of ours."""
    rows = node.query(r"SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE 'zz\_streamer\_%'")
    return {table for (table,) in rows}


def test_setup_keeps_the_keys_of_all_masters(masters: Config, source15: Database, target18: Database) -> None:
    said = run_setup(masters)
    for name, node in {"a": source15, "b": target18}.items():
        assert keepers(node) == {"t", "stock", '"Odd s"'}  # log has no key
        assert f'{name}: made triggers of table "public.stock"' in said
    again = run_setup(masters)
    assert "a: kept triggers of 3 tables" in again
    assert not [line for line in again if "made" in line or "renewed" in line]


def test_setup_follows_when_rules_and_tables_change(masters: Config, source15: Database, target18: Database) -> None:
    run_setup(masters)
    urls = {"a": source15.url, "b": target18.url}
    fewer = make_config(urls, sources=["a", "b"], targets=[], tables=["stock"])
    said = run_setup(fewer)
    assert {'a: renewed triggers of table "public.stock"', 'a: removed triggers of table "public.t"'} <= set(said)
    assert keepers(source15) == {"stock"}
    run_setup(make_config(urls))
    assert keepers(source15) == keepers(target18) == set()


def test_setup_leaves_the_triggers_of_another_config_alone(masters: Config, source15: Database, target18: Database) -> None:
    run_setup(masters)
    source15.execute(
        "INSERT INTO streamer.progress (sync, source, target, system_identifier, database, slot, position, origin, "
        "origin_position, origin_time) VALUES ('shop', 'b', 'a', '1', 'd', 's', '0/0', 'b', '0/0', now())"
    )
    other = {"sources": ["a"], "targets": ["b"], "tables": ["*.*"]}
    run_setup(make_config({"a": source15.url, "b": target18.url}, syncs={"other": other}))
    assert keepers(source15) == {"t", "stock", '"Odd s"'}


def identity(node: Database) -> dict[str, str]:
    rows = node.query("SELECT relname::text, relreplident::text FROM pg_class WHERE relname IN ('t', 'stock', 'log')")
    return dict(rows)


def test_tables_carry_the_old_row_where_it_is_needed_if_told_to(masters: Config, source15: Database, target18: Database) -> None:
    said = run_setup(masters)
    assert (
        'warning: a: table "public.t": an update that wins must carry also the long values that it left unchanged; '
        'ALTER TABLE "public"."t" REPLICA IDENTITY FULL, or run: streamer setup --fix'
    ) in said
    assert set(identity(source15).values()) == {"d"}
    fixed: list[str] = []
    setup(masters, None, fixed.append, fix=True)
    assert 'b: altered table "public.stock": REPLICA IDENTITY FULL' in fixed
    for node in (source15, target18):
        assert identity(node) == {"t": "f", "stock": "f", "log": "d"}
    assert not [line for line in run_setup(masters) if "FULL" in line]


def test_partitions_carry_the_old_row_too(source15: Database, target18: Database) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
        node.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9)")
    config = make_config({"a": source15.url, "b": target18.url}, sources=["a", "b"], targets=[])
    setup(config, None, lambda line: None, fix=True)
    for node in (source15, target18):
        assert node.query("SELECT relreplident::text FROM pg_class WHERE relname IN ('p', 'p1')") == [("f",), ("f",)]


def test_without_demand_the_identity_stays(source15: Database, target18: Database) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE log (line text, id int PRIMARY KEY)")
    rules = {"public.log": {"conflict": "apply"}}
    config = make_config({"a": source15.url, "b": target18.url}, sources=["a", "b"], targets=[], table=rules)
    setup(config, None, lambda line: None, fix=True)
    assert identity(source15) == {"t": "d", "log": "d"}


def test_an_older_installation_is_brought_into_line(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLES)
    config = make_config({"a": source.url, "b": target.url})
    run_setup(config)
    target.execute("ALTER TABLE streamer.progress DROP COLUMN seen; DROP TABLE streamer.conflict, streamer.removal")
    said = run_setup(config)
    assert 'b: brought into line schema "streamer"' in said
    assert 'a: kept schema "streamer"' in said
    assert target.query("SELECT seen FROM streamer.progress") == []
    assert target.query("SELECT 1 FROM streamer.conflict") == []


@pytest.mark.parametrize("rights", ["SELECT", "SELECT, TRIGGER"])
def test_a_role_that_does_not_own_a_table_learns_what_to_do(source15: Database, target18: Database, rights: str) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source15.execute("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'Geheim-1'")
    source15.execute(f"GRANT CREATE ON DATABASE source TO plain; GRANT {rights} ON t TO plain")
    url = source15.server.url("source", "plain", "Geheim-1")
    config = make_config({"a": url, "b": target18.url}, sources=["a", "b"], targets=[])
    with pytest.raises(TargetError, match=r'node "a": table "public\.t" can only be altered by its owner; ALTER TABLE') as told:
        run_setup(config)
    source15.execute(told.value.hint.partition(", or ")[0])
    run_setup(config)


def test_a_url_that_was_copied_and_not_corrected_is_refused_before_anything_is_made(source15: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source15.url, "b": source15.url.replace("127.0.0.1", "localhost")})
    with pytest.raises(UsageError, match=r'sync "shop": nodes "a" and "b" are the same database; correct nodes\.a\.url'):
        run_setup(config)
    assert source15.query("SELECT count(*) FROM pg_namespace WHERE nspname = 'streamer'") == [(0,)]
    assert source15.query("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(0,)]


def test_a_target_that_refuses_does_not_keep_others_from_getting_their_tables_and_what_is_left_is_told(
    source15: Database, target18: Database, tmp_path: Path
) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    (tmp_path / "x").write_text("no database")
    syncs = {
        "shop": {"sources": ["a"], "targets": ["s", "b"], "tables": ["t"]},
        "more": {"sources": ["a"], "targets": ["b"], "tables": ["u"]},
    }
    config = make_config({"a": source15.url, "b": target18.url, "s": f"sqlite:///{tmp_path}/x"}, syncs=syncs)
    said: list[str] = []
    with pytest.raises(StreamerError, match='node "s"'):
        setup(config, None, said.append)
    assert target18.query("SELECT 1 FROM t") == []
    assert source15.query("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()") == []
    assert said[-2:] == ['sync "shop": not finished; cure what failed on "s", then run setup again', 'not begun: sync "more"']
