"""What is installed on a source that captures by triggers keeps to what PostgreSQL 8.4 knows, in files and in rendered statements.

The list is that of the release notes, as far as it could be of use in such statements. For a real 8.4 there is STREAMER_OLD_PG.
https://www.postgresql.org/docs/release/
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from streamer import statements
from streamer.capture import delta_objects, triggers
from streamer.capture.catalog import SourceTable
from streamer.capture.triggers import Installed, Wanted
from streamer.model import ColumnDefinition, Identity, TableDefinition, TableName

OLDEST = 80422
NEWER = {
    "an anonymous block (9.0)": r"(^|;)\s*DO\s+(\$|'|LANGUAGE)",
    "a trigger of columns (9.0)": r"UPDATE\s+OF\b",
    "a condition of a trigger (9.0)": r"FOR\s+EACH\s+(ROW|STATEMENT)\s+WHEN\b",
    "a payload of NOTIFY (9.0)": r"NOTIFY\s+\w+\s*,|pg_notify",
    "string_agg (9.0)": r"\bstring_agg\b",
    "an aggregate with an order (9.0)": r"\b(array|xml)_?agg\([^)]*ORDER BY",
    "an exclusion constraint (9.0)": r"\bEXCLUDE\b",
    "a setting of 9.0": r"bytea_output|extra_float_digits\s*(=|TO)\s*'?3",
    "named arguments (9.0, 9.5)": r"\w+\s*=>|\(\s*\w+\s*:=",
    "a collation (9.1)": r"\bCOLLATE\b",
    "IF NOT EXISTS (9.1)": r"IF\s+NOT\s+EXISTS\s+\w",
    "an extension (9.1)": r"\bEXTENSION\b",
    "an unlogged table (9.1)": r"\bUNLOGGED\b",
    "a function of 9.1": r"\b(format|concat|concat_ws|left|right|reverse)\(",
    "FOREACH (9.1)": r"\bFOREACH\b",
    "JSON (9.2)": r"\bjsonb?\b|\b\w+_to_json\b",
    "an exported snapshot (9.2)": r"pg_export_snapshot|TRANSACTION\s+SNAPSHOT",
    "a range (9.2)": r"\b\w+range\b",
    "LATERAL (9.3)": r"\bLATERAL\b",
    "an event trigger (9.3)": r"EVENT\s+TRIGGER",
    "lock_timeout (9.3)": r"\block_timeout\b",
    "WITH ORDINALITY (9.4)": r"\bORDINALITY\b",
    "FILTER (9.4)": r"\)\s*FILTER\s*\(",
    "a function of 9.4": r"\bto_reg\w+\(",
    "a replica identity (9.4)": r"REPLICA\s+IDENTITY",
    "an empty list of results (9.4)": r"SELECT\s+(FROM|WHERE)\b",
    "ON CONFLICT (9.5)": r"ON\s+CONFLICT",
    "SKIP LOCKED (9.5)": r"SKIP\s+LOCKED",
    "commit times or origins (9.5)": r"pg_xact_commit_timestamp|pg_replication_origin",
    "current_setting of what may be missing (9.6)": r"current_setting\([^()]*,",
    "a function of 10": r"pg_sequence_last_value|txid_current_if_assigned|txid_status",
    "a transition table (10)": r"\bREFERENCING\b",
    "an identity column (10)": r"GENERATED\s+(ALWAYS|BY DEFAULT)",
    "partitions (10)": r"PARTITION\s+(BY|OF)",
    "EXECUTE FUNCTION (11)": r"EXECUTE\s+FUNCTION",
    "a procedure (11)": r"CREATE\s+(OR\s+REPLACE\s+)?PROCEDURE|\bCALL\b",
    "an included column (11)": r"\bINCLUDE\b",
    "the functions of 13": r"pg_current_xact_id|pg_current_snapshot|gen_random_uuid|\bxid8\b",
    "CREATE OR REPLACE TRIGGER (14)": r"OR\s+REPLACE\s+TRIGGER",
}
EXAMPLES = (
    "DO $$BEGIN END$$",
    "CREATE TRIGGER t AFTER UPDATE OF a ON b",
    "FOR EACH ROW WHEN (true)",
    "NOTIFY a, 'b'",
    "SELECT string_agg(a, ',')",
    "SELECT array_agg(a ORDER BY b)",
    "EXCLUDE USING gist",
    "SET extra_float_digits = '3'",
    "f(a := 1)",
    'a COLLATE "C"',
    "CREATE TABLE IF NOT EXISTS t",
    "CREATE EXTENSION x",
    "CREATE UNLOGGED TABLE t",
    "SELECT pg_catalog.format('%s', 1)",
    "FOREACH x IN ARRAY y",
    "x jsonb",
    "SELECT pg_export_snapshot()",
    "x int4range",
    "JOIN LATERAL f()",
    "CREATE EVENT TRIGGER e",
    "SET lock_timeout = 1",
    "WITH ORDINALITY",
    "count(*) FILTER (WHERE a)",
    "SELECT to_regclass('a')",
    "REPLICA IDENTITY FULL",
    "EXISTS (SELECT FROM t)",
    "ON CONFLICT DO NOTHING",
    "FOR UPDATE SKIP LOCKED",
    "pg_xact_commit_timestamp(xmin)",
    "current_setting('a', true)",
    "pg_sequence_last_value('a')",
    "REFERENCING NEW TABLE AS n",
    "GENERATED ALWAYS AS IDENTITY",
    "PARTITION BY RANGE (a)",
    "EXECUTE FUNCTION f()",
    "CALL p()",
    "INCLUDE (a)",
    "pg_current_xact_id()",
    "CREATE OR REPLACE TRIGGER t",
)
TYPES = (16, 17, 18, 20, 23, 25, 114, 142, 600, 700, 701, 790, 869, 1042, 1043, 1082, 1184, 1186, 1700, 2950, 99999)
"""Types of all kinds: those that can be compared as they are, that depend on settings, that have no equality, and unknown ones."""


def newer(sql: str) -> set[str]:
    """What a statement uses that came after 8.4."""
    without_comments = re.sub(r"--.*", "", sql)
    return {what for what, pattern in NEWER.items() if re.search(pattern, without_comments, re.IGNORECASE | re.MULTILINE)}


def tables() -> Iterator[Wanted]:
    """Tables with keys of every type, and with captured columns of every type."""
    columns = [
        ColumnDefinition(f"C{oid}", "t", oid, not_null=oid % 2 == 0, default=None, identity="", generated=False) for oid in TYPES
    ]
    for column in columns:
        key = replace(column, name="the key", not_null=True)
        definition = TableDefinition(TableName("public", f"t{column.type_oid}"), (key, *columns), (key.name,), ())
        table = SourceTable(definition, Identity.DEFAULT, (key.name,), (), 0)
        yield Wanted(table, (key.name,))
        yield Wanted(table, (key.name,), frozenset(c.name for c in columns), frozenset({column.name}))


def rendered(server: int) -> Iterator[str]:
    """All that is installed on a server of this version."""
    installed = Installed({}, frozenset(), server)
    yield from statements.parts(delta_objects.FILE).values()
    yield triggers.missing_functions(tables(), installed)
    yield from (triggers.making(wanted, installed) for wanted in tables())


def test_nothing_that_is_installed_is_newer_than_8_4() -> None:
    found = {what: sql for sql in rendered(OLDEST) for what in newer(sql)}
    assert found == {}


def test_nor_is_what_a_target_keeps() -> None:
    assert newer(statements.load("postgres/install.sql")) == set()


def test_all_parts_of_the_files_are_found() -> None:
    for file in (delta_objects.FILE, "postgres/delta.sql"):
        text = statements.load(file)
        whole = "\n".join(statements.parts(file).values())
        assert len(re.findall(r"^CREATE ", text, re.MULTILINE)) == len(re.findall(r"^CREATE ", whole, re.MULTILINE)) >= 7
    assert all("@" not in sql for sql in rendered(OLDEST))


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_list_notices(example: str) -> None:
    assert newer(example)


def test_every_entry_of_the_list_notices_something() -> None:
    assert {what for example in EXAMPLES for what in newer(example)} == set(NEWER)


def test_newer_servers_get_what_is_better_there() -> None:
    modern = "".join(rendered(180000))
    assert "pg_sequence_last_value" in modern
    assert "bytea_output" in modern


def test_whatever_is_called_or_compared_is_named_whole() -> None:
    """A search_path of the user's must not lead a function that has our rights to somebody else's."""
    for server in (OLDEST, 150000):
        bodies = re.findall(r"AS (\$\w*\$)\n(.*?)\1", "\n".join(rendered(server)), re.DOTALL)
        assert len(bodies) > 40
        for _, body in bodies:
            code = re.sub(r"--.*|'[^']*'|\"[^\"]*\"", "", body)
            assert not re.search(
                r"(?<![\w.])(?!VALUES|IF|ARRAY|ROW|OR|NOT|EXISTS|AND|OPERATOR|AS)\w+\s*\((?!relation|txid|sync)", code
            ), body
            assert not re.search(r"::(?!pg_catalog\.)", code), body
            bare = re.sub(r"OPERATOR\(pg_catalog\.[^)]*\)|::|:=|SET .*?(?=WHERE)", "", code, flags=re.DOTALL)
            assert not re.search(r"[=<>~!+*/]", bare), bare
