"""What streamer.toml says about conflicts between sources: what is read, and each thing that can be wrong with it, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.config import Config, Sync, load
from streamer.conflict_config import NO_QUARANTINE, TableRules, TableSettings
from streamer.errors import ConfigError
from streamer.model import TableName
from streamer.node_config import Node

NODES = """
[nodes.a]
url = "postgresql://db1/shop"
[nodes.b]
url = "postgresql://db2/shop"
[nodes.c]
url = "postgresql://db3/shop"
[nodes.s]
url = "sqlite:///shop.sqlite"
"""
MESH = """
[syncs.shop]
sources = ["a", "b"]
targets = ["c", "s"]
tables = ["public.*", "sales.order*"]
exclude = ["public.tmp_*"]
"""
ONE_WAY = MESH.replace('["a", "b"]', '["a"]')
TABLE = '[syncs.shop.table."public.accounts"]\n'


def written(path: Path, text: str) -> Config:
    (path / "streamer.toml").write_text(NODES + text, encoding="utf-8")
    return load(path / "streamer.toml", {})


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Sync]:
    return lambda text: written(tmp_path, text).syncs["shop"]


def test_defaults_with_several_sources(read: Callable[[str], Sync]) -> None:
    sync = read(MESH)
    assert sync.multi_master
    assert (sync.conflict, sync.conflict_timeout, sync.conflict_fallback) == ("latest", 5.0, "stop")
    assert (sync.conflict_days, sync.tombstone_days, sync.max_clock_skew, sync.table) == (30, 7, 5.0, {})
    assert sync.rules_for(TableName("public", "accounts")) == TableRules("latest")


def test_one_source_has_no_conflicts(read: Callable[[str], Sync]) -> None:
    assert not read(ONE_WAY).multi_master


def test_all_keys(read: Callable[[str], Sync]) -> None:
    sync = read(
        MESH
        + """
conflict = ["b", "a"]
conflict_timeout = 2
conflict_fallback = "keep"
conflict_days = 90
tombstone_days = 14
max_clock_skew = 0.5
[syncs.shop.table."public.accounts"]
conflict = "python:shop.conflicts:resolve"
delta = ["balance"]
max = ["seen"]
min = ["born", "made"]
[syncs.shop.table.log]
conflict = "apply"
[syncs.shop.table."sales.orders"]
delta = ["total"]
"""
    )
    assert (sync.conflict_timeout, sync.conflict_fallback, sync.conflict_days) == (2.0, "keep", 90)
    assert (sync.tombstone_days, sync.max_clock_skew) == (14, 0.5)
    accounts = sync.rules_for(TableName("public", "accounts"))
    assert accounts == TableRules(
        "python:shop.conflicts:resolve", frozenset({"balance"}), frozenset({"seen"}), frozenset({"born", "made"})
    )
    assert accounts.merged == {"balance", "seen", "born", "made"}
    assert sync.rules_for(TableName("public", "log")) == TableRules("apply")
    assert sync.rules_for(TableName("sales", "orders")) == TableRules(("b", "a"), frozenset({"total"}))
    assert sync.rules_for(TableName("sales", "order_lines")) == TableRules(("b", "a"))


@pytest.mark.parametrize("policy", ["latest", "apply", "keep", "error", "python:m:f", "python:a.b_1.c:resolve", ["a", "b"]])
def test_policies(policy: str | list[str]) -> None:
    expected = tuple(policy) if isinstance(policy, list) else policy
    sync = Sync.model_validate({"sources": ["a", "b"], "tables": ["*"], "conflict": policy})
    assert sync.conflict == expected
    table = Sync.model_validate({"sources": ["a", "b"], "tables": ["*"], "table": {"t": {"conflict": policy}}})
    assert table.rules_for(TableName("public", "t")).conflict == expected


def test_a_table_may_be_made_latest_again() -> None:
    sync = Sync(sources=("a", "b"), tables=("*",), conflict="keep", table={"t": TableSettings(conflict="latest")})
    assert sync.rules_for(TableName("public", "t")).conflict == "latest"


POLICY = 'must be "latest", "apply", "keep", "error", "python:package.module:function", or a list of all sources, like ["a", "b"]'
ONE_SOURCE = "makes no sense with one source: there is nothing to resolve, the source wins; remove it, or add a source"
EACH = "name each source once, the strongest first: a, b"
PROBLEMS = {
    # policies
    "unknown policy": (MESH + 'conflict = "newest"', f"syncs.shop.conflict: {POLICY}"),
    "function without its module": (MESH + 'conflict = "python:resolve"', f"syncs.shop.conflict: {POLICY}"),
    "file for a module": (MESH + 'conflict = "python:shop/conflicts.py:f"', f"syncs.shop.conflict: {POLICY}"),
    "number for a policy": (MESH + "conflict = 1", f"syncs.shop.conflict: {POLICY}"),
    "number in a list": (MESH + 'conflict = ["a", 1]', f"syncs.shop.conflict: {POLICY}"),
    "list that lacks a source": (MESH + 'conflict = ["a"]', f'syncs.shop.conflict: source "b" is missing; {EACH}'),
    "empty list": (MESH + "conflict = []", f'syncs.shop.conflict: source "a" is missing; {EACH}'),
    "list with a source twice": (MESH + 'conflict = ["a", "b", "a"]', f'syncs.shop.conflict: "a" is named twice; {EACH}'),
    "list with a target": (MESH + 'conflict = ["a", "b", "c"]', f'syncs.shop.conflict: "c" is not a source of the sync; {EACH}'),
    "unknown policy of a table": (MESH + TABLE + 'conflict = ""', f'syncs.shop.table."public.accounts".conflict: {POLICY}'),
    "list of a table that lacks a source": (
        MESH + TABLE + 'conflict = ["b"]',
        f'syncs.shop.table."public.accounts".conflict: source "a" is missing; {EACH}',
    ),
    "unknown fallback": (
        MESH + 'conflict_fallback = "error"',
        "syncs.shop.conflict_fallback: must be 'stop', 'latest', 'apply' or 'keep'",
    ),
    # numbers
    "no time at all": (MESH + "conflict_timeout = 0", "syncs.shop.conflict_timeout: must be greater than 0"),
    "text for a time": (MESH + 'conflict_timeout = "5 s"', "syncs.shop.conflict_timeout: must be a valid number"),
    "endless time": (MESH + "conflict_timeout = inf", "syncs.shop.conflict_timeout: must be a finite number"),
    "no days": (MESH + "conflict_days = 0", "syncs.shop.conflict_days: must be greater than or equal to 1"),
    "part of a day": (MESH + "tombstone_days = 0.5", "syncs.shop.tombstone_days: must be a valid integer"),
    "too many days": (MESH + "tombstone_days = 999999", "syncs.shop.tombstone_days: must be less than or equal to 36500"),
    "skew below zero": (MESH + "max_clock_skew = -1", "syncs.shop.max_clock_skew: must be greater than 0"),
    # several sources
    "copy that replaces": (
        MESH + 'copy = "always"',
        'syncs.shop.copy: must be "if-empty" or "never" with several sources: "always" replaces rows that others made',
    ),
    "merged columns where a source keeps no old rows": (
        '[nodes.t]\nurl = "postgresql://db4/shop"\ncapture = "trigger"\n'
        + MESH.replace('["a", "b"]', '["a", "t"]')
        + TABLE
        + 'max = ["seen"]',
        'syncs.shop.table."public.accounts".max: what a write adds is told by the old row, which triggers do not keep, and nodes.t '
        'has capture = "trigger"; remove this key, or capture "t" from its WAL',
    ),
    "quarantine": (MESH + 'on_error = "quarantine"', f"syncs.shop.on_error: {NO_QUARANTINE}"),
    "quarantine of a table": (
        MESH + TABLE + 'on_error = "quarantine"',
        f'syncs.shop.table."public.accounts".on_error: {NO_QUARANTINE}',
    ),
    # one source
    **{
        f"{key} with one source": (f"{ONE_WAY}{key} = {value}", f"syncs.shop.{key}: {ONE_SOURCE}")
        for key, value in {
            "conflict": '"latest"',
            "conflict_timeout": "5.0",
            "conflict_fallback": '"stop"',
            "conflict_days": "30",
            "tombstone_days": "7",
            "max_clock_skew": "5.0",
        }.items()
    },
    "rules of a table with one source": (
        ONE_WAY + TABLE + 'delta = ["x"]',
        f'syncs.shop.table."public.accounts".delta: {ONE_SOURCE}',
    ),
    # tables
    "table that the sync does not select": (
        MESH + '[syncs.shop.table."audit.log"]',
        'syncs.shop.table."audit.log": is not a table of the sync; check its spelling against tables and exclude',
    ),
    "table that the sync excludes": (
        MESH + "[syncs.shop.table.tmp_1]",
        'syncs.shop.table."public.tmp_1": is not a table of the sync; check its spelling against tables and exclude',
    ),
    "pattern for a table": (
        MESH + '[syncs.shop.table."sales.*"]',
        'syncs.shop.table."sales.*": is a pattern; name each table by itself, and wildcards of its name in brackets: [*]',
    ),
    "table without a name": (
        MESH + '[syncs.shop.table.""]',
        'syncs.shop.table."": is not the name of a table; write SCHEMA.TABLE',
    ),
    "table in a nameless schema": (
        MESH + '[syncs.shop.table.".x"]',
        'syncs.shop.table.".x": is not the name of a table; write SCHEMA.TABLE',
    ),
    "table that is named both ways": (
        MESH + TABLE + "[syncs.shop.table.accounts]",
        'syncs.shop.table.accounts: is table "public.accounts" a second time; put all of its keys into one',
    ),
    "table without quotes": (
        MESH + "[syncs.shop.table.public.users]\ndelta = []",
        'syncs.shop.table: a name with a dot needs quotes: write table."public.users" for table.public.users',
    ),
    "tables that are no table": (
        MESH + "table = 3",
        'syncs.shop.table: must hold tables, like [syncs.shop.table.NAME], unless you mean "tables"',
    ),
    "table that is no table": (
        MESH + 'table."public.x" = 3',
        'syncs.shop.table."public.x": must be a table, [syncs.shop.table."public.x"]',
    ),
    # columns
    "mistyped key of a table": (
        MESH + TABLE + 'delt = ["x"]',
        'unknown key "syncs.shop.table."public.accounts".delt"; did you mean "delta"?',
    ),
    "key of a table": (
        MESH + TABLE + 'primary = "x"',
        f'unknown key "syncs.shop.table."public.accounts".primary"; known: {", ".join(TableSettings.model_fields)}',
    ),
    "column that is no list": (
        MESH + TABLE + 'delta = "balance"',
        'syncs.shop.table."public.accounts".delta: must be a list, like ["a", "b"]',
    ),
    "column that is merged in two ways": (
        MESH + TABLE + 'delta = ["x"]\nmax = ["y"]\nmin = ["x"]',
        'syncs.shop.table."public.accounts".min: column "x" is named twice; name it once, in one of delta, max and min',
    ),
    "column that is named twice in one": (
        MESH + TABLE + 'delta = ["x", "x"]',
        'syncs.shop.table."public.accounts".delta: column "x" is named twice; name it once, in one of delta, max and min',
    ),
}


@pytest.mark.parametrize(("text", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_problem(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, text)
    said = str(caught.value).replace(str(tmp_path / "streamer.toml"), "FILE")
    assert said == f'config file "FILE": {message}'


def test_only_postgresql_targets_hear_from_every_source() -> None:
    config = Config(
        nodes={name: Node(url=f"sqlite:///{name}" if name in "xy" else f"postgresql://{name}/shop") for name in "abcdxy"},
        syncs={
            "mesh": Sync(sources=("b", "a", "c"), targets=("d", "x"), tables=("*.*",)),
            "on": Sync(sources=("c",), targets=("y",), tables=("*.*",)),
        },
    )
    assert {node: config.feeders("mesh", node) for node in "abcdx"} == {
        "a": ("b", "c"),
        "b": ("a", "c"),
        "c": ("b", "a"),
        "d": ("b", "a", "c"),
        "x": ("b",),
    }
    assert config.feeders("on", "y") == ("c",)
    assert {source: config.targets("mesh", source) for source in "abc"} == {
        "a": ("b", "c", "d"),
        "b": ("a", "c", "d", "x"),
        "c": ("b", "a", "d"),
    }
    assert [edge for edge in config.edges() if edge[2] in "xy"] == [("mesh", "b", "x"), ("on", "c", "y")]
