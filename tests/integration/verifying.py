"""What the tests of `verify` share: the command with a daemon of the same process, and small tables."""

from __future__ import annotations

from typing import Any

from streamer.admin.verify import verify, wanted
from streamer.config import Config
from streamer.verify.tables import Verified
from tests.integration.streams import Running
from tests.servers import Database

Kinds = dict[tuple[str, str], str]
"""What differs: kinds by table and key."""


def verified(config: Config, streams: Running, *tables: str, wait: float = 30, **options: Any) -> list[Verified]:  # noqa: ANN401
    """The result of the command, with the daemon of this process in the place of the one behind HTTP."""
    return list(verify(config, wanted("shop", tables, options.get("target"), 100, wait), hurry=streams.kick))


def kinds(found: list[Verified]) -> Kinds:
    assert not [one for one in found if one.problem]
    return {(one.table, ",".join(row["key"].values())): row["kind"] for one in found for row in one.keys}


def small_tables(database: Database, *, rows: bool = True) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric, x text)")
    database.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    if rows:
        database.execute("INSERT INTO t SELECT i, i, 'x' FROM generate_series(1, 1000) i")
