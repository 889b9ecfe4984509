"""The PostgreSQL sink and what a column or a constraint of the target may be: types that have no equality, domains, identities,
constraints that wait for the commit. Each case once by single statements, once in arrays, and once by COPY and a join.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import pytest

from streamer.errors import SchemaError
from streamer.model import LSN, Identity, Relation, TableName
from streamer.sinks import postgres_apply
from streamer.sinks.postgres import PostgresSink
from tests.changes import delete, group, insert, relation, table, truncate, update, write
from tests.integration.targets import EDGE, SLOT, PostgresTarget, opened
from tests.servers import Database

TYPES: Sequence[tuple[str, str, str]] = (
    ("jsonpath", '$."a"', '$."b"'),
    ("json[]", '{"{\\"a\\":1}"}', "{NULL}"),
    ("document", "[1]", "[2]"),
    ("pair", "(1,7)", "(1,8)"),
    ("refcursor", "a", "b"),
    ("box", "(1,1),(0,0)", "(2,2),(1,1)"),
    ("double precision[]", "{0.1}", "{0.2}"),
    ("regproc", "now", "sin"),
    ("character(3)", "a  ", "b  "),
    ("feeling", "sad", "glad"),
    ("int4range", "[1,3)", "[1,4)"),
)
"""Types, and two values of each; some have no equality, one that looks at a part of the value, or one for another type."""


@pytest.fixture(params=["few", "some", "many"])
def target(request: pytest.FixtureRequest, target15: Database, monkeypatch: pytest.MonkeyPatch) -> PostgresTarget:
    if request.param == "some":
        monkeypatch.setattr(postgres_apply, "ARRAY_ROWS", 1)
    elif request.param == "many":
        monkeypatch.setattr(postgres_apply, "FEW_ROWS", 0)
    target15.execute(
        "CREATE DOMAIN document AS json; CREATE TYPE pair AS (a integer, b json); "
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN feeling AS mood"
    )
    return PostgresTarget(target15)


def described(database: Database, identity: Identity = Identity.DEFAULT) -> Relation:
    """The relation of the table t, whose key is its first column."""
    query = "SELECT attname, atttypid::int FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum"
    columns = [(name, oid) for name, oid in database.query(query)]
    whole = identity is Identity.FULL
    made = table("t", **dict.fromkeys([name for name, _ in columns], "text"))
    like = relation(made, identity)
    return Relation(
        TableName("public", "t"),
        tuple(type(c)(name, oid, whole or i == 0) for i, (c, (name, oid)) in enumerate(zip(like.columns, columns, strict=True))),
        identity,
    )


@pytest.mark.parametrize("target", ["few"], indirect=True)
def test_a_row_without_a_key_is_found_whatever_its_types_are(target: PostgresTarget) -> None:
    target.database.execute(f"CREATE TABLE t ({', '.join(f'c{i} {kind}' for i, (kind, _, _) in enumerate(TYPES))})")
    r = described(target.database, Identity.FULL)
    one = tuple(value for _, value, _ in TYPES)
    # rows that differ from the first in one column each
    others = [(*one[:i], value, *one[i + 1 :]) for i, (_, _, value) in enumerate(TYPES)]
    with opened(target) as sink:
        write(sink, group(*(insert(r, *row) for row in (*others, one)), to=200))
        written = write(sink, group(*(delete(r, *row) for row in others[::2]), delete(r, *one), to=300))
        assert (written.deleted, written.missing) == (len(others[::2]) + 1, 0)
        assert write(sink, group(update(r, *one, old=others[1]), to=400)).updated == 1
    columns = ", ".join(f"c{i}::text" for i in range(len(TYPES)))
    found = sorted(target.database.query(f"SELECT {columns} FROM t"))
    assert found == sorted(tuple(value.rstrip() for value in row) for row in (one, *others[3::2]))


def test_a_domain_over_an_enum_is_a_key(target: PostgresTarget) -> None:
    target.database.execute("CREATE TABLE t (id feeling PRIMARY KEY, v text)")
    r = described(target.database)
    with opened(target) as sink:
        write(sink, group(insert(r, "sad", "a"), insert(r, "glad", "b"), to=200))
        write(sink, group(update(r, "sad", "c"), delete(r, "glad", None), to=300))
    assert target.database.query("SELECT id::text, v FROM t") == [("sad", "c")]


def test_a_changed_key_that_the_target_generates_always_is_an_error_with_a_remedy(target: PostgresTarget) -> None:
    target.database.execute("CREATE TABLE t (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)")
    r = described(target.database)
    move = group(update(r, "5", "b", old=("1", "a")), to=300)
    with opened(target) as sink:
        write(sink, group(insert(r, "1", "a"), to=200))
        with pytest.raises(SchemaError) as error:
            write(sink, move)
    assert error.value.hint is not None
    target.database.execute(error.value.hint.removeprefix("there: "))
    with opened(target) as sink:
        write(sink, move)
    assert target.database.query("SELECT * FROM t") == [(5, "b")]


def test_a_truncate_after_rows_whose_constraints_wait_for_the_commit_is_applied(target: PostgresTarget) -> None:
    database = target.database
    database.execute("CREATE TABLE parent (id integer PRIMARY KEY)")
    database.execute("CREATE TABLE t (id integer PRIMARY KEY, parent integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    database.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")  # for whom foreign keys hold
    database.execute("GRANT ALL ON SCHEMA streamer, public TO plain; GRANT ALL ON ALL TABLES IN SCHEMA streamer, public TO plain")
    database.execute(f"GRANT TEMPORARY ON DATABASE {database.name} TO plain")
    r, parent = described(database), relation(table("parent", id="integer"))
    sink = PostgresSink(EDGE, database.server.url(database.name, user="plain", password="plain"))
    with closing(sink):
        sink.open()
        sink.begin(SLOT, LSN(100))
        rows = [insert(r, "1", "7"), insert(parent, "7"), truncate(r), insert(r, "2", "8"), insert(parent, "8")]
        write(sink, group(*rows, to=200))
        rows = [delete(parent, "7"), insert(parent, "7"), truncate(r), truncate(parent), insert(r, "3", "9"), insert(parent, "9")]
        write(sink, group(*rows, to=300))
    assert database.query("SELECT * FROM t") == [(3, 9)]
    assert database.query("SELECT * FROM parent") == [(9,)]
