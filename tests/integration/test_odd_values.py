"""Databases whose settings change the text of values: both sides hold the same all the same, whatever captures."""

from __future__ import annotations

from datetime import date
from typing import Any, Final

import psycopg
import pytest

from streamer.verify.tables import equal
from tests.configs import make_config
from tests.conftest import Databases
from tests.integration.streams import running
from tests.integration.verifying import verified
from tests.servers import Database, PostgresServer

SETTINGS: Final = {
    0: (
        "DateStyle = 'SQL, DMY'", "IntervalStyle = sql_standard", "TimeZone = 'Asia/Kolkata'", "extra_float_digits = -15",
        "bytea_output = escape", "array_nulls = off", "xmloption = document", "quote_all_identifiers = on", "search_path = ''",
        "standard_conforming_strings = off", "default_transaction_isolation = serializable", "client_encoding = 'LATIN1'",
        "default_transaction_read_only = on", "statement_timeout = '50ms'", "lock_timeout = '10ms'", "row_security = off",
        "idle_in_transaction_session_timeout = '50ms'",
    ),
    140000: ("idle_session_timeout = '50ms'",),
    170000: ("transaction_timeout = '50ms'",),
}  # fmt: skip
"""By the version that they come with."""
PLAIN: Final = {
    "default_transaction_read_only": "off", "array_nulls": "on", "search_path": "public", "client_encoding": "UTF8",
    "xmloption": "content",
    "statement_timeout": "0", "idle_in_transaction_session_timeout": "0", "idle_session_timeout": "0", "transaction_timeout": "0",
}  # fmt: skip
"""What the application says for itself when it connects, as far as the server knows it."""
TABLES: Final = """
CREATE TABLE t (id int PRIMARY KEY, n int[], s text[], b bytea, f float8, r real, d date, z timestamptz, i interval, e text);
CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE high PARTITION OF parts FOR VALUES FROM (10) TO (100)
"""
ROWS: Final = r"""
INSERT INTO t SELECT g, '{{1,NULL}}', '{{a,NULL,"NULL"}}', decode('005cff', 'hex'), 0.1::float8 + 0.2, 'NaN', '2020-02-01',
    '2020-02-01 12:00+00', '1 year -2 days 03:04:05', E'it''s \\ é' FROM generate_series({0}, {0} + 4) g;
INSERT INTO parts SELECT g, 'x' FROM generate_series({0}, {0} + 4) g
"""


def make_odd(database: Database) -> None:
    for since, settings in SETTINGS.items():
        for setting in settings if database.server.version >= since else ():
            database.server.execute(f"ALTER DATABASE {database.name} SET {setting}")


def asked(database: Database, *statements: str) -> list[Any]:
    """What the last of these statements of an application gives."""
    known = {name for (name,) in database.server.query("SELECT name FROM pg_settings")}
    options = " ".join(f"-c {name}={value}" for name, value in PLAIN.items() if name in known)
    with psycopg.connect(database.url, options=options, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize(("capture", "newer"), [("pgoutput", True), ("wal2json", False), ("trigger", False)])
def test_settings_of_the_databases_change_no_value_and_end_no_session(
    databases: Databases, pg15: PostgresServer, pg18: PostgresServer, capture: str, newer: bool
) -> None:
    source, target = databases.create(pg15, "source"), databases.create(pg18 if newer else pg15, "target")
    source.execute(TABLES)
    if not newer:  # the other server knows no XML
        source.execute("CREATE TABLE docs (id int PRIMARY KEY, x xml); INSERT INTO docs VALUES (1, 'a<b/>'), (2, '')")
    make_odd(source)
    make_odd(target)
    asked(source, ROWS.format(1))
    config = make_config({"a": source.url, "b": target.url}, capture=capture)
    with running(config) as streams:
        assert equal(verified(config, streams))
        asked(source, ROWS.format(6), "UPDATE t SET e = e || '!'", "UPDATE parts SET id = id + 20 WHERE id = 10")
        if not newer:
            asked(source, "UPDATE docs SET x = 'c<d/>e'")
        found = verified(config, streams)
        assert equal(found), found
        assert streams.problems == []
    (values,) = asked(target, "SELECT DISTINCT f = 0.1::float8 + 0.2, s[2] IS NULL, s[3], get_byte(b, 1), d, e FROM public.t")
    assert values == (True, True, "NULL", 0x5C, date(2020, 2, 1), "it's \\ é!")


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json"])
def test_names_of_tables_as_values_are_found_on_the_target(
    databases: Databases, pg15: PostgresServer, pg18: PostgresServer, capture: str
) -> None:
    """The source left out the schema, as for somebody who has it in the search_path."""
    source, target = databases.create(pg15, "source"), databases.create(pg18, "target")
    for database in (source, target):
        database.execute('CREATE TABLE "Odd" (id int PRIMARY KEY)')
    source.execute("CREATE TABLE audit (id int PRIMARY KEY, of regclass, kept regtype[])")
    source.execute("""INSERT INTO audit VALUES (1, '"Odd"', '{integer,audit}')""")
    config = make_config({"a": source.url, "b": target.url}, capture=capture)
    with running(config) as streams:
        assert equal(verified(config, streams))
        source.execute("INSERT INTO audit VALUES (2, 'audit', NULL); UPDATE audit SET of = 'pg_class' WHERE id = 1")
        assert equal(verified(config, streams))
    assert target.query("SELECT of::text FROM public.audit ORDER BY id") == [("pg_class",), ("audit",)]
