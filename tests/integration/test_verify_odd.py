"""`streamer verify` over tables that nobody would make for a test: odd keys, odd collations, odd values, odd shapes of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest
from psycopg import sql

from streamer.errors import ConnectError
from streamer.model import EdgeName
from streamer.verify import comparison, pairs, postgres_pairs
from streamer.verify.tables import equal
from tests.configs import make_config
from tests.conftest import Databases
from tests.integration.streams import running
from tests.integration.verifying import kinds, verified
from tests.servers import Database, PostgresServer


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables have several ranges, too."""
    monkeypatch.setattr(comparison, "PART_ROWS", 4)
    monkeypatch.setattr(comparison, "FINE_ROWS", 2)


@dataclass(frozen=True)
class Key:
    """A column that is a key, and values of it as they are printed: on the target the first one is deleted, and the last one spelt
    in another way, where equal values have several."""

    kind: str
    values: tuple[str, ...]
    #: another spelling of the last
    again: str = ""


KEYS: Final = {
    "numeric": Key("numeric", ("1", "NaN", "-0.00000000000000000001", "1e100", "10.0"), "10.00"),
    "float": Key("float8", ("1", "NaN", "Infinity", "-Infinity", "0.1", "1e-300", "0"), "-0"),
    "real": Key("real", ("1", "NaN", "Infinity", "0.1")),
    "when": Key("timestamptz", ("2020-01-01 00:00:00+00", "infinity", "-infinity", "0044-03-15 00:00:00+00 BC")),
    "day": Key("date", ("2020-01-01", "infinity", "-infinity", "0044-03-15 BC", "5874897-12-31")),
    "big": Key("bigint", ("1", "-9223372036854775808", "9223372036854775807", "0", "-1")),
    "small": Key("smallint", ("1", "-32768", "32767", "0", "-1")),
    "word": Key("text", ("a", "", " ", "A", "ä", "z", "_", "日本", "a b", "it's", 'q"', "back\\slash", "\n", "%s", "\\N", "NULL")),
    "sorted": Key("text COLLATE icu", ("a", "A", "ä", "Z", "-a", "")),
    "posix": Key('text COLLATE "C"', ("a", "A", "ä", "Z", "-a", "")),
    "folded": Key("text COLLATE fold", ("a", "b", "C")),
    "wide": Key("char(5)", ("a    ", "", "abcde", "ä")),
    "letter": Key('"char"', ("a", "", "\\")),
    "id": Key("uuid", ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff")),
    "bytes": Key("bytea", ("\\x00", "\\x", "\\xff00", "\\x5c")),
    "span": Key("interval", ("1 day", "1 year 2 mons -3 days +04:05:06.789", "0", "1 mon"), "30 days"),
    "yes": Key("boolean", ("t", "f")),
    "list": Key("int[]", ("{1}", "{}", "{1,NULL}", "{{1,2},{3,4}}", "[0:1]={1,2}")),
    "words": Key("text[]", ("{a}", "{}", '{NULL,"NULL"}', '{"a,b","it\'s"}')),
    "doc": Key("jsonb", ('{"a": 1}', "null", "[]", '"x"', "1.0"), "1.00"),
    "range": Key("int4range", ("[1,2)", "empty", "(,)", "[5,)")),
    "floats": Key("numrange", ("[1.0,2.0)", "empty", "[1,3]"), "[1.0,3.00]"),
    "feeling": Key("mood", ("sad", "it's ok", "")),
    "cost": Key("price", ("1.00", "2.50")),
    "host": Key("inet", ("10.0.0.1", "10.0.0.0/8", "::1")),
    "bits": Key("bit varying", ("1", "", "0101")),
    "both": Key("pair", ('(1,"a,b")', "(,)", '(2,"")')),
    "lsn": Key("pg_lsn", ("0/1", "FFFFFFFF/FFFFFFFF")),
}
TYPES: Final = """
CREATE TYPE mood AS ENUM ('sad', 'it''s ok', '');
CREATE DOMAIN price AS numeric(10, 2);
CREATE TYPE pair AS (a int, b text);
"""
COLLATIONS: Final = (
    "CREATE COLLATION icu (provider = icu, locale = 'en'); "
    "CREATE COLLATION fold (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    """CREATE COLLATION icu FROM "C"; CREATE COLLATION fold FROM pg_c_utf8""",
)
"""Of a server with ICU, and of one without, which orders differently."""


Sides = tuple[Database, Database, str]
"""A source, a target, and how the source is captured."""


@pytest.fixture(params=["15 to 18", "18 to 15", "triggers to 18"])
def sides(request: pytest.FixtureRequest, databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> Sides:
    source, target = (pg18, pg15) if request.param == "18 to 15" else (pg15, pg18)
    capture = "trigger" if "trigger" in request.param else "auto"
    return databases.create(source, "source"), databases.create(target, "target"), capture


def test_keys_of_every_type_and_collation_are_told_apart_alike(sides: Sides) -> None:
    source, target, capture = sides
    tables = "".join(f';CREATE TABLE "{name}" (k {key.kind} PRIMARY KEY, v text)' for name, key in KEYS.items())
    for database in (source, target):
        database.execute(TYPES + COLLATIONS[database.server.version >= 180000] + tables)
    with source.connect() as connection:
        for name, key in KEYS.items():
            for value in key.values:
                connection.execute(sql.SQL("INSERT INTO {} VALUES ({}, 'x')").format(sql.Identifier(name), sql.Literal(value)))
    config = make_config({"a": source.url, "b": target.url}, capture=capture)
    with running(config) as streams:
        found = verified(config, streams)
        assert {one.table: (one.rows, one.verdict.value, one.problem) for one in found} == {
            f"public.{name}": (len(key.values), "equal", "") for name, key in KEYS.items()
        }
        with target.connect() as connection:
            for name, key in KEYS.items():
                table, kind = sql.Identifier(name), sql.SQL(key.kind.partition(" COLLATE")[0])
                first, last, again = (sql.Literal(value) for value in (key.values[0], key.values[-1], key.again))
                connection.execute(sql.SQL("DELETE FROM {} WHERE k = CAST({} AS {})").format(table, first, kind))
                if key.again:
                    connection.execute(sql.SQL("UPDATE {} SET k = {} WHERE k = CAST({} AS {})").format(table, again, last, kind))
        assert kinds(verified(config, streams)) == dict(_differences())


def _differences() -> Iterator[tuple[tuple[str, str], str]]:
    for name, key in KEYS.items():
        yield (f"public.{name}", key.values[0]), "missing"
        if key.again:
            yield (f"public.{name}", key.values[-1]), "missing"
            yield (f"public.{name}", key.again), "extra"


TABLES: Final = """
CREATE TABLE nothing (id int PRIMARY KEY);
CREATE TABLE nothing_keyless (a int);
ALTER TABLE nothing_keyless REPLICA IDENTITY FULL;
CREATE TABLE one (id int PRIMARY KEY, v text);
INSERT INTO one VALUES (1, 'x');
CREATE TABLE one_keyless (a int, b text);
ALTER TABLE one_keyless REPLICA IDENTITY FULL;
INSERT INTO one_keyless VALUES (NULL, NULL);
CREATE TABLE generated (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO generated (n) SELECT i FROM generate_series(1, 20) i;
CREATE TABLE "values" (
    id int PRIMARY KEY, f float8, r real, c char(5), s interval, a int[], t text[], j jsonb, d json, i int4range, n numrange,
    b bytea, w tsvector, o money, h inet, v varbit, p point, m mood, k price, e pair, u uuid, z timetz
);
INSERT INTO "values" VALUES (
    1, '-0', '-0', 'a', '1 mon', '{1,NULL}', '{"NULL",NULL,""}', '{"b": 1.00, "a": null}', '{"b":1,  "a":2}', '[1,5)',
    '[1.0,2.00]', decode('00ff', 'hex'), 'a:1 b:2', '12.34', '10.0.0.1/8', '101', '(0.1,-0)', '', '1.00', '(1,"a b")',
    '00000000-0000-0000-0000-000000000001', '12:34:56.789+01'
);
INSERT INTO "values" VALUES (
    3, 'NaN', 'Infinity', '', '-1 days', '[0:1]={1,2}', '{}', 'null', 'null', 'empty', '(,)', '', '', '-0.01', '::1', '', NULL,
    'sad', '-0.00', '(,)', NULL, NULL
);
INSERT INTO "values" VALUES (2);
"""
COPY_OF_THE_FIRST: Final = """
INSERT INTO "values" SELECT %s, f, r, c, s, a, t, j, d, i, n, b, w, o, h, v, p, m, k, e, u, z FROM "values" WHERE id = 1
"""
CHANGES: Final = (
    "f = 0", "r = 0", "c = 'b'", "s = '30 days'", "a = '{1}'", "t = '{NULL,NULL,\"\"}'", "j = '{\"b\": 1.0, \"a\": null}'",
    "d = '{\"b\":1, \"a\":2}'", "i = '[1,4)'", "n = '[1.0,2.0]'", "b = decode('00fe', 'hex')", "w = 'a:1'", "o = '12.35'",
    "h = '10.0.0.1'", "v = '1010'", "p = '(0.1,0)'", "m = 'sad'", "k = 1.01", "e = '(1,\"a  b\")'", "u = NULL",
    "z = '12:34:56.789+02'",
)  # fmt: skip
"""Of the row with all values: each is another value, most of them equal to the one before."""


def test_odd_tables_are_equal_after_a_copy_and_each_odd_value_that_changes_is_found(sides: Sides) -> None:
    source, target, capture = sides
    source.execute(TYPES + TABLES)
    for number in range(len(CHANGES)):
        source.execute(COPY_OF_THE_FIRST, [100 + number])
    config = make_config({"a": source.url, "b": target.url}, capture=capture)
    with running(config) as streams:
        found = verified(config, streams)
        assert equal(found), found
        with target.connect() as connection:
            for number, change in enumerate(CHANGES):
                connection.execute(f'UPDATE "values" SET {change} WHERE id = {100 + number}'.encode())
            connection.execute("UPDATE generated SET n = n + 1 WHERE id = 20")
            connection.execute("INSERT INTO nothing_keyless VALUES (NULL)")
        different = kinds(verified(config, streams))
        (hashed,) = [key for table, key in different if table == "public.nothing_keyless"]
        expected = {("public.values", str(100 + number)): "different" for number in range(len(CHANGES))}
        assert different == expected | {("public.generated", "20"): "different", ("public.nothing_keyless", hashed): "extra"}


INHERITING: Final = """
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (more int, PRIMARY KEY (id)) INHERITS (parent);
INSERT INTO parent SELECT i, 'parent' FROM generate_series(1, 20) i;
INSERT INTO child SELECT i, 'child', i FROM generate_series(11, 30) i;
"""


def test_rows_of_tables_that_inherit_belong_to_them_alone(sides: Sides) -> None:
    source, target, capture = sides
    source.execute(INHERITING)
    config = make_config({"a": source.url, "b": target.url}, capture=capture, copy="always")
    with running(config) as streams:
        assert [(one.table, one.rows, one.verdict.value) for one in verified(config, streams)] == [
            ("public.child", 20, "equal"),
            ("public.parent", 20, "equal"),
        ]
        source.execute("UPDATE ONLY parent SET v = 'changed' WHERE id = 15")
        source.execute("DELETE FROM ONLY parent WHERE id IN (14, 16)")
        source.execute("DELETE FROM child WHERE id = 17")
        assert equal(verified(config, streams))
        for query in ("SELECT * FROM ONLY parent ORDER BY id", "SELECT * FROM child ORDER BY id"):
            assert target.query(query) == source.query(query)
        source.execute("TRUNCATE ONLY parent")
        assert equal(verified(config, streams))
        assert target.query("SELECT count(*) FROM child") == [(19,)]
        target.execute("DELETE FROM ONLY parent; UPDATE child SET v = NULL WHERE id = 30")
        assert kinds(verified(config, streams)) == {("public.child", "30"): "different"}


@pytest.mark.parametrize(("step", "lost"), [("find", "a"), ("read_alike", "b")])
def test_an_end_that_is_lost_before_rows_are_read_is_named(
    source15: Database, target18: Database, monkeypatch: pytest.MonkeyPatch, step: str, lost: str
) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source15.url, "b": target18.url})
    module, end = (pairs, source15) if lost == "a" else (postgres_pairs, target18)
    ask = getattr(module, step)

    def lose(*arguments: object) -> object:
        ours = "datname = current_database() AND application_name = 'streamer verify'"
        end.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
        return ask(*arguments)

    monkeypatch.setattr(module, step, lose)
    edge = EdgeName("shop", "a", "b")
    with pytest.raises(ConnectError, match=f'node "{lost}": '), pairs.opened(config, edge, config.syncs["shop"].selects):
        pass
