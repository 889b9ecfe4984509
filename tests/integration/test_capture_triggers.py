"""The triggers that capture changes, on real servers: what they note of every kind of change, for whoever makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from streamer.capture import delta_objects, triggers
from streamer.capture.catalog import read_tables
from streamer.capture.keys import delta_key
from streamer.capture.triggers import Condition, Wanted
from streamer.model import TableName
from streamer.session import Connection, connect
from tests.conftest import Databases
from tests.servers import Database, PostgresServer

LONG = "Ein sehr langer 'Name' mit \"Anführung\" und $dollar$ \\ Zeichen."
assert len(LONG.encode()) == 63
UPSERT, SHORTEST_FLOATS, RANGES, BYTEA_OUTPUT, EXCLUSIONS = 90500, 120000, 90200, 90000, 90000
"""The versions since which there are such things."""
ODD = '"' + LONG.replace('"', '""') + '"'


@pytest.fixture(params=["trigger_server", "server_b"])
def database(request: pytest.FixtureRequest, databases: Databases) -> Database:
    server: PostgresServer = request.getfixturevalue(request.param)
    return databases.create(server, "source")


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with connect("a", database.url, application="test") as connection:
        connection.execute("SET search_path = pg_catalog")
        delta_objects.install(connection, "a")
        yield connection


def wanted(connection: Connection, **columns: frozenset[str]) -> list[Wanted]:
    tables = read_tables(connection, lambda table: table.schema != "streamer")
    unique = triggers.read_unique(connection)
    return [Wanted(t, key, columns.get(t.table.name), unique[t.table]) for t in tables if (key := delta_key(t, ()))]


def conditions(connection: Connection, tables: list[Wanted]) -> set[Condition]:
    installed = triggers.read_installed(connection)
    return {triggers.condition(one, installed) for one in tables}


def capture(connection: Connection, **columns: frozenset[str]) -> list[Wanted]:
    """Give all tables their triggers."""
    tables, installed = wanted(connection, **columns), triggers.read_installed(connection)
    connection.execute(triggers.missing_functions(tables, installed).encode())
    for one in tables:
        connection.execute(triggers.making(one, installed).encode())
    assert conditions(connection, tables) == {Condition.COMPLETE}
    return tables


def noted(database: Database) -> list[tuple[Any, ...]]:
    """What has been captured since the last look: table, kind, key."""
    query = "SELECT relation::regclass::text, kind::text, key FROM streamer.delta ORDER BY id"
    found = database.query(query)
    database.execute("DELETE FROM streamer.delta")
    return found


def test_every_kind_of_change_is_noted_with_its_key(database: Database, connection: Connection) -> None:
    database.execute("CREATE TABLE t (a int, b text, v text, PRIMARY KEY (b, a))")
    capture(connection)
    database.execute("INSERT INTO t VALUES (1, 'x', 'v'), (2, 'y', NULL)")
    assert noted(database) == [("t", "i", ["x", "1"]), ("t", "i", ["y", "2"])]
    database.execute("UPDATE t SET v = 'w' WHERE a = 1")
    assert noted(database) == [("t", "u", ["x", "1"])]
    database.execute("UPDATE t SET b = 'z' WHERE a = 1")
    assert noted(database) == [("t", "d", ["x", "1"]), ("t", "i", ["z", "1"])]
    database.execute("DELETE FROM t WHERE a = 1")
    assert noted(database) == [("t", "d", ["z", "1"])]
    database.execute("TRUNCATE t")
    assert noted(database) == [("t", "t", None)]
    if database.server.version >= UPSERT:
        database.execute("INSERT INTO t VALUES (1, 'x', 'v') ON CONFLICT (b, a) DO UPDATE SET v = 'n'")
        database.execute("INSERT INTO t VALUES (1, 'x', 'v') ON CONFLICT (b, a) DO UPDATE SET v = 'n'")
        assert noted(database) == [("t", "i", ["x", "1"]), ("t", "u", ["x", "1"])]


def test_a_transaction_that_is_undone_leaves_nothing(database: Database, connection: Connection) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture(connection)
    with database.connect() as session:
        session.execute("BEGIN; INSERT INTO t VALUES (1); SAVEPOINT s; INSERT INTO t VALUES (2); ROLLBACK TO s; COMMIT")
        session.execute("BEGIN; INSERT INTO t VALUES (3); ROLLBACK")
    assert noted(database) == [("t", "i", ["1"])]


def test_names_may_be_anything(database: Database, connection: Connection) -> None:
    database.execute(f"CREATE SCHEMA {ODD}; CREATE TABLE {ODD}.{ODD} ({ODD} int PRIMARY KEY, v int)")
    capture(connection)
    assert list(triggers.captured(connection).values()) == [(LONG,)]
    database.execute(f"INSERT INTO {ODD}.{ODD} VALUES (1, 1); UPDATE {ODD}.{ODD} SET {ODD} = 2; DELETE FROM {ODD}.{ODD}")
    assert [(kind, key) for _, kind, key in noted(database)] == [("i", ["1"]), ("d", ["1"]), ("i", ["2"]), ("d", ["2"])]


KEYS = {
    "bool": ("true", "false", "true"),
    "numeric": ("1.0", "1.00", "1.0"),
    "float8": ("0.1", "0.30000000000000004", "0.1"),
    "float4": ("1.1", "3.4028235e+38", "1.1"),
    "char(5)": ("'ab'", "'abc'", "ab"),
    "varchar": ("''", "'a'", ""),
    "bytea": ("decode('00ff', 'hex')", "decode('01', 'hex')", "\\x00ff"),
    "uuid": ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", None),
    "timestamptz": ("'2024-03-04 05:06:07.5+02'", "'infinity'", "2024-03-04 03:06:07.5+00"),
    "timestamp": ("'2024-03-04 05:06:07'", "'0044-03-15 00:00 BC'", "2024-03-04 05:06:07"),
    "date": ("'2024-03-04'", "'2024-04-03'", "2024-03-04"),
    "interval": ("'1 month 2 days'", "'-1 day'", "1 mon 2 days"),
    "money": ("'12.5'", "'13'", "$12.50"),
    "inet": ("'10.0.0.1'", "'10.0.0.2'", "10.0.0.1/32"),
    "mood": ("'sad'", "'happy'", "sad"),
    "small": ("7", "8", "7"),
    "moment": ("'2024-03-04 05:06:07+00'", "'2024-03-05 05:06:07+00'", "2024-03-04 05:06:07+00"),
    "date[]": ("'{2024-03-04}'", "'{2024-04-03}'", "{2024-03-04}"),
    "daterange": ("'[2024-03-04,2024-03-09)'", "'empty'", "[2024-03-04,2024-03-09)"),
}
"""A value, another one, and what is noted of the first."""
HOSTILE = """
SET search_path = evil, pg_temp, pg_catalog; SET datestyle = 'German'; SET timezone = 'Asia/Tokyo'; SET intervalstyle = 'iso_8601';
SET bytea_output = 'escape'; SET extra_float_digits = -5; SET standard_conforming_strings = off;
SET session_replication_role = replica
"""
"""What somebody's session may be like; in the schema evil are things with the names of those that the functions use."""
EVIL = """
CREATE SCHEMA evil;
CREATE TYPE evil.text AS (a int);
CREATE FUNCTION evil.stolen(int, int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''stolen''; END';
CREATE OPERATOR evil.<> (LEFTARG = int, RIGHTARG = int, PROCEDURE = evil.stolen);
CREATE FUNCTION evil.nextval(text) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''stolen''; END';
CREATE TYPE public.mood AS ENUM ('sad', 'happy');
CREATE DOMAIN public.small AS int CHECK (VALUE > 0);
CREATE DOMAIN public.moment AS timestamptz;
"""


def test_keys_of_any_type_have_one_text_whatever_the_settings_of_the_session(database: Database, connection: Connection) -> None:
    server = database.server.version
    kinds = {kind: values for kind, values in KEYS.items() if server >= RANGES or "range" not in kind}
    hostile = HOSTILE if server >= BYTEA_OUTPUT else HOSTILE.replace("SET bytea_output = 'escape';", "")
    database.execute(EVIL)
    for number, kind in enumerate(kinds):
        database.execute(f"CREATE TABLE t{number} (id {kind} PRIMARY KEY, v int)")
    capture(connection)
    for number, (kind, (one, other, text)) in enumerate(kinds.items()):
        calm = f"INSERT INTO t{number} VALUES ({one}, 1); DELETE FROM t{number}"
        wild = (
            f"INSERT INTO public.t{number} VALUES ({one}, 1); UPDATE public.t{number} SET v = v OPERATOR(pg_catalog.+) 1; "
            f"UPDATE public.t{number} SET id = {other}; DELETE FROM public.t{number}"
        )
        database.execute(calm)
        (_, _, first), _ = noted(database)
        with database.connect() as session:
            session.execute(hostile.encode())
            session.execute(wild.encode())
        found = [(kind, key) for _, kind, key in noted(database)]
        assert [kind for kind, _ in found] == ["i", "u", "d", "i", "d"], (number, found)
        assert found[0][1] == found[1][1] == found[2][1] == first, number
        assert found[3][1] == found[4][1] != first, number
        if text is not None and (server >= SHORTEST_FLOATS or kind not in ("float4", "float8", "bytea")):
            assert first == [text], number


def test_a_user_without_rights_in_our_schema_can_change_rows(database: Database, connection: Connection) -> None:
    role = f"clerk_{database.server.port}"
    database.execute(f"CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE {role}; GRANT ALL ON t TO {role}")
    capture(connection)
    try:
        database.execute(f"SET ROLE {role}; INSERT INTO t VALUES (1); UPDATE t SET id = 2; DELETE FROM t; TRUNCATE t")
        assert [kind for _, kind, _ in noted(database)] == ["i", "d", "i", "d", "t"]
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_updates_that_change_no_captured_column_are_passed_over(database: Database, connection: Connection) -> None:
    kind = "json" if database.server.version >= RANGES else "text"
    database.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, j {kind}, p point, x xml, f float8, other text);"
        "CREATE FUNCTION before() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF NEW.other = ''touch'' THEN NEW.n := NEW.n + 1; END IF; RETURN NEW; END';"
        "CREATE TRIGGER b BEFORE UPDATE ON t FOR EACH ROW EXECUTE PROCEDURE before();"
    )
    capture(connection, t=frozenset({"id", "n", "j", "p", "f"}))
    database.execute("INSERT INTO t VALUES (1, 1, '{\"a\": 1}', '(1,2)', NULL, 0.1, 'a')")
    noted(database)
    for silent in ("other = 'b'", "other = NULL, n = 1", "n = n, j = j, p = p, f = f", "id = id"):
        database.execute(f"UPDATE t SET {silent}")
        assert noted(database) == [], silent
    for loud in ("n = 2", "j = NULL", "j = '{}'", "p = '(2,2)'", "f = NULL", "f = '-0'", "f = 0", "other = 'touch'"):
        database.execute("SET extra_float_digits = 0; UPDATE t SET " + loud)
        assert noted(database) == [("t", "u", ["1"])], loud
    database.execute("UPDATE t SET id = 2")
    assert [kind for _, kind, _ in noted(database)] == ["d", "i"]


def test_an_update_of_a_unique_value_is_a_delete_and_an_insert(database: Database, connection: Connection) -> None:
    exclusion = ", EXCLUDE USING gist (at WITH &&)" if database.server.version >= EXCLUSIONS else ", UNIQUE (at)"
    kind = "box" if database.server.version >= EXCLUSIONS else "date"
    database.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, mail text UNIQUE, nick text, live boolean, room int, at {kind}, other int"
        f"{exclusion});"
        "CREATE UNIQUE INDEX nicks ON t (lower(nick)) WHERE live; CREATE INDEX others ON t (other); INSERT INTO t VALUES (1)"
    )
    capture(connection)
    place = "'((0,0),(1,1))'" if kind == "box" else "'2024-01-01'"
    for change in ("mail = 'a'", "nick = 'a'", "live = true", f"at = {place}", "mail = NULL"):
        database.execute(f"UPDATE t SET {change}")
        assert noted(database) == [("t", "d", ["1"]), ("t", "i", ["1"])], change
    database.execute("UPDATE t SET other = 1, room = 2, mail = mail")
    assert noted(database) == [("t", "u", ["1"])]
    capture(connection, t=frozenset({"id", "mail", "other"}))
    for change, kinds in (("mail = 'b'", ["d", "i"]), ("nick = 'b'", []), ("other = 2", ["u"])):
        database.execute(f"UPDATE t SET {change}")
        assert [kind for _, kind, _ in noted(database)] == kinds, change


@pytest.mark.parametrize("database", ["server_a", "server_b"], indirect=True)
def test_partitions_are_captured_with_those_that_come_later(database: Database, connection: Connection) -> None:
    database.execute(
        "CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)"
    )
    capture(connection)
    database.execute("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)")
    replica = "SET session_replication_role = replica; "
    database.execute(replica + "INSERT INTO p VALUES (1), (11); UPDATE p SET id = 12 WHERE id = 1; UPDATE p2 SET v = 1; TRUNCATE p")
    assert noted(database) == [
        ("p1", "i", ["1"]),
        ("p2", "i", ["11"]),
        ("p1", "d", ["1"]),
        ("p2", "i", ["12"]),
        ("p2", "u", ["11"]),
        ("p2", "u", ["12"]),
        ("p", "t", None),
    ]
    assert conditions(connection, wanted(connection)) == {Condition.COMPLETE}


@pytest.mark.parametrize("database", ["server_a", "server_b"], indirect=True)
def test_a_publication_of_all_tables_is_in_nobodys_way(database: Database, connection: Connection) -> None:
    database.execute("CREATE PUBLICATION everything FOR ALL TABLES; CREATE TABLE t (id int PRIMARY KEY)")
    capture(connection)
    database.execute("INSERT INTO t VALUES (1); UPDATE t SET id = 2; DELETE FROM t; TRUNCATE t")
    assert len(noted(database)) == 5


def test_what_streamer_writes_is_tagged(database: Database, connection: Connection) -> None:
    from streamer.admin.installation import install

    install(connection)
    assert delta_objects.install(connection, "a") == "brought into line"
    assert delta_objects.missing(connection) == []
    with database.connect() as session:
        session.execute("SET session_replication_role = replica")
        values = "'shop', 'b', 'a', '1', 'd', 's', '0/1', 'c', '0/2', '2020-01-01 00:00+00'"
        columns = "sync, source, target, system_identifier, database, slot, position, origin, origin_position, origin_time, seen"
        session.execute(f"INSERT INTO streamer.progress ({columns}) VALUES ({values}, '{{\"x\": 1}}')".encode())
        session.execute("BEGIN; UPDATE streamer.progress SET origin = 'd'; UPDATE streamer.progress SET origin = 'e'; COMMIT")
    query = "SELECT sync, source, origin, origin_position, seen FROM streamer.delta_tag ORDER BY txid"
    assert database.query(query) == [("shop", "b", "c", "0/2", '{"x": 1}'), ("shop", "b", "e", "0/2", '{"x": 1}')]


def test_a_reader_that_sleeps_is_woken_once(database: Database, connection: Connection) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture(connection)
    with database.connect() as reader:
        reader.execute(f"LISTEN {triggers.CHANNEL}")
        reader.execute("SELECT setval('streamer.wakeup', 1)")
        for statement in ("INSERT INTO t VALUES (1), (2)", "INSERT INTO t VALUES (3)"):
            database.execute(statement)
        heard = [notify.channel for notify in reader.notifies(timeout=10, stop_after=1)]
        heard += [notify.channel for notify in reader.notifies(timeout=0)]
        assert heard == [triggers.CHANNEL]
        assert reader.execute("SELECT last_value FROM streamer.wakeup").fetchone() == (2,)


def test_what_is_disabled_replaced_or_gone_is_seen(database: Database, connection: Connection) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY)")
    one, other = capture(connection)
    for statement, expected in (
        ("ALTER TABLE t DISABLE TRIGGER zzz_streamer_update", Condition.DISABLED),
        ("ALTER TABLE t DISABLE TRIGGER ALL", Condition.DISABLED),
        ("ALTER TABLE t ENABLE TRIGGER zzz_streamer_truncate", Condition.DISABLED),
        ("DROP TRIGGER zzz_streamer_delete ON t", Condition.MISSING),
    ):
        database.execute(statement)
        installed = triggers.read_installed(connection)
        assert (triggers.condition(one, installed), triggers.condition(other, installed)) == (expected, Condition.COMPLETE)
        capture(connection)
    installed = triggers.read_installed(connection)
    assert triggers.condition(Wanted(one.table, ("v",)), installed) is Condition.OUTDATED
    assert triggers.condition(Wanted(one.table, one.key, frozenset({"v"}), one.unique), installed) is Condition.OUTDATED
    database.execute("ALTER TABLE t RENAME TO r")
    assert triggers.condition(wanted(connection)[0], triggers.read_installed(connection)) is Condition.COMPLETE


def test_tables_whose_keys_are_alike_share_their_functions_and_the_last_takes_them_along(
    database: Database, connection: Connection
) -> None:
    database.execute("".join(f"CREATE TABLE t{n} (id int PRIMARY KEY);" for n in range(30)))
    capture(connection)
    assert len(triggers.read_installed(connection).functions) == 3
    assert len(triggers.captured(connection)) == 30
    for number in range(30):
        installed = triggers.read_installed(connection)
        connection.execute(triggers.removing(TableName("public", f"t{number}"), installed).encode())
        triggers.remove_idle_functions(connection)
        assert len(triggers.read_installed(connection).functions) == (0 if number == 29 else 3)
    connection.execute(delta_objects.removal(connection).encode())
    left = "SELECT relname FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'streamer')"
    assert database.query(left) == []


@pytest.mark.parametrize("table", ["delta", "delta_tag"])
def test_captured_changes_are_not_truncated(database: Database, connection: Connection, table: str) -> None:
    """A TRUNCATE lost in silence what targets did not have yet."""
    with pytest.raises(psycopg.errors.RaiseException, match=rf"streamer\.{table} holds changes that not all targets"):
        database.execute(f"TRUNCATE streamer.{table}")
