"""The databases of acceptance tests with several sources: three nodes on two servers."""

from __future__ import annotations

import pytest

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
