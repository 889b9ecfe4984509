"""Rows on a target that nothing is recorded of, and that were taken for equal without a word: it was restored from a dump
without the schema streamer, their table was taken out of the sync for a while, or they were there when it began."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.config import Config
from tests.configs import make_config
from tests.conftest import Pair


def said(config: Config) -> list[str]:
    lines: list[str] = []
    setup(config, None, lines.append)
    return lines


def test_rows_of_a_target_that_lost_what_was_recorded_of_them_are_told(pair: Pair) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source.url, "b": target.url})
    said(config)
    target.execute("DROP SCHEMA streamer CASCADE")
    assert not [line for line in said(config) if line.startswith("warning: b:")]
    target.execute("DROP SCHEMA streamer CASCADE; INSERT INTO t VALUES (1)")
    (told,) = [line for line in said(config) if line.startswith("warning: b:")]
    assert 'table "public.t" has rows, and nothing is recorded of what they hold' in told
    assert told.endswith("streamer verify shop --repair")
    assert "they may differ" in " ".join(line for line in said(config) if line.startswith("warning: b:"))
    target.execute("DROP SCHEMA streamer CASCADE")
    copied = make_config({"a": source.url, "b": target.url}, copy="always")
    assert not [line for line in said(copied) if line.startswith("warning: b:")]


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_rows_of_a_table_that_comes_back_to_a_sync_are_told(pair: Pair, tmp_path: Path, kind: str) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    nodes = {"a": source.url, "b": target.url if kind == "postgresql" else f"sqlite:///{tmp_path / 'b'}"}
    both, without = make_config(nodes), make_config(nodes, exclude=["public.t"])
    said(both)
    run(both, sync=None, source=None, once=True)
    assert not [line for line in said(both) if line.startswith("warning: b:")]
    assert not [line for line in said(without) if line.startswith("warning: b:")]
    run(without, sync=None, source=None, once=True)
    (told,) = [line for line in said(both) if line.startswith("warning: b:")]
    assert told == (
        'warning: b: table "public.t" has rows, and nothing is recorded of what they hold: they are taken for what "a" has now; '
        "if they may differ, start streamer run, then: streamer verify shop --repair"
    )
    run(both, sync=None, source=None, once=True)
    assert not [line for line in said(both) if line.startswith("warning: b:")]


@pytest.mark.parametrize(("copy", "warned"), [("if-empty", True), ("always", False), ("never", False)])
def test_rows_that_keep_a_table_from_being_copied_are_told(pair: Pair, copy: str, warned: bool) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")
    target.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    told = [line for line in said(make_config({"a": source.url, "b": target.url}, copy=copy)) if line.startswith("warning: b:")]
    assert ['table "public.t" has rows' in line for line in told] == [True] * warned
