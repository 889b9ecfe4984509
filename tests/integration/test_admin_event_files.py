"""`check`, `setup`, `tables`, `status` and `teardown` with a jsonl target: nothing to make, progress to look at, events to keep."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.admin.check import check
from streamer.admin.event_files import EventFiles
from streamer.admin.findings import Finding, Severity
from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.admin.sqlite_files import SqliteFile
from streamer.admin.status import status
from streamer.admin.tables import tables
from streamer.admin.teardown import teardown
from streamer.config import Config
from streamer.errors import StreamerError
from streamer.model import EdgeName
from streamer.sinks.jsonl import JsonlSink
from tests.changes import ITEMS, group, insert, relation, write
from tests.configs import make_config
from tests.events import events
from tests.integration.targets import BEGIN, SLOT
from tests.servers import Database
from tests.trouble import unprivileged

EDGE = EdgeName("shop", "a", "log")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.jsonl"


@pytest.fixture
def config(source15: Database, path: Path) -> Config:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')")
    return make_config({"a": source15.url, "log": f"jsonl:///{path}"})


def set_up(config: Config) -> list[str]:
    said: list[str] = []
    setup(config, None, said.append)
    return said


def tear_down(config: Config) -> tuple[list[str], list[StreamerError]]:
    said: list[str] = []
    problems = teardown(config, None, force=False, confirm=lambda lines: True, say=said.append)
    return said, problems


def findings(config: Config) -> list[Finding]:
    return [f for f in check(config) if f.object == 'node "log"']


def test_setup_makes_the_file_once(config: Config, path: Path) -> None:
    assert f'log: created file "{path}"' in set_up(config)
    assert f'log: kept file "{path}"' in set_up(config)
    assert path.read_bytes() == b""


def test_tables_and_status_tell_what_the_progress_file_says(config: Config, path: Path) -> None:
    set_up(config)
    assert [t.targets for t in tables(config, None)[0]] == [{"log": "copy, then stream"}]
    assert [line.position for line in status(config).edges] == [None]
    assert run(config, sync=None, source=None, once=True) == []
    assert [t.targets for t in tables(config, None)[0]] == [{"log": "stream"}]
    (line,) = status(config).edges
    assert (line.state, line.error) == ("not running", None)
    assert line.position is not None
    assert [(event["kind"], event["new"]) for event in events(path)] == [("read", {"id": "1", "v": "x"})]


def test_teardown_keeps_the_events_and_removes_their_progress(config: Config, path: Path) -> None:
    set_up(config)
    run(config, sync=None, source=None, once=True)
    content = path.read_bytes()
    with path.open("ab") as file:
        file.write(content[:50])  # a killed daemon's torn line
    said, problems = tear_down(config)
    removed = f'log: removed progress of edge shop: a -> log, file "{path}.progress", and kept the events in file "{path}"'
    assert (removed in said, problems) == (True, [])
    assert [file.name for file in path.parent.glob("shop.jsonl*")] == ["shop.jsonl"]
    assert path.read_bytes() == content
    set_up(config)
    run(config, sync=None, source=None, once=True)
    assert [event["kind"] for event in events(path)] == ["read", "read"]


def test_teardown_waits_for_no_daemon_that_writes(config: Config, path: Path) -> None:
    sink = JsonlSink.of_node(EDGE, config.nodes["log"])
    try:
        sink.open()
        sink.begin(SLOT, BEGIN)
        _, problems = tear_down(config)
        assert "is locked by another daemon" in str(problems[0])
    finally:
        sink.close()
    assert Path(f"{path}.progress").exists()


def test_check_says_where_events_go(config: Config, path: Path) -> None:
    (found,) = findings(config)
    assert (found.severity, found.reason) == (
        Severity.OK,
        f'appends events to file "{path}", progress in "{path}.progress"',
    )


def test_check_says_that_standard_output_is_at_least_once(source15: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    (found,) = findings(make_config({"a": source15.url, "log": "jsonl:-"}))
    assert (found.severity, "at least once" in found.reason) == (Severity.WARNING, True)
    assert "jsonl:///path" in found.remedy


# -- without a server --------------------------------------------------------------------------------------------------------------


def target(url: str, **options: str) -> EventFiles:
    config = make_config({"a": "postgresql://x/shop", "log": url})
    return EventFiles("log", config.nodes["log"].model_copy(update=options))


@pytest.fixture
def owned() -> Iterator[Path]:
    """A directory of the user that we are, who is not root."""
    with tempfile.TemporaryDirectory() as directory, unprivileged(directory):
        yield Path(directory)
        os.chmod(directory, 0o700)


def test_check_finds_what_cannot_be_written(owned: Path) -> None:
    missing = target(f"jsonl:///{owned}/nowhere/x.jsonl").check([])
    assert [(f.severity, f.remedy) for f in missing] == [(Severity.ERROR, f"mkdir -p {owned}/nowhere")]
    (owned / "x.jsonl").touch(mode=0o400)
    assert ["x.jsonl" in f.reason for f in target(f"jsonl:///{owned}/x.jsonl").check([])] == [True]
    owned.chmod(0o500)
    assert [f"{owned}" in f.reason for f in target(f"jsonl:///{owned}/y.jsonl").check([])] == [True]
    assert [f.severity for f in target("jsonl:-", progress=f"{owned}/p").check([])] == [Severity.ERROR, Severity.WARNING]


def test_check_finds_an_sqlite_file_that_cannot_be_written_or_made(owned: Path) -> None:
    file = SqliteFile("s", owned / "x.sqlite")
    assert [(f.severity, f.remedy) for f in file.check([])] == [(Severity.WARNING, "run: streamer setup")]
    (owned / "x.sqlite").touch(mode=0o400)
    (unwritable,) = file.check([])
    assert (unwritable.severity, unwritable.reason) == (Severity.ERROR, f'file "{owned}/x.sqlite" cannot be written')
    (owned / "x.sqlite").unlink()
    owned.chmod(0o500)
    (unwritable,) = file.check([])
    assert (unwritable.severity, unwritable.reason) == (Severity.ERROR, f'directory "{owned}" cannot be written')


def test_check_finds_the_progress_of_another_node(path: Path) -> None:
    other = JsonlSink.of_node(
        EdgeName("shop", "a", "other"), make_config({"a": "postgresql://x/s", "other": f"jsonl:///{path}"}).nodes["other"]
    )
    other.open()
    other.begin(SLOT, BEGIN)
    write(other, group(insert(relation(ITEMS), "1", "a", None)))
    other.close()
    (found,) = target(f"jsonl:///{path}").check([])
    assert (found.severity, "belongs to edge shop: a -> other" in found.reason) == (Severity.ERROR, True)


def test_setup_names_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(StreamerError, match=f'node "log": directory "{tmp_path}/nowhere" does not exist; mkdir -p'):
        list(target(f"jsonl:///{tmp_path}/nowhere/x.jsonl").create([]))
