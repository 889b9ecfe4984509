"""Rows of several sources that are awkward: unique values that collide, keys that change, references, TRUNCATE, TOASTed values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.mesh import MARKS, Mesh
from tests.servers import Database, Row

NULLS_NOT_DISTINCT = 150000
UNIQUE = "CREATE TABLE t (id integer PRIMARY KEY, u integer UNIQUE, v integer)"
ALL = "SELECT * FROM t ORDER BY id"
START: list[Row] = [(1, 1, 0), (2, 2, 0), (3, 3, 0)]


@pytest.fixture
def mesh(tmp_path: Path, a: Database, b: Database, c: Database) -> Iterator[Mesh]:
    """Three sources, their tables not made yet."""
    with Mesh(tmp_path, {"a": a, "b": b, "c": c}, {"shop": {"sources": ["a", "b", "c"]}}) as mesh:
        mesh.on_all(MARKS)
        yield mesh
        assert not mesh.problems()
        assert mesh.stop() == 0


def begin(mesh: Mesh, ddl: str) -> None:
    mesh.on_all(ddl)
    mesh.command("setup", "--fix")
    mesh.start_streaming()


# -- stories -----------------------------------------------------------------------------------------------------------------------

#: what the nodes do, in the order of time, none of them hearing of the others, and what is there at the end (if it is told)
STORIES: dict[str, tuple[list[tuple[str, str]], list[Row] | None]] = {
    "one unique value, three rows": (
        [("a", "INSERT 11, 70, 1"), ("b", "INSERT 12, 70, 2"), ("c", "INSERT 13, 70, 3")],
        [*START, (13, 70, 3)],
    ),
    "unique values that wander": (
        [
            ("a", "UPDATE u = NULL WHERE id = 1; UPDATE u = 1 WHERE id = 2"),
            ("b", "UPDATE u = 20 WHERE id = 2; UPDATE u = 2 WHERE id = 3"),
            ("c", "DELETE id = 3; INSERT 14, 3, 4"),
        ],
        None,
    ),
    "a unique value that two rows swap": (
        [
            ("a", "UPDATE u = NULL WHERE id = 1; UPDATE u = 1 WHERE id = 2; UPDATE u = 2 WHERE id = 1"),
            ("b", "UPDATE v = 5 WHERE id = 1"),
        ],
        None,
    ),
    "one key, two new ones": (
        [("a", "UPDATE id = 11 WHERE id = 1"), ("b", "UPDATE id = 12 WHERE id = 1")],
        None,
    ),
    "a key that changes, and an update": (
        [("a", "UPDATE id = 13 WHERE id = 2"), ("b", "UPDATE v = 5 WHERE id = 2")],
        None,
    ),
    "a key that changes, and a delete": (
        [("a", "UPDATE id = 14 WHERE id = 3"), ("c", "DELETE id = 3")],
        None,
    ),
    "a key that changes to one that another makes": (
        [("c", "INSERT 15, 15, 9"), ("b", "UPDATE id = 15 WHERE id = 2")],
        [(1, 1, 0), (3, 3, 0), (15, 2, 0)],
    ),
    "a key that changes, and its unique value taken": (
        [("a", "DELETE id = 2; INSERT 12, 2, 1"), ("b", "UPDATE id = 13 WHERE id = 2")],
        None,
    ),
    "deleted and made again": (
        [("a", "DELETE id = 1; INSERT 1, 1, 1"), ("b", "UPDATE v = 2 WHERE id = 1")],
        [(1, 1, 2), (2, 2, 0), (3, 3, 0)],
    ),
    "deleted twice and made again": (
        [("b", "DELETE id = 2"), ("c", "DELETE id = 2"), ("c", "INSERT 2, 2, 3")],
        [(1, 1, 0), (2, 2, 3), (3, 3, 0)],
    ),
    "deleted everywhere": (
        [("a", "DELETE id = 3"), ("b", "DELETE id = 3"), ("c", "DELETE id = 3")],
        [(1, 1, 0), (2, 2, 0)],
    ),
}


def in_sql(story: str, table: str) -> str:
    """The statements of a story, written out."""
    forms = {
        "INSERT": f"INSERT INTO {table} VALUES ({{}})",
        "UPDATE": f"UPDATE {table} SET {{}}",
        "DELETE": f"DELETE FROM {table} WHERE {{}}",
    }
    parts = (part.partition(" ") for part in story.split("; "))
    return "; ".join(forms[verb].format(rest) for verb, _, rest in parts)


def test_whatever_the_nodes_do_to_the_same_rows_they_agree(mesh: Mesh, a: Database) -> None:
    tables = {f"t{i}": story for i, story in enumerate(STORIES)}
    begin(mesh, "; ".join(UNIQUE.replace(" t ", f" {table} ") for table in tables))
    for table in tables:
        a.execute(f"INSERT INTO {table} SELECT i, i, 0 FROM generate_series(1, 3) i")
    with mesh.apart():
        for table, story in tables.items():
            for node, statements in STORIES[story][0]:
                mesh.databases[node].execute(in_sql(statements, table))
    for table, story in tables.items():
        try:
            found = mesh.wait_until_equal(f"SELECT * FROM {table} ORDER BY id")
        except AssertionError as error:
            raise AssertionError(f"{story}: {error}") from None
        assert STORIES[story][1] in (None, found), story


#: columns, an index, and what two nodes insert that is equal by the type though not as text
EQUAL = {
    "citext": ("u citext UNIQUE", "", "'Ann'", "'ann'"),
    "a partial index on citext": ("u citext", "CREATE UNIQUE INDEX ON {} (u) WHERE v >= 0", "'Ann'", "'ann'"),
    "numeric": ("u numeric UNIQUE", "", "1.0", "1.00"),
    "ranges": ("u numrange UNIQUE", "", "'[1,2)'", "'[1.0,2.0)'"),
    "jsonb": ("u jsonb UNIQUE", "", """'{"a": 1}'""", """'{"a": 1.0}'"""),
    "nulls": ("u integer UNIQUE NULLS NOT DISTINCT", "", "NULL", "NULL"),
    "a partial index of nulls": ("u integer", "CREATE UNIQUE INDEX ON {} (u) NULLS NOT DISTINCT WHERE v >= 0", "NULL", "NULL"),
}


def test_unique_values_that_are_equal_but_not_as_text_collide(mesh: Mesh) -> None:
    """Formerly the server refused the row, and the edge stood still."""
    with_nulls = min(node.server.version for node in mesh.databases.values()) >= NULLS_NOT_DISTINCT
    stories = [story for name, story in EQUAL.items() if with_nulls or "null" not in name]
    ddl = [
        f"CREATE TABLE t{i} (id integer PRIMARY KEY, {columns}, v integer); {index.format(f't{i}')}"
        for i, (columns, index, _, _) in enumerate(stories)
    ]
    begin(mesh, "; ".join(["CREATE EXTENSION citext", *ddl]))
    queries = [f"SELECT id, u::text, v FROM t{i} ORDER BY id" for i in range(len(stories))]
    with mesh.apart(*queries):
        for i, (_, _, one, other) in enumerate(stories):
            mesh.databases["a"].execute(f"INSERT INTO t{i} VALUES (1, {one}, 1)")
            mesh.databases["b"].execute(f"INSERT INTO t{i} VALUES (2, {other}, 2)")
    for story, query in zip(stories, queries, strict=True):
        assert [row[0] for row in mesh.databases["c"].query(query)] == [2], story


# -- tables ------------------------------------------------------------------------------------------------------------------------


def test_rows_and_what_they_refer_to_go_together(mesh: Mesh, a: Database, b: Database, c: Database) -> None:
    begin(
        mesh,
        "CREATE TABLE customer (id integer PRIMARY KEY, v integer);"
        "CREATE TABLE t (id integer PRIMARY KEY, customer integer REFERENCES customer ON DELETE CASCADE)",
    )
    for i, node in enumerate((a, b, c), 1):
        node.execute(f"INSERT INTO customer VALUES ({i}, 0); INSERT INTO t SELECT {i} * 10 + n, {i} FROM generate_series(1, 3) n")
    mesh.wait_until_quiet([ALL, "SELECT * FROM customer ORDER BY id"])
    b.execute("DELETE FROM customer WHERE id = 1")
    mesh.wait_until_quiet([ALL, "SELECT * FROM customer ORDER BY id"])
    assert c.query("SELECT count(*), min(customer) FROM t") == [(6, 2)]


def test_truncate_removes_what_was_there_before_it(mesh: Mesh, a: Database, b: Database, c: Database) -> None:
    begin(mesh, UNIQUE)
    a.execute("INSERT INTO t SELECT i, i, 0 FROM generate_series(1, 5) i")
    with mesh.apart(ALL):
        b.execute("UPDATE t SET v = 1 WHERE id = 1")
        a.execute("TRUNCATE t")
        c.execute("INSERT INTO t VALUES (9, 9, 9)")
    assert a.query(ALL) == [(9, 9, 9)]


def test_generated_keys_of_several_sources_are_kept_apart_by_their_sequences(mesh: Mesh, a: Database, b: Database) -> None:
    begin(mesh, "CREATE TABLE t (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v integer)")
    for start, node in enumerate(mesh.databases.values(), 1):
        node.execute(f"ALTER SEQUENCE t_id_seq INCREMENT BY 3 RESTART WITH {start}")
    with mesh.apart(ALL):
        for node in mesh.databases.values():
            node.execute("INSERT INTO t (v) SELECT 0 FROM generate_series(1, 5)")
    assert [row[0] for row in a.query(ALL)] == list(range(1, 16))
    assert mesh.conflicts() == []


# -- TOAST -------------------------------------------------------------------------------------------------------------------------

WIDE = "CREATE TABLE t (id integer PRIMARY KEY, v integer, w text)"
RANDOM = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200))"  # out of line
SUMMED = "SELECT id, v, md5(w) FROM t ORDER BY id"


def test_values_out_of_line_survive_a_conflict_once_the_identity_is_full(mesh: Mesh, a: Database, b: Database) -> None:
    mesh.on_all(WIDE)
    findings = mesh.command("check", succeeds=False)
    assert findings.returncode == 1
    assert "REPLICA IDENTITY FULL" in findings.stdout
    mesh.command("setup", "--fix")
    assert a.query("SELECT relreplident::text FROM pg_class WHERE oid = 't'::regclass") == [("f",)]
    mesh.start_streaming()
    a.execute(f"INSERT INTO t VALUES (1, 0, {RANDOM})")
    with mesh.apart(SUMMED):
        a.execute(f"UPDATE t SET w = {RANDOM}")
        b.execute("UPDATE t SET v = 1")  # wins, and leaves w as it was


def test_without_the_whole_old_row_a_value_out_of_line_is_different_on_each_node(mesh: Mesh, a: Database, b: Database) -> None:
    """Why `check` refuses such tables: the winning update does not carry what it left unchanged."""
    begin(mesh, WIDE)
    mesh.on_all("ALTER TABLE t REPLICA IDENTITY DEFAULT")
    a.execute(f"INSERT INTO t VALUES (1, 0, {RANDOM})")
    with mesh.apart():
        a.execute(f"UPDATE t SET w = {RANDOM}")
        b.execute("UPDATE t SET v = 1")
    (at_a,), (at_b,) = a.query(SUMMED), b.query(SUMMED)
    assert at_a[1] == at_b[1] == 1
    assert at_a[2] != at_b[2]
    mesh.on_all("ALTER TABLE t REPLICA IDENTITY FULL")
    b.execute(f"UPDATE t SET w = {RANDOM}")
    mesh.wait_until_quiet([SUMMED])
