"""What streamer.toml says about the shapes of tables: what is read, and each thing that can be wrong with it, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer import topology
from streamer.config import Config, load
from streamer.errors import ConfigError
from streamer.model import TableName
from streamer.shape_config import SEVERAL_SOURCES, Shape

NODES = """
[nodes.a]
url = "postgresql://db1/shop"
[nodes.b]
url = "postgresql://db2/shop"
[nodes.s]
url = "sqlite:///shop.sqlite"
"""
SYNC = """
[syncs.shop]
sources = ["a"]
targets = ["b", "s"]
tables = ["public.*", "sales.orders", "sales.lines"]
exclude = ["public.tmp_*"]
"""
TABLE = '[syncs.shop.table."public.accounts"]\n'
ON_B = '[syncs.shop.target.b.table."public.accounts"]\n'
ACCOUNTS = TableName("public", "accounts")


def written(path: Path, text: str) -> Config:
    (path / "streamer.toml").write_text(NODES + text, encoding="utf-8")
    return load(path / "streamer.toml", {})


def test_without_keys_tables_stay_as_they_are(tmp_path: Path) -> None:
    sync = written(tmp_path, SYNC + TABLE).syncs["shop"]
    assert sync.shapes_for("b") == sync.shapes_for("s") == {}


def test_all_keys(tmp_path: Path) -> None:
    text = """
columns = ["id", "name"]
rename = "crm.clients"
rename_columns = { name = "full_name" }
where = "balance > 0"
transform = "python:shop.rows:mask"
"""
    sync = written(tmp_path, SYNC + TABLE + text).syncs["shop"]
    expected = Shape(
        ACCOUNTS,
        TableName("crm", "clients"),
        frozenset({"id", "name"}),
        {"name": "full_name"},
        "balance > 0",
        "python:shop.rows:mask",
    )
    assert sync.shapes_for("b") == sync.shapes_for("s") == {ACCOUNTS: expected}
    assert expected.recast
    assert (expected.column("name"), expected.column("id"), expected.takes("balance")) == ("full_name", "id", False)


def test_the_keys_of_one_target_win_key_by_key(tmp_path: Path) -> None:
    text = TABLE + 'where = "x > 1"\nrename = "clients"\n[syncs.shop.target.b.table.accounts]\nwhere = "x > 2"\n'
    sync = written(tmp_path, SYNC + text).syncs["shop"]
    clients = TableName("public", "clients")
    assert sync.shapes_for("b")[ACCOUNTS] == Shape(ACCOUNTS, clients, None, {}, "x > 2", "")
    assert sync.shapes_for("s")[ACCOUNTS].where == "x > 1"


def test_a_table_with_wildcards_in_its_name_has_settings_of_its_own(tmp_path: Path) -> None:
    text = SYNC + '[syncs.shop.table."what[?]"]\nwhere = "x > 1"\nrename = "a[*]b[[]1]"\n'
    sync = written(tmp_path, text).syncs["shop"]
    odd = TableName("public", "what?")
    assert sync.shapes_for("b") == {odd: Shape(odd, TableName("public", "a*b[1]"), None, {}, "x > 1", "")}


def test_a_filter_alone_leaves_the_table_what_it_is(tmp_path: Path) -> None:
    sync = written(tmp_path, SYNC + TABLE + 'where = "x > 1"').syncs["shop"]
    assert not sync.shapes_for("b")[ACCOUNTS].recast


def test_two_tables_may_swap_names(tmp_path: Path) -> None:
    text = TABLE + 'rename = "users"\n[syncs.shop.table.users]\nrename = "accounts"\n'
    shapes = written(tmp_path, SYNC + text).syncs["shop"].shapes_for("b")
    assert {shape.target.name for shape in shapes.values()} == {"users", "accounts"}


@pytest.mark.parametrize(
    "where",
    ["seen < date '2026-01-01'", '"now" > 1', "t.user = 'x'", "name = 'now()'", "note LIKE '%current_date%'"],
)
def test_what_only_looks_like_a_clock_is_a_condition(tmp_path: Path, where: str) -> None:
    sync = written(tmp_path, SYNC + TABLE + f'where = """{where}"""').syncs["shop"]
    assert sync.shapes_for("b")[ACCOUNTS].where == where


KEY = 'syncs.shop.table."public.accounts"'
NO_NAME = "is not the name of a table; write SCHEMA.TABLE, and wildcards of the name in brackets: [*]"
PROBLEMS = {
    "no columns": (TABLE + "columns = []", f"{KEY}.columns: is empty; name the columns, or remove it"),
    "a column twice": (TABLE + 'columns = ["id", "id"]', f'{KEY}.columns: column "id" is named twice'),
    "a column without a name": (TABLE + 'columns = [""]', f"{KEY}.columns: holds a column without a name"),
    "a pattern as a name": (TABLE + 'rename = "crm.*"', f"{KEY}.rename: {NO_NAME}"),
    "no name": (TABLE + 'rename = "crm."', f"{KEY}.rename: {NO_NAME}"),
    "our schema": (
        TABLE + 'rename = "streamer.progress"',
        f"{KEY}.rename: lies in the schema streamer, which holds what streamer keeps in a database; choose another one",
    ),
    "two columns with one name": (
        TABLE + 'rename_columns = { a = "x", b = "x" }',
        f'{KEY}.rename_columns: gives two columns the name "x"',
    ),
    "a name that another column has": (
        TABLE + 'columns = ["id", "a", "b"]\nrename_columns = { a = "b" }',
        f'{KEY}.rename_columns: two columns would be called "b" on the target',
    ),
    "a renamed column that stays": (
        TABLE + 'columns = ["id"]\nrename_columns = { a = "b" }',
        f'{KEY}.rename_columns: column "a" does not travel; name it in columns too',
    ),
    "an empty condition": (TABLE + 'where = " "', f"{KEY}.where: is empty; write a condition over the row, or remove it"),
    "a clock": (
        TABLE + "where = \"seen > now () - interval '1 day'\"",
        f"{KEY}.where: uses now, which changes while the row does not: a row would leave the filter and nobody would hear of it",
    ),
    "a clock without parentheses": (
        TABLE + 'where = "seen > CURRENT_DATE"',
        f"{KEY}.where: uses current_date, which changes while the row does not: a row would leave the filter and nobody would "
        "hear of it",
    ),
    "not a function": (TABLE + 'transform = "shop:mask"', f'{KEY}.transform: must be "python:package.module:function"'),
    "an unknown key": (
        ON_B + 'wher = "x"',
        'unknown key "syncs.shop.target.b.table."public.accounts".wher"; did you mean "where"?',
    ),
    "an unknown key of a target": (
        '[syncs.shop.target.b]\nwhere = "x"',
        'unknown key "syncs.shop.target.b.where"; known: table',
    ),
    "a conflict key of a target": (
        ON_B + 'conflict = "latest"',
        'unknown key "syncs.shop.target.b.table."public.accounts".conflict"; '
        "known: columns, rename, rename_columns, where, transform",
    ),
    "a table that is not selected": (
        '[syncs.shop.table."hr.staff"]\nwhere = "x"',
        'syncs.shop.table."hr.staff": is not a table of the sync; check its spelling against tables and exclude',
    ),
    "a table that is excluded": (
        '[syncs.shop.target.b.table.tmp_x]\nwhere = "x"',
        'syncs.shop.target.b.table."public.tmp_x": is not a table of the sync; check its spelling against tables and exclude',
    ),
    "a name with a dot, without its quotes": (
        '[syncs.shop.table.public.accounts]\nwhere = "x"',
        'syncs.shop.table: a name with a dot needs quotes: write table."public.accounts" for table.public.accounts',
    ),
    "the same for one target": (
        '[syncs.shop.target.b.table.public.accounts]\nwhere = "x"',
        'syncs.shop.target.b.table: a name with a dot needs quotes: write table."public.accounts" for table.public.accounts',
    ),
    "a target that is none": (
        '[syncs.shop.target.a.table."public.accounts"]\nwhere = "x"',
        "syncs.shop.target.a: is not a target of the sync; it has b, s",
    ),
    "two tables with one name": (
        TABLE + 'rename = "crm.clients"\n[syncs.shop.target.b.table.users]\nrename = "crm.clients"\n',
        f'{KEY}.rename: table "public.users" has the name "crm.clients" on "b" already',
    ),
    "a name that a table of the sync has": (
        TABLE + 'rename = "sales.orders"',
        f'{KEY}.rename: table "sales.orders" has the name "sales.orders" on "b" already',
    ),
}


@pytest.mark.parametrize(("text", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_problem(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, SYNC + text)
    said = str(caught.value).replace(str(tmp_path / "streamer.toml"), "FILE")
    assert said == f'config file "FILE": {message}'


@pytest.mark.parametrize(
    ("text", "key"),
    [(TABLE + 'where = "x > 1"', f"{KEY}.where"), ('[syncs.shop.target.s.table.accounts]\nwhere = "x"', "syncs.shop.target.s")],
)
def test_with_several_sources_tables_keep_their_shape(tmp_path: Path, text: str, key: str) -> None:
    several = SYNC.replace('["a"]', '["a", "b"]').replace('["b", "s"]', '["s"]')
    with pytest.raises(ConfigError, match=r"with several, rows must be the same everywhere") as caught:
        written(tmp_path, several + text)
    assert f"{key}: {SEVERAL_SOURCES}" in str(caught.value)


def test_a_sync_that_takes_up_a_renamed_table_overlaps(tmp_path: Path) -> None:
    syncs = """
[syncs.one]
sources = ["a"]
targets = ["b"]
tables = ["public.accounts"]
[syncs.one.table.accounts]
rename = "crm.clients"
[syncs.two]
sources = ["b"]
targets = ["s"]
tables = ["crm.*"]
"""
    config = written(tmp_path, syncs)
    assert topology.overlap(config.syncs["one"], config.syncs["two"])
    assert topology.overlap(config.syncs["two"], config.syncs["one"])
