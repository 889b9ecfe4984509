"""Values that a target's table, made by hand and too narrow, cannot hold: the error, what is written instead, and going on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from streamer import statements
from streamer.assembly import make_sink
from streamer.copytext import format_rows
from streamer.errors import ApplyError
from streamer.model import LSN, EdgeName, Identity, SlotIdentity
from streamer.ports import Sink, Start, Written
from tests.changes import copy_of, delete, group, insert, relation, table, update, write
from tests.configs import make_config
from tests.mysql_servers import MysqlDatabase

EDGE = EdgeName("shop", "a", "b")
SLOT = SlotIdentity("7123", "shop", "streamer_shop_a")
WIDE = table("wide", id="integer", name="text", n="numeric")
GOOD = ("1", "abc", "5")


class File:
    """An SQLite file with a STRICT table."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._path = path

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    def narrow(self, null: str) -> None:
        self.execute(f"CREATE TABLE wide (id INTEGER NOT NULL PRIMARY KEY, name TEXT, n INTEGER {null}) STRICT")

    def widen(self) -> None:
        self.execute("ALTER TABLE wide DROP COLUMN n")
        self.execute("ALTER TABLE wide ADD COLUMN n TEXT")

    def rows(self) -> list[tuple[Any, ...]]:
        return self.execute("SELECT * FROM wide ORDER BY id")


class Server:
    """A database of MariaDB."""

    def __init__(self, database: MysqlDatabase) -> None:
        self.url = database.url
        self._database = database
        for statement in statements.load("mysql/install.sql").split(";\n"):
            if statement.strip():
                database.execute(statement)

    def narrow(self, null: str) -> None:
        self._database.execute(f"CREATE TABLE wide (id INT NOT NULL PRIMARY KEY, name VARCHAR(5), n INT {null})")

    def widen(self) -> None:
        self._database.execute("ALTER TABLE wide MODIFY n DECIMAL(40,5)")

    def rows(self) -> list[tuple[Any, ...]]:
        return self._database.query("SELECT * FROM wide ORDER BY id")


@pytest.fixture(params=["sqlite", "mariadb"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> File | Server:
    if request.param == "sqlite":
        return File(tmp_path / "file")
    return Server(request.getfixturevalue("mariadb"))


def sink_of(target: File | Server, **settings: Any) -> Sink:  # noqa: ANN401  # keys of the sync
    """The sink that the daemon makes, open, with its progress begun."""
    config = make_config({"a": "postgresql://nowhere", "b": target.url}, **settings)
    sink = make_sink(config, EDGE)
    if sink.open() is None:
        sink.begin(SLOT, LSN(100))
    return sink


def test_the_error_names_all_and_the_edge_goes_on_once_the_column_is_wider(target: File | Server) -> None:
    target.narrow("")
    r = relation(WIDE)
    changes = group(insert(r, *GOOD), insert(r, "2", "x", "12345678901234567890"))
    sink = sink_of(target)
    with pytest.raises(ApplyError) as refused:
        write(sink, changes)
    sink.close()
    message = str(refused.value)
    for part in (
        'table "public.wide", column "n", row with',
        "= '2'",
        "'12345678901234567890' is not within",
        "on_unrepresentable",
    ):
        assert part in message
    assert "\n" not in message
    assert target.rows() == []
    target.widen()
    sink = sink_of(target)
    assert write(sink, changes) == Written(inserted=2)
    sink.close()
    assert [int(row[2]) for row in target.rows()] == [5, 12345678901234567890]


@pytest.mark.parametrize(("policy", "expected"), [("null", None), ("clamp", 1)])
def test_values_are_replaced_and_counted_however_they_come(target: File | Server, policy: str, expected: int | None) -> None:
    target.narrow("")
    nearest = {"sqlite": 2**63 - 1, "mysql": 2**31 - 1}[target.url.partition(":")[0]]
    greatest = nearest if expected else None
    sink = sink_of(target, on_unrepresentable=policy)
    huge = "9" * 25
    copied = [("1", "a", huge), ("2", "b", "7"), ("3", "c", huge)]
    assert sink.load(copy_of(WIDE), Start(LSN(150)), [format_rows(copied)]) == 3
    r, full = relation(WIDE), relation(WIDE, Identity.FULL)
    first = write(sink, group(*(insert(r, str(i), "x", huge) for i in range(10, 30))))
    assert first == Written(inserted=20, replaced=22), "those of the copy are counted with the first group"
    assert write(sink, group(update(r, "2", "y", huge), update(r, "10", "y", "1"), to=300)) == Written(updated=2, replaced=1)
    assert write(sink, group(update(full, "11", "z", huge, old=("11", "x", huge)), to=400)).replaced == 1
    assert write(sink, group(*(delete(r, str(i), None, None) for i in range(12, 30)), to=500)) == Written(deleted=18)
    sink.close()
    assert target.rows() == [(1, "a", greatest), (2, "y", greatest), (3, "c", greatest), (10, "y", 1), (11, "z", greatest)]


def test_a_group_that_is_replayed_counts_once(target: File | Server) -> None:
    target.narrow("")
    r = relation(WIDE)
    sink = sink_of(target, on_unrepresentable="clamp")
    write(sink, group(insert(r, *GOOD)))
    with pytest.raises(ApplyError):
        write(sink, group(insert(r, "2", "x", "9" * 25), insert(r, "2", "x", "9" * 25), to=300))
    sink.close()
    sink = sink_of(target, on_unrepresentable="clamp")
    assert write(sink, group(insert(r, "2", "x", "9" * 25), to=300)) == Written(inserted=1, replaced=1)
    sink.close()


@pytest.mark.parametrize("policy", ["null", "clamp"])
def test_a_key_and_a_column_that_is_not_null_are_never_made_null(target: File | Server, policy: str) -> None:
    target.narrow("NOT NULL")
    r = relation(WIDE)
    sink = sink_of(target, on_unrepresentable=policy)
    with pytest.raises(ApplyError, match=r'column "n".*NOT NULL|column "n".*nothing comes near'):
        write(sink, group(insert(r, "2", "x", "NaN")))
    sink.close()
    sink = sink_of(target, on_unrepresentable=policy)
    keyed = table("wide", id="numeric", name="text", n="numeric")
    with pytest.raises(ApplyError, match=r'column "id".*a key is never replaced'):
        write(sink, group(insert(relation(keyed), "1" * 30, "x", "1")))
    sink.close()


def test_what_holds_for_a_table_goes_by_its_name_on_the_source(target: File | Server) -> None:
    target.narrow("")
    sink = sink_of(target, table={"public.source": {"rename": "public.wide", "on_unrepresentable": "null"}})
    write(sink, group(insert(relation(WIDE), "1", "x", "NaN")))
    sink.close()
    assert target.rows() == [(1, "x", None)]
