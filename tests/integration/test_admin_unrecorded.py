"""A target that was restored from a dump without the schema streamer: its rows were taken for equal without a word."""

from __future__ import annotations

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
    assert not [line for line in said(config) if line.startswith("warning: b:")]
    target.execute("DROP SCHEMA streamer CASCADE")
    copied = make_config({"a": source.url, "b": target.url}, copy="always")
    assert not [line for line in said(copied) if line.startswith("warning: b:")]
