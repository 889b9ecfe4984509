"""`streamer conflicts` on real servers: found on every node, filtered, and shown so that a person can judge them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from streamer import statements
from streamer.admin.conflicts import Filter, find, get, make_filter
from streamer.cli import app
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.model import TableName
from tests.configs import document, make_config, write_config
from tests.servers import Database

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
COLUMNS = (
    "resolved, sync, source, target, schema_name, table_name, key, kind, change, current_row, current_origin, current_commit, "
    "incoming_row, incoming_origin, incoming_commit, incoming_position, winner, rule, error"
)
USUAL: dict[str, Any] = {
    "resolved": NOON,
    "sync": "shop",
    "source": "b",
    "target": "a",
    "schema_name": "public",
    "table_name": "accounts",
    "key": {"id": "5"},
    "kind": "update_origin_differs",
    "change": "update",
    "current_row": {"id": "5", "name": "Anna", "note": None, "balance": "100"},
    "current_origin": "a",
    "current_commit": NOON - timedelta(seconds=2),
    "incoming_row": {"id": "5", "name": "Anne", "note": "moved\nto \x1b[31m[b]Ulm[/b]", "balance": "100"},
    "incoming_origin": "b",
    "incoming_commit": NOON - timedelta(seconds=1),
    "incoming_position": "0/16B3748",
    "winner": "incoming",
    "rule": "latest",
    "error": None,
}


def add(node: Database, **values: object) -> None:
    row = USUAL | values
    told = [orjson.dumps(v).decode() if isinstance(v, dict) else v for v in (row[c] for c in COLUMNS.split(", "))]
    node.execute(f"INSERT INTO streamer.conflict ({COLUMNS}) VALUES ({', '.join(['%s'] * len(told))})", told)


@pytest.fixture
def masters(source15: Database, target18: Database) -> tuple[Config, Database, Database]:
    for node in (source15, target18):
        node.execute(statements.load("postgres/install.sql"))
    return make_config({"a": source15.url, "b": target18.url}, sources=["a", "b"], targets=[]), source15, target18


def ids(config: Config, wanted: Filter | None = None) -> list[str]:
    found = find(config, wanted or Filter())
    assert found.problems == []
    return [conflict.id for conflict in found.conflicts]


def test_conflicts_of_all_nodes_are_found_the_newest_first_and_by_each_filter(masters: tuple[Config, Database, Database]) -> None:
    config, a, b = masters
    add(a)
    add(a, resolved=NOON + timedelta(hours=2), kind="update_deleted", table_name="t")
    add(b, resolved=NOON + timedelta(hours=1), sync="other", schema_name="Odd.s")
    assert ids(config) == ["a:2", "b:1", "a:1"]
    assert ids(config, Filter(sync="shop")) == ["a:2", "a:1"]
    assert ids(config, Filter(node="b")) == ["b:1"]
    assert ids(config, Filter(table=TableName("public", "t"))) == ["a:2"]
    assert ids(config, Filter(kind="update_deleted")) == ["a:2"]
    assert ids(config, Filter(since=NOON + timedelta(minutes=30))) == ["a:2", "b:1"]
    assert ids(config, Filter(limit=2)) == ["a:2", "b:1"]
    assert [find(config, Filter(limit=n)).more for n in (2, 3)] == [True, False]
    assert get(config, "b:1").table == "Odd.s.accounts"


def test_a_node_that_is_away_or_not_set_up_is_told_and_the_others_are_shown(masters: tuple[Config, Database, Database]) -> None:
    _, a, b = masters
    add(a)
    nodes = {"a": a.url, "b": b.url, "c": "postgresql://postgres@127.0.0.1:1/x"}
    b.execute("DROP TABLE streamer.conflict")
    found = find(make_config(nodes, sources=["a", "b"], targets=["c"]), Filter())
    assert [conflict.id for conflict in found.conflicts] == ["a:1"]
    assert str(found.problems[0]) == 'node "b" is not set up to keep conflicts; run: streamer setup'
    assert "Connection refused" in str(found.problems[1])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a:9", 'node "a" has no conflict 9; old ones are removed after conflict_days'),
        ("a", '"a" is not the id of a conflict'),
        ("a:-1", '"a:-1" is not the id of a conflict'),
        ("z:1", 'node "z" resolves no conflicts; they are resolved on a, b'),
    ],
)
def test_an_id_that_means_nothing_is_refused(masters: tuple[Config, Database, Database], name: str, told: str) -> None:
    with pytest.raises(StreamerError, match=told):
        get(masters[0], name)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({"kind": "upsert"}, 'there is no kind of conflict "upsert"; the kinds are insert_exists, '),
        ({"since": "yesterday"}, '"yesterday" is not a time; write for example --since 2h'),
        ({"since": "99999999999999w"}, "is not a time"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(typed: dict[str, str], told: str) -> None:
    nothing: dict[str, Any] = {"sync": None, "node": None, "table": None, "kind": None, "since": None, "limit": 1}
    with pytest.raises(UsageError, match=told):
        make_filter(**nothing | typed)


def test_without_several_sources_there_are_no_conflicts(source15: Database, target18: Database) -> None:
    config = make_config({"a": source15.url, "b": target18.url})
    with pytest.raises(UsageError, match="no sync has several sources, so there are no conflicts"):
        find(config, Filter())
    with pytest.raises(UsageError, match='sync "shop" has not several sources'):
        find(config, Filter(sync="shop"))
    with pytest.raises(UsageError, match='the config has no sync "none"'):
        find(config, Filter(sync="none"))


# -- what is printed ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config_file(masters: tuple[Config, Database, Database], tmp_path: Path) -> Path:
    _, a, b = masters
    return write_config(tmp_path / "streamer.toml", document({"a": a.url, "b": b.url}, sources=["a", "b"], targets=[]))


def run(config_file: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(app, ["conflicts", *arguments, "--config", str(config_file)])
    assert result.exit_code == 0, result.output
    return result


def test_the_list_is_one_line_a_conflict(masters: tuple[Config, Database, Database], config_file: Path) -> None:
    _, a, b = masters
    assert run(config_file, "list").output == "no conflicts\n"
    add(a)
    add(b, resolved=NOON + timedelta(hours=1), winner=None, rule="error", key={"a": "1", "b": "x" * 40})
    assert run(config_file, "list", "--limit", "2", "--table", "accounts").output.splitlines() == [
        "time (UTC)           id   table     key                             kind                   winner    rule",
        "2026-01-02 13:00:00  b:1  accounts  a=1, b=xxxxxxxxxxxxxxxxxxxxxx…  update_origin_differs  none      error",
        "2026-01-02 12:00:00  a:1  accounts  id=5                            update_origin_differs  incoming  latest",
    ]
    assert run(config_file, "list", "--limit", "1").output.endswith("there are older ones: see --limit and --since\n")


def test_a_conflict_is_shown_with_both_rows(masters: tuple[Config, Database, Database], config_file: Path) -> None:
    add(masters[1])
    assert run(config_file, "show", "a:1").output.splitlines() == [
        "a:1: update_origin_differs in table public.accounts, key id=5",
        "resolved: 2026-01-02 12:00:00.000000 UTC on a, edge shop: b -> a",
        "change:   update at 0/16B3748",
        "rule:     latest",
        "winner:   incoming",
        "              current                         incoming",
        "   made on    a                               b",
        "   committed  2026-01-02 11:59:58.000000 UTC  2026-01-02 11:59:59.000000 UTC",
        "   id         5                               5",
        "*  name       Anna                            Anne",
        r"*  note       NULL                            moved\nto \x1b[31m[b]Ulm[/b]",
        "   balance    100                             100",
    ]


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"kind": "update_deleted", "current_row": None, "incoming_row": {"id": "5"}}, ["id deleted 5"]),
        ({"kind": "update_missing", "current_row": None, "current_commit": None}, ["name no row Anne", "committed unknown"]),
        ({"kind": "delete_origin_differs", "change": "delete", "incoming_row": None}, ["name Anna deleted"]),
        ({"kind": "delete_missing", "current_row": None, "incoming_row": None}, ["made on a b"]),
        ({"incoming_row": {"id": "5", "name": "Anna"}}, ["balance 100 not sent", "name Anna Anna"]),
        ({"winner": None, "error": "f raised KeyError"}, ["winner: none: it is not resolved", "error: f raised KeyError"]),
    ],
)
def test_rows_that_are_not_there_or_not_whole(
    masters: tuple[Config, Database, Database], config_file: Path, values: dict[str, Any], lines: list[str]
) -> None:
    add(masters[1], **values)
    shown = [" ".join(line.split()) for line in run(config_file, "show", "a:1").output.splitlines()]
    assert [line for line in lines if not any(other.startswith(line) for other in shown)] == [], shown


def test_json_holds_all_that_is_known(masters: tuple[Config, Database, Database], config_file: Path) -> None:
    add(masters[1])
    (listed,) = json.loads(run(config_file, "list", "--json").output)["conflicts"]
    assert listed == json.loads(run(config_file, "show", "a:1", "--json").output)
    assert datetime.fromisoformat(listed["resolved"]) == NOON
    assert {**listed, "id": "a:1", "table": "public.accounts", "incoming_row": USUAL["incoming_row"]} == listed
