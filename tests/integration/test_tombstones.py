"""The triggers on tables of syncs with several sources: tombstones of deleted keys, versions of merged rows, on real servers."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from psycopg import sql

from streamer import statements
from streamer.errors import SchemaError, TargetError
from streamer.model import TableName
from streamer.session import Connection, connect
from streamer.sinks import postgres_triggers
from streamer.sinks.postgres_table import quoted, read_target
from streamer.sinks.postgres_triggers import ensure, missing_triggers, remove_unwanted, require_commit_timestamps
from streamer.versions import key_id
from tests.conftest import Databases
from tests.servers import Database, PostgresServer

STRANGE = (
    "SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'; SET bytea_output = 'escape'; SET intervalstyle = 'iso_8601'; "
    "SET extra_float_digits = 0;"
)
"""A session that writes values in its own way."""


@pytest.fixture(params=["server_a", "server_b"])
def node(request: pytest.FixtureRequest, databases: Databases) -> Database:
    database = databases.create(request.getfixturevalue(request.param), "node")
    database.execute(statements.load("postgres/install.sql"))
    return database


def session(node: Database) -> Connection:
    """A session as ours are."""
    connection = connect("a", node.url, application="test")
    connection.execute("SET search_path = pg_catalog")
    return connection


def install(node: Database, name: str = "t", merged: Sequence[str] = (), schema: str = "public") -> str:
    with session(node) as connection:
        return ensure(connection, read_target(connection, "a", TableName(schema, name)), merged)


def tombstones(node: Database) -> dict[str, str]:
    """Keys as JSON arrays, by id."""
    return {str(i): key for i, key in node.query("SELECT id, key FROM streamer.tombstone")}


def triggers(node: Database) -> list[str]:
    rows = node.query(r"SELECT tgname::text FROM pg_trigger WHERE tgname LIKE 'zz\_streamer\_%' AND NOT tgisinternal ORDER BY 1")
    return [name for (name,) in rows]


def functions(node: Database) -> int:
    ((count,),) = node.query("SELECT count(*) FROM pg_proc WHERE pronamespace = 'streamer'::regnamespace")
    return int(count)


KEYS = {
    "int": ("int", "-5", "-5"),
    "bigint": ("bigint", "9007199254740993", "9007199254740993"),
    "plain text": ("text", "'abc'", "abc"),
    "text with quotes": ("text", "E'it''s \"q\" \\\\ /'", 'it\'s "q" \\ /'),
    "unicode": ("text", "'Grüße 🐘 \u2028 ￿'", "Grüße 🐘 \u2028 ￿"),
    "control characters": ("text", r"E'\x01\x08\t\n\x0b\f\r\x1f\x7f'", "\x01\b\t\n\x0b\f\r\x1f\x7f"),
    "empty text": ("text", "''", ""),
    "uuid": ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "timestamptz": ("timestamptz", "'2024-06-30 12:34:56.7+00'", "2024-06-30 12:34:56.7+00"),
    "timestamp": ("timestamp", "'2024-06-30 12:34:56'", "2024-06-30 12:34:56"),
    "date": ("date", "'2024-06-30'::date", "2024-06-30"),
    "bool": ("bool", "true", "t"),
    "char": ("char(5)", "'ab'", "ab   "),
    "numeric": ("numeric", "1.500", "1.500"),
    "bytea": ("bytea", r"'\x00ff5c'::bytea", r"\x00ff5c"),
    "float": ("float8", "0.1::float8 + 0.2::float8", "0.30000000000000004"),
    "interval": ("interval", "'1 day 2 hours'::interval", "1 day 02:00:00"),
    "array of times": ("timestamptz[]", "ARRAY['2024-06-30 12:00+00'::timestamptz]", '{"2024-06-30 12:00:00+00"}'),
    "domain over bytea": ("public.raw", r"'\x5c'::bytea", r"\x5c"),
    "enum": ("public.mood", "'so ''so'''", "so 'so'"),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_id_of_a_key_is_the_one_that_we_compute_from_its_text(node: Database, name: str) -> None:
    kind, literal, text = KEYS[name]
    node.execute("CREATE DOMAIN raw AS bytea; CREATE TYPE mood AS ENUM ('so ''so''', 'well')")
    node.execute(f"CREATE TABLE t (id {kind} PRIMARY KEY, v text)")
    install(node)
    node.execute(f"{STRANGE} INSERT INTO t VALUES ({literal}); DELETE FROM t")
    assert list(tombstones(node)) == [key_id(TableName("public", "t"), [text])]
    with session(node) as connection:  # and that text is what our sessions read
        result = connection.execute(f"SELECT ({literal})::{kind}".encode()).pgresult
        assert result is not None
        assert result.get_value(0, 0) == text.encode()


def test_a_composite_key_of_a_table_with_an_odd_name(node: Database) -> None:
    table = TableName('Odd "s\\', "T'b.c$body$%s@table@")
    node.execute(sql.SQL('CREATE SCHEMA {}; CREATE TABLE {} ("B""c" int, "a\'%%" text, PRIMARY KEY ("a\'%%", "B""c"))').format(
        sql.Identifier(table.schema), sql.Identifier(table.schema, table.name)
    ))  # fmt: skip
    assert install(node, table.name, schema=table.schema) == "made"
    with node.connect() as connection:
        connection.execute(f"INSERT INTO {quoted(table)} VALUES (7, 'x')".encode())
        connection.execute(f"DELETE FROM {quoted(table)}".encode())
    assert tombstones(node) == {key_id(table, ["x", "7"]): '["x","7"]'}
    rows = node.query("SELECT schema_name, table_name FROM streamer.tombstone")
    assert rows == [(table.schema, table.name)]


def test_deletes_changed_keys_and_truncates_leave_tombstones_and_nothing_else_does(node: Database) -> None:
    table = TableName("public", "t")
    node.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 5) i")
    install(node)
    node.execute("UPDATE t SET v = 'y'; UPDATE t SET id = id WHERE id = 1; INSERT INTO t VALUES (6)")
    assert tombstones(node) == {}
    node.execute("DELETE FROM t WHERE id = 1; UPDATE t SET id = 20 WHERE id = 2")
    assert tombstones(node) == {key_id(table, ["1"]): '["1"]', key_id(table, ["2"]): '["2"]'}
    node.execute("TRUNCATE t")
    assert set(tombstones(node)) == {key_id(table, [k]) for k in "12"} | {key_id(table, [])}
    assert tombstones(node)[key_id(table, [])] == ""


def test_a_key_that_only_looks_the_same_is_another_key(node: Database) -> None:
    table = TableName("public", "t")
    node.execute("CREATE TABLE t (a int, b numeric, PRIMARY KEY (a, b)); INSERT INTO t VALUES (1, 1.0), (2, 1.0)")
    install(node)
    node.execute("UPDATE t SET b = 1.00 WHERE a = 1; UPDATE t SET a = 3 WHERE a = 2; UPDATE t SET b = 1.0 WHERE a = 3")
    assert set(tombstones(node)) == {key_id(table, ["1", "1.0"]), key_id(table, ["2", "1.0"])}


def test_triggers_made_anew_by_pg_upgrade_or_from_a_dump_see_keys_as_before(node: Database) -> None:
    """The condition for a key of text came back as `text *<> text`: pg_upgrade failed, a restored dump lacked the trigger."""
    table = TableName("public", "t")
    node.execute("CREATE TABLE t (a text, b numeric, n int, PRIMARY KEY (a, b))")
    node.execute("INSERT INTO t VALUES ('x', 1.0), ('y', 1.0), ('z', 1.0)")
    install(node)
    definitions = "SELECT tgname::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 't'::regclass AND NOT tgisinternal"
    with node.connect() as connection:
        for name, definition in connection.execute(definitions).fetchall():
            connection.execute(f"DROP TRIGGER {name} ON t".encode())
            connection.execute(definition.encode())
    node.execute("UPDATE t SET n = 1; UPDATE t SET b = 1.00 WHERE a = 'x'; UPDATE t SET a = 'Y' WHERE a = 'y'")
    node.execute("DELETE FROM t WHERE a = 'z'")
    assert set(tombstones(node)) == {key_id(table, [letter, "1.0"]) for letter in "xyz"}


def test_applied_deletes_leave_tombstones_too(node: Database) -> None:
    node.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3)")
    install(node)
    node.execute("SET session_replication_role = replica; DELETE FROM t WHERE id = 1; UPDATE t SET id = 9 WHERE id = 2; TRUNCATE t")
    assert sorted(tombstones(node).values()) == ["", '["1"]', '["2"]']


def test_a_tombstone_has_the_version_of_the_newest_delete(node: Database) -> None:
    node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    install(node)
    for _ in range(2):
        with node.connect() as connection, connection.transaction():
            connection.execute("INSERT INTO t VALUES (1)")
            connection.execute("DELETE FROM t")
            (xid,) = connection.execute("SELECT txid_current()::text").fetchone() or ("",)
        assert node.query("SELECT xmin::text FROM streamer.tombstone") == [(xid,)]


def test_a_role_without_rights_on_our_schema_writes_as_before(node: Database) -> None:
    node.execute("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    install(node, merged=["n"])
    node.execute("CREATE ROLE clerk; GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON t TO clerk")
    node.execute(
        "SET ROLE clerk; INSERT INTO t VALUES (4, 4); UPDATE t SET n = 9; UPDATE t SET id = 8 WHERE id = 1; "
        "DELETE FROM t WHERE id = 2; TRUNCATE t"
    )
    assert sorted(tombstones(node).values()) == ["", '["1"]', '["2"]']
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        node.execute("SET ROLE clerk; DELETE FROM streamer.tombstone")


def test_an_operator_in_the_path_of_the_session_is_not_taken_for_the_servers(node: Database) -> None:
    node.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    install(node)
    node.execute("CREATE FUNCTION public.md5(text) RETURNS text LANGUAGE sql AS $$ SELECT repeat('0', 32) $$")
    node.execute("SET search_path = public, pg_catalog; DELETE FROM t")
    assert list(tombstones(node)) == [key_id(TableName("public", "t"), ["1"])]


def test_a_database_that_is_not_utf8_has_the_same_ids(server_a: PostgresServer) -> None:
    server_a.start()
    server_a.execute("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    node = Database(server_a, "latin")
    try:
        node.execute(statements.load("postgres/install.sql"))
        with session(node) as connection:
            connection.execute("CREATE TABLE public.ä (id text PRIMARY KEY)")
            connection.execute("INSERT INTO public.ä VALUES ('ö')")
            install(node, "ä")
            connection.execute("DELETE FROM public.ä")
            connection.execute("TRUNCATE public.ä")
        assert set(tombstones(node)) == {key_id(TableName("public", "ä"), key) for key in (["ö"], [])}
    finally:
        node.drop()


# -- partitions --------------------------------------------------------------------------------------------------------------------


def test_partitions_keep_the_name_of_the_table_that_travels(node: Database) -> None:
    table = TableName("public", "t")
    node.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); "
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10); "
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id); "
        "CREATE TABLE t2a PARTITION OF t2 FOR VALUES FROM (10) TO (20)"
    )
    assert install(node) == "made"
    node.execute("CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (30)")
    assert install(node) in ("kept", "renewed")  # some servers make the triggers of a new partition fire for local writes only
    node.execute(
        "INSERT INTO t SELECT generate_series(1, 25); SET session_replication_role = replica; DELETE FROM t WHERE id = 1; "
        "DELETE FROM t2a WHERE id = 11; UPDATE t SET id = 12 + 3 * 5 WHERE id = 2; DELETE FROM t WHERE id = 21"
    )
    assert set(tombstones(node)) == {key_id(table, [k]) for k in ("1", "11", "2", "21")}
    node.execute("TRUNCATE t1")  # takes only some of the table's rows
    assert key_id(table, []) not in tombstones(node)
    node.execute("TRUNCATE t")
    assert key_id(table, []) in tombstones(node)
    with session(node) as connection:
        assert remove_unwanted(connection, []) == [table]
    assert (triggers(node), functions(node)) == ([], 0)


# -- merged columns ----------------------------------------------------------------------------------------------------------------

ONE = key_id(TableName("public", "t"), ["1"])


@pytest.fixture
def merging(node: Database) -> Database:
    generated = ", twice int GENERATED ALWAYS AS (n * 2) STORED" if node.server.version >= 120000 else ""
    node.execute(f"CREATE TABLE t (id int PRIMARY KEY, name text, place point, n int, m int{generated})")
    install(node, merged=["n", "m"])
    node.execute("INSERT INTO t VALUES (1, 'x', '(1,2)', 1, 1), (2, repeat('wide', 9999), NULL, 2, 2)")
    return node


def xmin(node: Database) -> str:
    ((xid,),) = node.query("SELECT xmin::text FROM t WHERE id = 1")
    return str(xid)


def version(node: Database, key: str = "1") -> str | None:
    rows = node.query("SELECT xid::text FROM streamer.version WHERE id = %s", [key_id(TableName("public", "t"), [key])])
    return str(rows[0][0]) if rows else None


def test_a_merge_keeps_the_version_that_the_row_had(merging: Database) -> None:
    before = xmin(merging)
    assert version(merging) is None
    for change in ("n = n + 1", "n = 5, m = 7", "name = name, place = place, n = 8"):
        merging.execute(f"UPDATE t SET {change} WHERE id = 1")
        assert version(merging) == before != xmin(merging)
    merging.execute("UPDATE t SET n = 3 WHERE id = 2")
    assert version(merging, "2") is not None


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE t SET name = 'y', n = 5 WHERE id = 1",
        "UPDATE t SET place = '(2,1)' WHERE id = 1",
        "UPDATE t SET name = NULL WHERE id = 1",
        "UPDATE t SET id = 3 WHERE id = 1",
        "DELETE FROM t WHERE id = 1",
        "SET session_replication_role = replica; DELETE FROM t WHERE id = 1",
        "TRUNCATE t; INSERT INTO t VALUES (1, 'x', NULL, 1, 1)",
        "TRUNCATE t; SET session_replication_role = replica; INSERT INTO t VALUES (1, 'x', NULL, 1, 1)",
        "TRUNCATE t; INSERT INTO t VALUES (7); UPDATE t SET id = 1",
    ],
)
def test_any_other_change_of_the_row_ends_that(merging: Database, change: str) -> None:
    merging.execute("UPDATE t SET n = 2 WHERE id = 1")
    assert version(merging) is not None
    merging.execute(change)
    assert version(merging) is None


def test_within_one_transaction_the_last_full_change_counts(merging: Database) -> None:
    before = xmin(merging)
    merging.execute("BEGIN; UPDATE t SET n = 2 WHERE id = 1; SAVEPOINT s; UPDATE t SET m = 2 WHERE id = 1; COMMIT")
    assert version(merging) == before
    merging.execute("BEGIN; UPDATE t SET name = 'z' WHERE id = 1; UPDATE t SET n = 4 WHERE id = 1; COMMIT")
    assert version(merging) == xmin(merging)


def test_a_column_that_is_added_counts_at_once(merging: Database) -> None:
    merging.execute("ALTER TABLE t ADD COLUMN later text DEFAULT 'd'; UPDATE t SET n = 2 WHERE id = 1")
    assert version(merging) is not None
    merging.execute("UPDATE t SET later = 'e' WHERE id = 1")
    assert version(merging) is None


def test_what_we_merge_ourselves_is_left_to_us(merging: Database) -> None:
    merging.execute("SET session_replication_role = replica; UPDATE t SET n = 2 WHERE id = 1")
    assert version(merging) is None
    merging.execute("UPDATE t SET n = 2 WHERE id = 1; SET session_replication_role = replica; UPDATE t SET name = 'y'")
    assert version(merging) is not None


# -- making them -------------------------------------------------------------------------------------------------------------------

PLAIN = ["zz_streamer_delete", "zz_streamer_key", "zz_streamer_truncate"]
MERGING = ["zz_streamer_delete", "zz_streamer_insert", "zz_streamer_key", "zz_streamer_truncate", "zz_streamer_version"]


def test_triggers_are_kept_renewed_and_removed_as_the_table_demands(node: Database) -> None:
    node.execute("CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL UNIQUE, n int); CREATE TABLE u (id int PRIMARY KEY)")
    assert [install(node), install(node), triggers(node)] == ["made", "kept", PLAIN]
    assert [install(node, merged=["n"]), install(node, merged=["n"]), triggers(node)] == ["renewed", "kept", MERGING]
    assert [install(node), triggers(node), functions(node)] == ["renewed", PLAIN, 1]
    node.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")  # the key is now the other column
    assert [install(node), install(node)] == ["renewed", "kept"]
    node.execute("INSERT INTO t VALUES (1, 2, 3); DELETE FROM t")
    assert list(tombstones(node).values()) == ['["2"]']
    node.execute("ALTER TABLE t DROP CONSTRAINT t_other_key")
    assert [install(node), triggers(node), functions(node)] == ["removed", [], 0]
    assert [install(node), install(node, "u")] == ["kept", "made"]
    with session(node) as connection:
        assert remove_unwanted(connection, [TableName("public", "u")]) == []
        assert remove_unwanted(connection, []) == [TableName("public", "u")]
    assert (triggers(node), functions(node)) == ([], 0)


@pytest.mark.parametrize("harm", ["DISABLE TRIGGER zz_streamer_key", "ENABLE TRIGGER zz_streamer_delete", "RENAME TO old"])
def test_triggers_that_do_not_fire_are_missing(node: Database, harm: str) -> None:
    node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    table = TableName("public", "t")
    with session(node) as connection:
        assert missing_triggers(connection, table)
        install(node)
        assert not missing_triggers(connection, table)
        assert missing_triggers(connection, table, merged=True)
        node.execute(f"ALTER TABLE t {harm}; CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
        assert missing_triggers(connection, table)
        install(node)
        assert not missing_triggers(connection, table)


def test_a_table_that_was_renamed_is_known_by_its_new_name(node: Database) -> None:
    node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    install(node)
    node.execute("ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (1)")
    assert install(node, "u") == "renewed"
    node.execute("DELETE FROM u")
    assert list(tombstones(node)) == [key_id(TableName("public", "u"), ["1"])]
    assert functions(node) == 1


def test_a_locked_table_is_not_waited_for_for_ever(node: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_triggers, "PATIENCE_SECONDS", 1)
    node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with node.connect() as other, other.transaction():
        other.execute("LOCK TABLE t IN SHARE MODE")
        with pytest.raises(TargetError, match=r"table .public\.t. could not be locked within 1 s"):
            install(node)


def test_commit_timestamps_are_demanded_with_the_remedy(node: Database) -> None:
    with session(node) as connection:
        require_commit_timestamps(connection, "a")
    server = node.server
    server.execute("ALTER SYSTEM SET track_commit_timestamp = off")
    try:
        server.restart()
        with session(node) as connection, pytest.raises(SchemaError, match="ALTER SYSTEM SET track_commit_timestamp = on"):
            require_commit_timestamps(connection, "a")
    finally:
        server.execute("ALTER SYSTEM RESET track_commit_timestamp")
        server.restart()
