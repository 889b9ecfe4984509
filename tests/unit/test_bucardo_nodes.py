"""Databases of Bucardo's as nodes: urls, and where the passwords are."""

from __future__ import annotations

import pytest
from psycopg import conninfo

from streamer.bucardo import nodes
from streamer.bucardo.control import Database
from streamer.bucardo.notes import Notes
from tests.unit.controls import control, database


def drafted(*databases: Database, flatfile_dir: str = ".") -> tuple[dict[str, nodes.NodeDraft], Notes]:
    notes = Notes()
    return nodes.drafts(control(databases=databases, flatfile_dir=flatfile_dir), notes), notes


def url(one: Database) -> str:
    drafts, _ = drafted(one)
    assert drafts[one.name].left_out == ""
    return drafts[one.name].url


def connected(one: Database) -> dict[str, object]:
    """What libpq takes from the url."""
    return dict(conninfo.conninfo_to_dict(url(one)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "postgresql://bucardo@10.0.0.1/shop"),
        ({"port": "5433", "host": "db.example"}, "postgresql://bucardo@db.example:5433/shop"),
        ({"host": "::1", "port": "5433"}, "postgresql://bucardo@[::1]:5433/shop"),
        ({"host": "/run/pg", "port": "5433"}, "postgresql://bucardo@/shop?port=5433&host=%2Frun%2Fpg"),
        ({"host": "", "user": ""}, "postgresql:///shop"),
        ({"options": "sslmode=require;connect_timeout=3"}, "postgresql://bucardo@10.0.0.1/shop?sslmode=require&connect_timeout=3"),
        ({"host": "", "user": "", "dbname": "", "service": "shop"}, "postgresql:///?service=shop"),
        ({"passfile": "/etc/pass word"}, "postgresql://bucardo@10.0.0.1/shop?passfile=%2Fetc%2Fpass%20word"),
        ({"dsn": "dbi:Pg:db=x;host=h;port=1;user=u;sslmode=require"}, "postgresql://u@h:1/x?sslmode=require"),
        ({"user": "a@b", "dbname": "my/shop"}, "postgresql://a%40b@10.0.0.1/my%2Fshop"),
    ],
)
def test_a_url_says_what_bucardo_connects_with(values: dict[str, str], expected: str) -> None:
    one = database("a", **values)
    told = connected(one)
    assert told == dict(conninfo.conninfo_to_dict(expected))
    assert url(one).partition("?")[0] == expected.partition("?")[0]


@pytest.mark.parametrize(
    "values", [{"password": "s@cret"}, {"options": "password=s@cret"}, {"dsn": "dbi:Pg:dbname=x;password=s@cret"}]
)
def test_a_password_is_in_no_output_but_its_variable_is(values: dict[str, str]) -> None:
    one = database("Main", **values)
    drafts, notes = drafted(one)
    assert "${MAIN_PASSWORD}@" in drafts["Main"].url
    (variable,) = notes.variables
    assert (variable.name, variable.database, variable.encoded) == ("MAIN_PASSWORD", "Main", True)
    for told in (drafts["Main"].url, notes.as_text(), notes.as_json(), repr(one), repr(drafts)):
        assert "s@cret" not in told


def test_a_password_that_a_url_takes_as_it_is_need_not_be_encoded() -> None:
    _, notes = drafted(database("a", password="secret-1"))
    assert not notes.variables[0].encoded
    assert "encoded" not in notes.as_text()


def test_a_second_password_is_left_to_the_user() -> None:
    drafts, notes = drafted(database("a", password="one", options="sslpassword=s@cret"))
    assert drafts["a"].left_out.startswith("has a second password")
    assert "s@cret" not in notes.as_text() + drafts["a"].url


def test_other_engines_are_nodes_where_there_is_a_sink() -> None:
    assert url(database("m", kind="mysql", port="3307", password="x")) == "mysql://bucardo:${M_PASSWORD}@10.0.0.1:3307/shop"
    assert url(database("m", kind="mariadb")) == "mariadb://bucardo@10.0.0.1/shop"
    assert url(database("s", kind="sqlite", dbname="/var/lib/shop.db")) == "sqlite:////var/lib/shop.db"
    drafts, notes = drafted(
        database("f", kind="flatfile"), database("s", kind="sqlite", dbname="shop.db"), flatfile_dir="/srv/out/"
    )
    assert (drafts["f"].url, drafts["s"].url) == ("jsonl:////srv/out/f.jsonl", "sqlite:///shop.db")
    assert {note.object for note in notes.notes if note.kind == "different"} == {'db "f"', 'db "s"'}


@pytest.mark.parametrize("kind", ["mongo", "redis", "oracle", "drizzle", "firebird"])
def test_an_engine_without_a_sink_is_left_out(kind: str) -> None:
    drafts, _ = drafted(database("m", kind=kind))
    assert drafts["m"].left_out.startswith(f"is {kind}; ")


def test_a_dsn_that_is_not_understood_is_left_out_without_a_word_of_it() -> None:
    drafts, notes = drafted(database("a", dsn="dbi:Pg:s@cret"))
    assert drafts["a"].left_out == "has a DSN that is not NAME=VALUE;NAME=VALUE; write its url by hand"
    assert "s@cret" not in notes.as_text()


def test_names_become_allowed_ones_each_once() -> None:
    drafts, notes = drafted(*map(database, ["a", "A", "Ä_x", "_" * 3, "x" * 30, "x" * 31]))
    assert {name: draft.name for name, draft in drafts.items()} == {
        "A": "a",
        "___": "b___",
        "a": "a_2",
        "x" * 30: "x" * 25,
        "x" * 31: "x" * 23 + "_2",
        "Ä_x": "b__x",
    }
    assert len([note for note in notes.notes if "is node" in note.text]) == len(drafts)


def test_an_inactive_database_is_left_out_and_a_stalled_one_is_not() -> None:
    drafts, _ = drafted(database("a", status="inactive"), database("b", status="stalled"))
    assert drafts["a"].left_out
    assert drafts["a"].url
    assert not drafts["b"].left_out
