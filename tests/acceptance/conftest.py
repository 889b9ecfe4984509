"""The databases of acceptance tests with several sources: three nodes on two servers; and a one-way shop for those that end it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import make_counters
from tests.conftest import Databases
from tests.servers import Database, PostgresServer


@pytest.fixture
def a(databases: Databases, pg15: PostgresServer) -> Database:
    return databases.create(pg15, "left")


@pytest.fixture
def b(databases: Databases, pg18: PostgresServer) -> Database:
    return databases.create(pg18, "right")


@pytest.fixture
def c(databases: Databases, pg18: PostgresServer) -> Database:
    return databases.create(pg18, "third")


@pytest.fixture
def capture() -> str:
    """How changes are read, for tests that don't say."""
    return "auto"


@pytest.fixture
def shop(tmp_path: Path, source15: Database, target18: Database, capture: str) -> Iterator[Streamer]:
    """15 to 18, the table t with 100 rows."""
    make_counters(source15)
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}, capture=capture) as streamer:
        yield streamer.setup()
