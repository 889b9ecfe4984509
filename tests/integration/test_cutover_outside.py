"""What no sync brings to the new node is told before an application moves there."""

from __future__ import annotations

from streamer.admin.check import check
from streamer.admin.cutover_outside import outside
from streamer.admin.cutover_route import Route
from streamer.model import EdgeName
from tests.configs import make_config
from tests.conftest import Pair
from tests.servers import Database

ROUTE = Route(EdgeName("shop", "a", "b"), None)


def left(old: Database, new: Database, tables: list[str], exclude: list[str]) -> list[str]:
    config = make_config({"a": old.url, "b": new.url}, tables=tables, exclude=exclude)
    return [f"{f.severity}: {f.object}: {f.reason}" for f in outside(config, ROUTE, numbered=True)]


def test_a_table_of_a_forgotten_schema_is_told_before_an_application_moves(pair: Pair) -> None:
    old, new = pair
    old.execute(
        "CREATE SCHEMA sales; CREATE TABLE t (id serial PRIMARY KEY); CREATE TABLE sales.line (id serial PRIMARY KEY);"
        "CREATE UNLOGGED TABLE cache (id int); CREATE SEQUENCE invoice; CREATE SEQUENCE sales.receipt; CREATE TABLE tmp (id int);"
        "CREATE TABLE sales.part (id int) PARTITION BY LIST (id); CREATE TABLE sales.p1 PARTITION OF sales.part FOR VALUES IN (1);"
        "SELECT lo_from_bytea(0, 'large')"
    )
    new.execute("CREATE MATERIALIZED VIEW totals AS SELECT 1 AS n WITH NO DATA")
    assert left(old, new, ["public.*"], ["public.tmp"]) == [
        'warning: "a": no sync brings 2 tables: "sales.line", "sales.part"',
        'warning: "a": keeps the rows of 1 unlogged table: "public.cache"',
        'warning: "a": no sync moves 1 sequence: "sales.receipt"',
        'warning: "a": has large objects, which are not replicated',
        'warning: "b": has no rows in 1 materialized view: "public.totals"',
    ]
    old.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    new.execute("REFRESH MATERIALIZED VIEW totals")
    assert left(old, new, ["public.*", "sales.*"], ["public.tmp", "public.cache"]) == []


def test_check_tells_the_tables_that_no_sync_selects(pair: Pair) -> None:
    old, new = pair
    old.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE v (id int PRIMARY KEY)")
    config = make_config({"a": old.url, "b": new.url}, tables=["t"], exclude=["v"])
    assert 'node "a": no sync selects 1 other table: "public.u"' in [f"{f.object}: {f.reason}" for f in check(config)]


def test_an_application_whose_role_may_not_write_on_the_new_node_is_told_before_it_moves(pair: Pair) -> None:
    old, new = pair
    old.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE clerk; ALTER TABLE t OWNER TO clerk")
    new.execute("CREATE TABLE t (id int PRIMARY KEY)")
    try:
        assert left(old, new, ["public.*"], []) == ['warning: "b": has no role clerk, who owns tables on "a"']
        new.execute("CREATE ROLE clerk")
        (told,) = left(old, new, ["public.*"], [])
        assert told.startswith('warning: node "b": role clerk, who owns 1 table on "a", may not write them here: ')
        new.execute("ALTER TABLE t OWNER TO clerk")
        assert left(old, new, ["public.*"], []) == []
    finally:
        for database in pair:
            database.execute("DROP TABLE t; DROP ROLE IF EXISTS clerk")
