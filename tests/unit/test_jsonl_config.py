"""Nodes that are files of events, or standard output: their keys, and that no two streams share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamer import config
from streamer.errors import ConfigError
from tests.configs import document, make_config, write_config

SERVER = "postgresql://x@localhost/shop"


def refusal(tmp_path: Path, values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(write_config(tmp_path / "streamer.toml", values))
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("jsonl:///shop.jsonl", "shop.jsonl.progress"),
        ("jsonl:////var/log/shop.jsonl", "/var/log/shop.jsonl.progress"),
        ("jsonl:-", "streamer-log.progress"),
    ],
)
def test_progress_is_beside_the_file_or_in_the_working_directory(url: str, expected: str) -> None:
    node = make_config({"a": SERVER, "log": url}).nodes["log"]
    assert node.progress_file("log") == Path(expected)
    assert node.model_copy(update={"progress": "/x/y"}).progress_file("log") == Path("/x/y")


@pytest.mark.parametrize(
    ("node", "keys", "words"),
    [
        ("a", {"rotate_mb": 1}, "nodes.a: rotate_mb means something for a jsonl node only, and this one is postgresql"),
        ("a", {"progress": "x"}, "nodes.a: progress means something for a jsonl node only, and this one is postgresql"),
        ("out", {"rotate_mb": 1}, "nodes.out: rotate_mb means something for files only, and this is standard output"),
        ("log", {"rotate_mb": 0}, "nodes.log.rotate_mb: "),
        ("log", {"progress": ""}, "nodes.log.progress: "),
    ],
)
def test_keys_stand_where_they_mean_something(tmp_path: Path, node: str, keys: dict[str, object], words: str) -> None:
    values = document({"a": SERVER, "log": "jsonl:///x", "out": "jsonl:-"})
    values["nodes"][node] |= keys
    assert words in refusal(tmp_path, values)


def two_syncs(*targets: str) -> dict[str, Any]:
    return {name: {"sources": ["a"], "targets": [t], "tables": ["t"]} for name, t in zip(("one", "two"), targets, strict=True)}


@pytest.mark.parametrize(
    ("targets", "shared"),
    [
        (("log", "log"), "jsonl:///shop"),
        (("log", "same"), "jsonl:///shop"),
        (("log", "other"), "shop.progress"),
        (("out", "out"), "jsonl:-"),
    ],
)
def test_two_streams_never_share_a_file(tmp_path: Path, targets: tuple[str, str], shared: str) -> None:
    nodes = {"a": SERVER, "log": "jsonl:///shop", "same": "jsonl:///shop", "other": "jsonl:///elsewhere", "out": "jsonl:-"}
    values = document(nodes, syncs=two_syncs(*targets))
    values["nodes"]["other"]["progress"] = "shop.progress"
    one, two = (f'sync "{sync}" from "a" to "{target}"' for sync, target in zip(("one", "two"), targets, strict=True))
    assert f'{one} and {two} would share "{shared}"; give each a jsonl node and file of its own' in refusal(tmp_path, values)


def test_of_several_sources_one_writes_the_file() -> None:
    nodes = {"a": SERVER, "b": "postgresql://y@localhost/shop", "log": "jsonl:///shop"}
    found = make_config(nodes, sources=["a", "b"], targets=["log"])
    assert [(source, target) for _, source, target in found.edges() if target == "log"] == [("a", "log")]


def test_a_file_of_events_is_no_source(tmp_path: Path) -> None:
    values = document({"log": "jsonl:///shop", "a": SERVER})
    assert 'node "log" is jsonl, which can only be a target' in refusal(tmp_path, values)
