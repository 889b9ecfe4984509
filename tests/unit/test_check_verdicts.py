"""The verdicts of `streamer check`, without a server: what is read goes in, findings come out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from streamer.admin.check_connection import MARKS, Probe, judge_probes
from streamer.admin.check_server import INSTEAD, Needs, Server, judge_server, library_names
from streamer.admin.check_tables import Capture, judge_source_table
from streamer.admin.check_target import Missing, TargetColumn, TargetTable, holds, judge_target_table
from streamer.admin.check_triggers import judge_array_keys
from streamer.admin.findings import Finding
from streamer.capture.catalog import SourceTable
from streamer.model import ColumnDefinition, Identity, TableDefinition, TableName

GOOD = Server(
    version=180000,
    role="plain",
    superuser=False,
    replication=True,
    database="shop",
    identity=("2026-01-01", "5"),
    in_recovery=False,
    settings={
        "wal_level": "logical",
        "max_replication_slots": "10",
        "max_wal_senders": "10",
        "max_active_replication_origins": "10",
    },
    slots=0,
    senders=0,
    origins=0,
    may_create=True,
    has_schema=False,
    outdated=False,
    may_use_schema=False,
    may_temp=True,
    may_be_replica=True,
    denied_functions=(),
)
NEEDS = Needs(
    source=True,
    target=True,
    new_slots=1,
    idle_streams=1,
    copies=True,
    new_origins=1,
    multi_master=False,
    plugins=frozenset({"pgoutput"}),
)


def told(findings: Iterable[Finding]) -> list[str]:
    """The findings that are not good, each as one line."""
    return [f"{f.severity}: {f.object}: {f.reason}; {f.remedy}" for f in findings if f.severity != "ok"]


def with_settings(**settings: str) -> Server:
    return replace(GOOD, settings=GOOD.settings | settings)


def test_servers_that_are_too_old_for_what_they_should_do_are_refused() -> None:
    target = replace(NEEDS, source=False)
    assert told(judge_server("a", replace(GOOD, version=80400), target)) == []
    (line,) = told(judge_server("a", replace(GOOD, version=90300), replace(target, multi_master=True)))
    assert line.startswith('error: node "a": PostgreSQL 9.3.0 can be a source among several, but not their target only')
    by_triggers = replace(NEEDS, multi_master=True, plugins=frozenset({"trigger"}))
    assert told(judge_server("a", replace(GOOD, version=80400), by_triggers)) == []
    (line,) = told(judge_server("a", replace(GOOD, version=80300), target))
    assert line == 'error: node "a": is older than 8.4, the first version that streamer works with; upgrade that server'


def test_a_good_server_is_good() -> None:
    assert told(judge_server("a", GOOD, NEEDS)) == []


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (
            with_settings(server_encoding="SQL_ASCII"),
            'warning: node "a": the database has the encoding SQL_ASCII: it takes any bytes, and a text that is not UTF-8 stops '
            "its stream; "
            "correct those that there are, found by: pg_dump --data-only shop | iconv -f UTF-8 -t UTF-8 > /dev/null",
        ),
        (
            with_settings(wal_level="replica"),
            'error: node "a": wal_level is replica, it must be logical '
            f"{INSTEAD}; ALTER SYSTEM SET wal_level = logical, then restart that server",
        ),
        (
            replace(GOOD, replication=False),
            f'error: node "a": role plain may not replicate {INSTEAD}; ALTER ROLE "plain" REPLICATION',
        ),
        (
            replace(GOOD, in_recovery=True),
            'error: node "a": is a standby, which can not be written to; name its primary in nodes.a.url',
        ),
        (
            replace(GOOD, has_schema=True),
            'error: node "a": role plain may not use the schema streamer; GRANT USAGE ON SCHEMA streamer TO "plain"; '
            'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA streamer TO "plain"; '
            'GRANT USAGE ON ALL SEQUENCES IN SCHEMA streamer TO "plain"',
        ),
        (
            replace(GOOD, slots=9),
            'error: node "a": 9 of 10 max_replication_slots are in use, 2 more are needed, one of them for the copy; '
            "ALTER SYSTEM SET max_replication_slots = 15, then restart that server",
        ),
        (
            replace(GOOD, senders=10),
            'error: node "a": 10 of 10 max_wal_senders are in use, 2 more are needed, one of them for the copy; '
            "ALTER SYSTEM SET max_wal_senders = 16, then restart that server",
        ),
        (
            replace(GOOD, may_temp=False),
            'error: node "a": role plain may not create temporary tables; GRANT TEMPORARY ON DATABASE "shop" TO "plain"',
        ),
        (
            replace(GOOD, may_be_replica=False),
            'warning: node "a": role plain may not set session_replication_role: triggers and foreign keys will fire for '
            'replicated rows; GRANT SET ON PARAMETER session_replication_role TO "plain"',
        ),
        (
            replace(GOOD, version=140000, may_be_replica=False),
            'warning: node "a": role plain may not set session_replication_role: triggers and foreign keys will fire for '
            "replicated rows; use a superuser as the role of this target",
        ),
        (
            replace(GOOD, denied_functions=("pg_replication_origin_create(text)",)),
            'warning: node "a": role plain may not use replication origins: rows will not carry the time of their original commit; '
            "GRANT EXECUTE ON FUNCTION pg_replication_origin_oid(text), pg_replication_origin_create(text), "
            "pg_replication_origin_drop(text), pg_replication_origin_session_setup(text), pg_replication_origin_session_reset(), "
            'pg_replication_origin_xact_setup(pg_lsn, timestamptz) TO "plain"',
        ),
        (
            replace(GOOD, origins=10),
            'warning: node "a": 10 replication origins of 10 (max_active_replication_origins) exist, 1 more are wanted: without '
            "one, rows will not carry the time of their original commit; "
            "ALTER SYSTEM SET max_active_replication_origins = 15, then restart that server",
        ),
        (
            replace(GOOD, version=100000),
            'warning: node "a": does not tell of TRUNCATE before version 11: what is truncated there stays on the targets; '
            "empty replicated tables with DELETE, or truncate them on the targets too",
        ),
        (
            replace(GOOD, has_schema=True, may_use_schema=True, outdated=True),
            'error: node "a": its schema streamer was made by an older version; run: streamer setup',
        ),
    ],
)
def test_what_a_server_lacks_is_told_with_the_remedy(server: Server, expected: str) -> None:
    assert told(judge_server("a", server, NEEDS)) == [expected]


def test_with_several_sources_the_loss_of_origins_costs_time() -> None:
    (line,) = told(judge_server("a", replace(GOOD, denied_functions=("f",)), replace(NEEDS, multi_master=True)))
    assert "where a row comes from is kept in a table beside it" in line


def test_a_role_that_may_create_nothing_is_told_of_schema_and_publication() -> None:
    grant = 'GRANT CREATE ON DATABASE "shop" TO "plain"'
    assert told(judge_server("a", replace(GOOD, may_create=False), NEEDS)) == [
        f'error: node "a": role plain may not create the schema streamer; {grant}',
        f'error: node "a": role plain may not create publications; {grant}',
    ]


def test_replica_is_enough_from_version_19_on() -> None:
    assert told(judge_server("a", replace(with_settings(wal_level="replica"), version=190000), NEEDS)) == []


def test_a_server_without_logical_decoding_needs_triggers() -> None:
    (line,) = told(judge_server("a", replace(GOOD, version=90324), replace(NEEDS, target=False)))
    assert line == 'error: node "a": PostgreSQL 9.3.24 has no logical decoding; set its capture to "trigger"'


def test_a_server_with_triggers_needs_nothing_of_what_slots_need() -> None:
    server = replace(with_settings(wal_level="minimal", max_replication_slots="0"), superuser=False, replication=False)
    needs = replace(NEEDS, target=False, plugins=frozenset({"trigger"}))
    assert told(judge_server("a", server, needs)) == []
    assert told(judge_server("a", replace(server, version=90324), needs)) == []


def test_a_server_that_refuses_wal2json_is_told_before_a_slot_is_tried() -> None:
    server = with_settings(output_plugin_libraries="pgoutput, test_decoding")
    assert told(judge_server("a", server, NEEDS)) == []
    (line,) = told(judge_server("a", server, replace(NEEDS, plugins=frozenset({"wal2json"}))))
    assert "refuses the plugin wal2json (output_plugin_libraries = pgoutput, test_decoding)" in line
    assert "ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; SELECT pg_reload_conf()" in line


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("pgoutput, test_decoding, wal2json", {"pgoutput", "test_decoding", "wal2json"}),
        ('"pgoutput, test_decoding, wal2json"', {"pgoutput, test_decoding, wal2json"}),
        ('pgoutput,"wal2json"', {"pgoutput", "wal2json"}),
        ("", set()),
    ],
)
def test_a_quoted_list_of_libraries_is_a_single_name(setting: str, names: set[str]) -> None:
    assert library_names(setting) == names


DIRECT = Probe(announced_pid=1, pid=1, started="now", remembered=MARKS[0])
OTHER = Probe(announced_pid=2, pid=2, started="now", remembered=MARKS[1])


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (DIRECT, replace(OTHER, started="then"), "two connections reached two different servers"),
        (replace(DIRECT, announced_pid=77), OTHER, "a connection pooler is between"),
        (DIRECT, replace(OTHER, announced_pid=1, pid=1), "a connection pooler is between"),
        (replace(DIRECT, remembered=MARKS[1]), OTHER, "a connection pooler is between"),
    ],
)
def test_a_pooler_or_balancer_is_noticed(one: Probe, other: Probe, reason: str) -> None:
    (line,) = told(judge_probes("a", one, other))
    assert line.startswith(f'error: node "a": {reason}')
    assert line.endswith("name the server itself in nodes.a.url, not a pooler or load balancer")


def test_a_direct_connection_is_no_pooler() -> None:
    assert told(judge_probes("a", DIRECT, OTHER)) == []


# -- tables ----------------------------------------------------------------------------------------------------------------------


def column(name: str, type_name: str = "integer", type_oid: int = 23, *, generated: bool = False) -> ColumnDefinition:
    return ColumnDefinition(name, type_name, type_oid, not_null=False, default=None, identity="", generated=generated)


def table(identity: Identity = Identity.DEFAULT, *columns: ColumnDefinition, partitioned: bool = False) -> SourceTable:
    columns = columns or (column("id"), column("v"))
    key = {Identity.FULL: tuple(c.name for c in columns), Identity.NOTHING: ()}.get(identity, ("id",))
    primary = ("id",) if identity is Identity.DEFAULT else ()
    return SourceTable(TableDefinition(TableName("public", "t"), columns, primary), identity, key, (), 5, partitioned)


PGOUTPUT = Capture("a", 150000, "pgoutput", loses_nan=False)


def test_a_partitioned_table_is_a_warning_and_before_version_13_two() -> None:
    old = replace(PGOUTPUT, version=120000)
    assert len(told(judge_source_table(old, table(partitioned=True)))) == 2
    (rows_stay,) = told(judge_source_table(replace(old, plugin="wal2json"), table(partitioned=True)))
    assert "of one of its partitions is not replicated" in rows_stay
    assert told(judge_source_table(PGOUTPUT, table(partitioned=True))) == [rows_stay]


def test_keys_with_arrays_are_refused_where_the_server_does_not_find_rows_by_them() -> None:
    arrays = table(Identity.DEFAULT, column("id", "integer[]", 1007), column("v"))
    (refused,) = told(judge_array_keys("a", 90024, [arrays, table()]))
    assert refused.startswith('error: table "public.t" on "a": its key has an array (id), by which a server before 9.1')
    assert 'ALTER TABLE "public"."t" ADD PRIMARY KEY (…) over other columns' in refused
    assert told(judge_array_keys("a", 90100, [arrays])) == []


def test_numbers_that_old_wal2json_loses_need_a_key() -> None:
    capture = Capture("a", 150000, "wal2json", loses_nan=True)
    number = column("n", "numeric", 1700)
    (keyed,) = told(judge_source_table(capture, table(Identity.DEFAULT, column("id"), number)))
    assert keyed.startswith("warning: ")
    assert "NULL in n is read again" in keyed
    (keyless,) = told(judge_source_table(capture, table(Identity.FULL, column("id"), number)))
    assert keyless.startswith("error: ")
    assert told(judge_source_table(replace(capture, loses_nan=False), table(Identity.FULL, number))) == []
    assert told(judge_source_table(capture, table())) == []


GOOD_TARGET = TargetTable(
    columns={"id": TargetColumn("integer", required=True), "v": TargetColumn("integer", required=False)},
    keys=(("id",),),
    role="plain",
    denied=(),
    schema_denied=False,
    reads_hex=True,
)
ON = 'table "public.t" on "b"'


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Missing("plain", ""), f"warning: {ON}: does not exist; streamer setup creates it"),
        (
            Missing("plain", 'USAGE, CREATE ON SCHEMA "public"'),
            f'error: {ON}: does not exist, and role plain may not create it; GRANT USAGE, CREATE ON SCHEMA "public" TO "plain"',
        ),
        (
            replace(GOOD_TARGET, denied=("INSERT", "TRUNCATE")),
            f'error: {ON}: role plain lacks INSERT, TRUNCATE; GRANT INSERT, TRUNCATE ON "public"."t" TO "plain"',
        ),
        (
            replace(GOOD_TARGET, schema_denied=True),
            f'error: {ON}: role plain may not use its schema; GRANT USAGE ON SCHEMA "public" TO "plain"',
        ),
        (
            replace(GOOD_TARGET, columns={"id": TargetColumn("integer", required=True)}),
            f'error: {ON}: has no column "v"; ALTER TABLE "public"."t" ADD COLUMN "v" integer',
        ),
        (
            replace(GOOD_TARGET, columns=GOOD_TARGET.columns | {"v": TargetColumn("text", required=False)}),
            f'warning: {ON}: column "v" is text, on the source integer; '
            'ALTER TABLE "public"."t" ALTER COLUMN "v" TYPE integer, if values are refused',
        ),
        (
            replace(GOOD_TARGET, columns=GOOD_TARGET.columns | {"more": TargetColumn("text", required=True)}),
            f'error: {ON}: column "more" is NOT NULL without a default, and the source does not have it; '
            'ALTER TABLE "public"."t" ALTER COLUMN "more" DROP NOT NULL, or SET DEFAULT …',
        ),
        (
            replace(GOOD_TARGET, keys=(("v",),)),
            f"warning: {ON}: no unique index covers its key (id): every update and delete reads the whole table; "
            'CREATE UNIQUE INDEX ON "public"."t" ("id"), its columns NOT NULL',
        ),
    ],
)
def test_what_a_target_lacks_is_told_with_the_remedy(target: TargetTable | Missing, expected: str) -> None:
    assert told(judge_target_table("b", table(), target)) == [expected]


def test_a_server_before_9_0_takes_no_bytea() -> None:
    source = table(Identity.DEFAULT, column("id"), column("v", "bytea", 17))
    there = replace(GOOD_TARGET, columns=GOOD_TARGET.columns | {"v": TargetColumn("bytea", required=False)})
    assert told(judge_target_table("b", source, there)) == []
    (line,) = told(judge_target_table("b", source, replace(there, reads_hex=False)))
    assert line.startswith(f'error: {ON}: column "v" is bytea, which no version before 9.0 reads in hex')


@pytest.mark.parametrize(
    ("there", "source", "holds_it"),
    [
        ("bigint", "integer", True),
        ("integer", "bigint", False),
        ("numeric", "bigint", True),
        ("numeric(12,2)", "numeric(10,2)", True),
        ("numeric(12,4)", "numeric(10,2)", True),
        ("numeric(12,4)", "numeric(12,2)", False),
        ("numeric(12,2)", "numeric", False),
        ("numeric", "numeric(12,2)", True),
        ("text", "character varying(20)", True),
        ("character varying(20)", "character varying(10)", True),
        ("character varying(10)", "character varying", False),
        ("double precision", "real", True),
        ("real", "double precision", False),
        ("text", "integer", False),
        ("public.mood", "public.mood", True),
    ],
)
def test_a_wider_type_of_the_same_kind_holds_every_value(there: str, source: str, *, holds_it: bool) -> None:
    assert holds(there, source) is holds_it


def test_a_good_target_is_good() -> None:
    assert told(judge_target_table("b", table(), GOOD_TARGET)) == []
    extra = replace(GOOD_TARGET, columns=GOOD_TARGET.columns | {"more": TargetColumn("text", required=False)})
    assert told(judge_target_table("b", table(), extra)) == []


def test_a_generated_column_may_be_missing_on_the_target() -> None:
    source = table(Identity.DEFAULT, column("id"), column("v"), column("g", generated=True))
    assert told(judge_target_table("b", source, GOOD_TARGET)) == []


def test_a_table_with_full_identity_and_no_key_is_slow() -> None:
    (line,) = told(judge_target_table("b", table(Identity.FULL), replace(GOOD_TARGET, keys=())))
    assert line.startswith(f"warning: {ON}: has no key: every update and delete compares all columns of all rows; ")
