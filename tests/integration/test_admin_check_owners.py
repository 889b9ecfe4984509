"""`streamer check`, several sources: tables that `setup` has made, and that the application may not write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamer.admin.check import check
from streamer.admin.findings import Finding
from streamer.admin.setup import setup
from streamer.config import Config
from tests.configs import make_config
from tests.conftest import Databases, Pair


@pytest.fixture
def shopkeepers(pair: Pair) -> Iterator[Pair]:
    """Two databases whose servers have a role of the application."""
    role = "shopkeeper"
    for database in pair:
        database.execute(f"CREATE ROLE {role}; GRANT {role} TO CURRENT_USER")
    yield pair
    for database in pair:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def owned(config: Config) -> list[Finding]:
    return [finding for finding in check(config) if "owns" in finding.reason]


def test_tables_that_setup_has_made_are_told_if_their_owner_elsewhere_may_not_write_them(shopkeepers: Pair) -> None:
    a, b = shopkeepers
    a.execute("CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO shopkeeper; CREATE TABLE u (id int PRIMARY KEY)")
    config = make_config({"a": a.url, "b": b.url}, sources=["a", "b"], targets=[])
    setup(config, None, lambda line: None)
    (found,) = owned(config)
    assert (found.severity, found.object) == ("warning", 'node "b"')
    assert found.reason.startswith('role shopkeeper, who owns 1 table on "a", may not write them here: they belong to ')
    assert found.remedy == 'ALTER TABLE "public"."t" OWNER TO "shopkeeper"'
    b.execute(found.remedy)
    assert owned(config) == []


def test_what_several_edges_find_alike_is_told_once(pair: Pair, databases: Databases) -> None:
    a, b = pair
    joining = databases.create(a.server, "joining")
    for database in (a, b):
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": a.url, "b": b.url, "c": joining.url}, sources=["a", "b", "c"], targets=[])
    found = [finding for finding in check(config) if 'table "public.t" on "c"' in finding.object]
    assert [finding.reason for finding in found] == ["does not exist"]


def test_the_right_of_an_owner_is_not_taken_from_the_application(shopkeepers: Pair) -> None:
    a, b = shopkeepers
    a.execute("CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO shopkeeper")
    a.execute("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'Geheim-1'; GRANT CREATE ON DATABASE source TO plain")
    a.execute("GRANT SELECT ON t TO plain")
    config = make_config({"a": a.server.url("source", "plain", "Geheim-1"), "b": b.url})
    try:
        (found,) = (finding for finding in check(config) if "does not own it" in finding.reason)
        assert found.remedy == 'GRANT "shopkeeper" TO "plain"'
        a.execute(found.remedy)
        assert not any("does not own it" in finding.reason for finding in check(config))
        setup(config, None, lambda line: None)
    finally:
        a.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = 'source'")
        a.execute("DROP OWNED BY plain; DROP ROLE plain")
