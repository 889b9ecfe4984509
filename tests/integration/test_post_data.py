"""Indexes and constraints of tables that streamer has made on a PostgreSQL server: after the rows, all of them, and once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streamer.admin.check import check
from streamer.admin.ddl import statements
from streamer.admin.findings import Severity
from streamer.admin.setup import setup
from streamer.config import Config
from streamer.post_data import PostDataReport
from streamer.report import EdgeReport, State
from tests.configs import make_config
from tests.conftest import Databases, Pair
from tests.integration.streams import Running, running
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal

SCHEMA = r"""
CREATE SCHEMA "Odd s";
CREATE TABLE "Odd s"."T ""x" (
    "a B" int, b int, c text COLLATE "C", d tsrange, parent int, "the boss" int, boss int,
    PRIMARY KEY ("a B", b), UNIQUE (c, b) DEFERRABLE INITIALLY DEFERRED, EXCLUDE USING gist (d WITH &&),
    CHECK (b > 0), FOREIGN KEY ("the boss", boss) REFERENCES "Odd s"."T ""x" ("a B", b)
);
CREATE UNIQUE INDEX "Part ""ial" ON "Odd s"."T ""x" (lower(c) DESC NULLS LAST, "a B") WHERE b > 1 AND c <> '%s';
CREATE UNIQUE INDEX carries ON "Odd s"."T ""x" (b) INCLUDE (c) WITH (fillfactor = 70);
CREATE INDEX patterns ON "Odd s"."T ""x" (c text_pattern_ops, ("a B" + b));
CREATE INDEX hashed ON "Odd s"."T ""x" USING hash (c);
CREATE INDEX brins ON "Odd s"."T ""x" USING brin (b) WITH (pages_per_range = 4);
CREATE TABLE one (id int PRIMARY KEY, other int, v int);
CREATE TABLE two (id int PRIMARY KEY, one int REFERENCES one, v int, odd_a int, odd_b int);
ALTER TABLE one ADD FOREIGN KEY (other) REFERENCES two DEFERRABLE;
ALTER TABLE two ADD FOREIGN KEY (odd_a, odd_b) REFERENCES "Odd s"."T ""x" MATCH FULL ON DELETE CASCADE;
CREATE TABLE by_index (a int NOT NULL, b text);
CREATE UNIQUE INDEX by_a ON by_index (a);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_a;
INSERT INTO "Odd s"."T ""x" SELECT i, i, 'c' || i, tsrange('2020-01-01'::timestamp + i * '1 day'::interval,
    '2020-01-02'::timestamp + i * '1 day'::interval), NULL, i, i FROM generate_series(1, 100) i;
INSERT INTO one SELECT i, NULL, -i FROM generate_series(1, 100) i;
INSERT INTO two SELECT i, i, i, i, i FROM generate_series(1, 100) i;
UPDATE one SET other = id;
ALTER TABLE one ADD CONSTRAINT late CHECK (v > 0) NOT VALID;
INSERT INTO by_index SELECT i, 'b' FROM generate_series(1, 10) i;
"""
INDEXES = "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
INDEXES += "WHERE c.relnamespace::regnamespace::text IN ('public', '\"Odd s\"') AND indisvalid ORDER BY 1"
CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint
WHERE connamespace::regnamespace::text IN ('public', '"Odd s"') AND contype <> 'n' ORDER BY 1, 2
"""
ALL = "SELECT one, two FROM one JOIN two ON one = one.id ORDER BY two.id"
RECORDS = "SELECT what, refused FROM streamer.post_data ORDER BY number"
NOT_YET = """
CREATE FUNCTION not_yet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.id > 500 THEN RAISE 'not yet'; END IF; RETURN NEW; END $$;
CREATE TRIGGER not_yet BEFORE INSERT ON large FOR EACH ROW EXECUTE PROCEDURE not_yet();
ALTER TABLE large ENABLE ALWAYS TRIGGER not_yet
"""
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event = 'advisory'"
HOLD = """
CREATE FUNCTION hold(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_advisory_lock_shared(77); PERFORM pg_advisory_unlock_shared(77); RETURN n; END $$
"""
"""An index over it is not made as long as somebody has the lock."""


def looks(database: Database) -> list[object]:
    return [database.query(INDEXES), database.query(CONSTRAINTS)]


def edge_of(streams: Running) -> EdgeReport:
    return streams.edges["a->b"]


@contextmanager
def held(target: Database) -> Iterator[None]:
    """Keep indexes over `hold` from being made."""
    with target.connect() as connection:
        connection.execute("SELECT pg_advisory_lock(77)")
        yield


def wait_until_held(streams: Running) -> EdgeReport:
    wait_for(lambda: edge_of(streams).state is State.INDEXING, "an index that is being made")
    return edge_of(streams)


def findings(config: Config) -> list[str]:
    return [f"{f.object} {f.reason}; {f.remedy}" for f in check(config) if f.severity is Severity.WARNING]


@pytest.mark.parametrize(("maker", "capture"), [("pg_dump", "auto"), ("catalog", "trigger")])
def test_indexes_and_constraints_come_after_the_rows(pair: Pair, maker: str, capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair
    source.execute(SCHEMA)
    monkeypatch.setenv("PATH", str(source.server.bin_dir) if maker == "pg_dump" else "/nowhere")
    config = make_config({"a": source.url, "b": target.url}, capture=capture)
    said: list[str] = []
    setup(config, None, said.append)
    assert any("(pg_dump)" in line for line in said) == (maker == "pg_dump")
    assert [name for name, _ in target.query(INDEXES)] == ['"Odd s"."T ""x_pkey"', "by_a", "one_pkey", "two_pkey"]
    assert target.query("SELECT conname FROM pg_constraint WHERE contype = 'f' OR conname = 'late'") == []
    with running(config, set_up=False) as streams:
        assert looks(target) == looks(source)
        assert target.query(RECORDS) == []
        assert edge_of(streams).post_data == PostDataReport()
        source.execute(
            "BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO one VALUES (200, 200, 1); INSERT INTO two VALUES (200, 200); END"
        )
        wait_for_equal(lambda: target.query(ALL), source.query(ALL), "the rows")


def test_ddl_prints_first_what_comes_before_the_rows_then_what_comes_after(pair: Pair) -> None:
    source, target = pair
    source.execute(SCHEMA)
    config = make_config({"a": source.url, "b": target.url})
    made = statements(config, "shop", "b")
    assert sum("ADD CONSTRAINT" in s and "PRIMARY KEY" in s for s in made.before) == 3
    assert not any("FOREIGN KEY" in s or "patterns" in s for s in made.before)
    for statement in made.all:
        target.execute(statement)
    assert looks(target) == looks(source)


def test_where_several_nodes_write_all_that_is_unique_is_there_before_the_rows(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, v int UNIQUE, w int); CREATE INDEX by_w ON t (w)")
    source15.execute("CREATE UNIQUE INDEX pairs ON t (v, w)")
    setup(make_config({"a": source15.url, "b": target18.url}, sources=["a", "b"], targets=[]), None, lambda line: None)
    assert [name for name, _ in target18.query(INDEXES)] == ["pairs", "t_pkey", "t_v_key"]
    assert target18.query(RECORDS) == [("index by_w of table public.t", "")]


def test_somebody_elses_table_is_left_as_it_is(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE INDEX by_v ON t (v)")
    target18.execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
    with running(make_config({"a": source15.url, "b": target18.url})):
        assert [name for name, _ in target18.query(INDEXES)] == ["t_pkey"]


@pytest.fixture
def refusing(source15: Database, target18: Database) -> Config:
    """A table with an index over a function that the target does not have."""
    source15.execute(
        "CREATE FUNCTION odd(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'; CREATE TABLE t (id int PRIMARY KEY, v int);"
        "CREATE INDEX over_function ON t (odd(v)); CREATE INDEX plain ON t (v); INSERT INTO t VALUES (1, 1)"
    )
    return make_config({"a": source15.url, "b": target18.url})


def test_an_index_that_the_target_refuses_is_told_and_does_not_stop_rows(
    source15: Database, target18: Database, refusing: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    setup(refusing, None, said.append)
    reason = "function public.odd(integer) does not exist"
    assert f"b: refuses index over_function of table public.t: {reason}; see: streamer check" in said
    with running(refusing, set_up=False) as streams:
        (refused,) = edge_of(streams).post_data.refused
        assert (refused.reason, refused.statement.split(" USING")[0]) == (reason, "CREATE INDEX over_function ON public.t")
        assert [name for name, _ in target18.query(INDEXES)] == ["plain", "t_pkey"]
    assert "post_data_refused" in "".join(capsys.readouterr())  # another test may have sent the log elsewhere
    (found,) = [line for line in findings(refusing) if "over_function" in line]
    assert found.startswith(f'index over_function of table public.t on "b" is not there: {reason}; ')
    assert refused.statement in found
    target18.execute("CREATE FUNCTION odd(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1'")
    setup(refusing, None, said.append)
    assert "b: index over_function of table public.t is tried once more" in said
    with running(refusing, set_up=False):
        assert looks(target18) == looks(source15)
    assert not [line for line in findings(refusing) if "over_function" in line]


def test_an_index_that_the_rows_contradict_is_refused_when_they_are_there(
    source15: Database, target18: Database, refusing: Config
) -> None:
    target18.execute("CREATE FUNCTION odd(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RAISE 'not %', $1; END $$")
    with running(refusing) as streams:
        assert [one.reason for one in edge_of(streams).post_data.refused] == ["not 1"]
        source15.execute("DROP INDEX over_function; INSERT INTO t VALUES (2, 2)")
        wait_for_equal(lambda: target18.query("SELECT id FROM t ORDER BY id"), [(1,), (2,)], "the rows")
    target18.execute("CREATE OR REPLACE FUNCTION odd(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2'")
    target18.execute("CREATE INDEX over_function ON t (odd(v))")
    with running(refusing):  # somebody has made it: no error, and no second one
        assert target18.query(RECORDS) == []


def test_what_is_broken_off_is_made_by_the_next_start_unless_a_person_has_broken_it_off(
    source15: Database, target18: Database
) -> None:
    for node in (source15, target18):
        node.execute(HOLD)
    source15.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE INDEX slow ON t (hold(id)); INSERT INTO t VALUES (1)")
    config = make_config({"a": source15.url, "b": target18.url})
    with held(target18):
        with running(config, wait=False) as streams:
            report = wait_until_held(streams).post_data
            assert ([task.what for task in report.building], report.waiting) == (["index slow of table public.t"], 0)
        assert target18.query(RECORDS) == [("index slow of table public.t", "")]
        with running(config, wait=False, set_up=False) as streams:
            wait_until_held(streams)
            wait_for(lambda: target18.query(CANCEL), "the index to be under way, and broken off")
            streams.wait_until_streaming()
            assert [one.reason for one in edge_of(streams).post_data.refused] == ["canceling statement due to user request"]
    with running(config):
        assert looks(target18) == looks(source15)


def test_a_unique_index_waits_until_ranges_of_different_times_are_of_one(
    source15: Database, target18: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    source15.execute("CREATE TABLE large (id int PRIMARY KEY, name text UNIQUE, v int); CREATE INDEX by_v ON large (v)")
    source15.execute("INSERT INTO large SELECT i, 'n' || i FROM generate_series(1, 1000) i")
    source15.execute("VACUUM ANALYZE large")
    config = make_config({"a": source15.url, "b": target18.url}, copy_range_rows=100)
    setup(config, None, lambda line: None)
    target18.execute(NOT_YET)
    with running(config, wait=False, set_up=False) as streams:
        streams.wait_for_problem("not yet")
        wait_for(lambda: len(target18.query("SELECT 1 FROM streamer.copied_part")) >= 4, "half of the ranges")
        source15.execute("UPDATE large SET name = 'x' WHERE id = 10")
        source15.execute("UPDATE large SET name = 'n10' WHERE id = 900")
        target18.execute("DROP TRIGGER not_yet ON large")
        wait_for_equal(lambda: looks(target18), looks(source15), "the indexes")
        assert target18.query("SELECT name FROM large WHERE id IN (10, 900) ORDER BY id") == [("x",), ("n10",)]
    assert "copy_restarted" not in "".join(capsys.readouterr())


def test_a_node_that_hands_tables_on_hands_on_what_it_waits_for_itself(databases: Databases, pg15: PostgresServer) -> None:
    a, b, c = (databases.create(pg15, f"on_{name}") for name in "abc")
    a.execute("CREATE TABLE t (id int PRIMARY KEY, v int UNIQUE); CREATE INDEX by_v ON t (v DESC); INSERT INTO t VALUES (1, 1)")
    syncs = {"first": {"sources": ["a"], "targets": ["b"], "tables": ["*.*"]}}
    syncs["second"] = {"sources": ["b"], "targets": ["c"], "tables": ["*.*"]}
    with running(make_config({"a": a.url, "b": b.url, "c": c.url}, syncs=syncs)):
        wait_for_equal(lambda: looks(c), looks(a), "the indexes")
        assert looks(b) == looks(a)


def test_an_old_server_tells_of_indexes_too(trigger_source: Database, target18: Database) -> None:
    trigger_source.execute(
        'CREATE TABLE "T ""x" ("a B" int, b int, c text, PRIMARY KEY ("a B", b), CONSTRAINT "both" UNIQUE (c, b), CHECK (b > 0));'
        'CREATE TABLE one (id int PRIMARY KEY, a int, b int, self int REFERENCES one, FOREIGN KEY (a, b) REFERENCES "T ""x");'
        'CREATE UNIQUE INDEX "Part ""ial" ON "T ""x" (lower(c) DESC NULLS LAST) WHERE b > 1; CREATE INDEX sums ON one ((b + a));'
        'INSERT INTO "T ""x" VALUES (1, 1, \'c\'); INSERT INTO one VALUES (1, 1, 1, 1)'
    )
    config = make_config({"a": trigger_source.url, "b": target18.url}, capture="trigger")
    setup(config, None, lambda line: None)
    assert [name for name, _ in target18.query(INDEXES)] == ['"T ""x_pkey"', "one_pkey"]
    with running(config, set_up=False) as streams:
        assert [name for name, _ in target18.query(INDEXES)] == ['"Part ""ial"', '"T ""x_pkey"', '"both"', "one_pkey", "sums"]
        assert sum(str(definition).startswith("FOREIGN KEY") for _, _, definition, _ in target18.query(CONSTRAINTS)) == 2
        assert edge_of(streams).post_data == PostDataReport()
