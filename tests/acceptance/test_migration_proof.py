"""The proof of a migration: applications write all the while, the copy is killed again and again, and nothing is lost or doubled.

A hundred tables with odd names, some without a key, and a big one are copied to a server of another version; daemon, source and
target are killed at random moments meanwhile. Then both sides are verified, the applications move over, and back again. Every
transaction of theirs must be there once, on both servers (ledger.py).

Small by default. STREAMER_PROOF=full is the size of the issue, 3,000,000 rows and ten kills; STREAMER_PROOF=200000 another one.
The trap: what is "a random moment" depends on the machine; the seed says where the dice fell, not what was hit. So the log of the
test tells how far the copy was at each kill.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from psycopg import sql

from streamer.model import TableName
from tests.acceptance.daemon import Streamer
from tests.acceptance.ledger import Applications, More, make_ledger, torn
from tests.configs import write_config
from tests.conftest import Databases
from tests.odd_tables import VALUE, make_tables
from tests.role import reached
from tests.servers import Database, PostgresServer, Row
from tests.waiting import wait_for

SIZE: Final = os.environ.get("STREAMER_PROOF", "60000").replace("full", "3000000")
ROWS: Final = int(SIZE)
KILLS: Final = 10 if ROWS > 1_000_000 else 3
PATIENCE: Final = max(240.0, ROWS / 2_000)  # seconds for a copy, or a look at all rows
DIRECTIONS: Final = ["15 to 18", "triggers to 18"] + (["18 to 15"] if KILLS > 3 else [])
TABLES: Final = 100
FEW: Final = 20  # rows of each of them
WATCHED: Final = {"primary", "composite", "index", "full"}
"""Kinds of keys with which updates and deletes travel."""


@dataclass(frozen=True)
class Migration:
    """What is moved, from `old` to `new`."""

    old: Database
    new: Database
    streamer: Streamer
    applications: Applications
    dice: random.Random


@pytest.mark.timeout(300 + ROWS / 500)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_migration_loses_nothing_whatever_is_killed(
    databases: Databases, pg15: PostgresServer, pg18: PostgresServer, tmp_path: Path, direction: str
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    servers = (pg18, pg15) if direction == "18 to 15" else (pg15, pg18)
    old, new = (databases.create(server, name) for server, name in zip(servers, ("source", "target"), strict=True))
    triggers = direction.startswith("triggers")
    odd = make_tables(old, dice, TABLES)
    # triggers cannot follow a table without a key: it is copied whole, by a sync of its own because no other may hand it on
    whole = [table for table, kind in odd.items() if triggers and kind in ("full", "nothing")]
    followed = [table for table in odd if table not in whole]
    _fill(old, odd)
    make_ledger(old, ROWS)
    with Streamer(tmp_path, {"old": old.url, "new": new.url}, sources=["old"], targets=["new"]) as streamer:
        _configure(streamer, old, new, "trigger" if triggers else "auto", whole)
        streamer.setup()
        with Applications(old, ROWS, seed, _work([(table, odd[table]) for table in followed])) as applications:
            migration = Migration(old, new, streamer, applications, dice)
            applications.wait_for_more()
            _copy_and_kill(migration)
            for sync in ("forth", *(["whole"] if whole else [])):
                _verify(streamer, sync)
            assert torn(new) == []
            if whole:  # a second copy would undo what is written on the new node
                _configure(streamer, old, new, "trigger", whole, copied=False)
                os.kill(streamer.pid, signal.SIGHUP)
                wait_for(lambda: len(_edges(streamer)) == 2, "the sync that copies whole tables to be gone")
            _move(migration, "forth", new)
            assert torn(old) == []
            _verify(streamer, "back")
            _move(migration, "back", old)
            applications.wait_for_more()
        for sync in ("forth", "back"):
            streamer.command("kick", sync, "--wait", "60")
        assert applications.lost == []
        print(f"{sum(applications.acknowledged.values())} transactions, {applications.ends} sessions")
        for database in (old, new):
            assert torn(database) == []
            assert dict(database.query("SELECT writer, entries FROM account")) == applications.acknowledged
        assert _contents(old, odd) == _contents(new, odd)
        assert streamer.stop(30) == 0


def _configure(
    streamer: Streamer, old: Database, new: Database, capture: str, whole: Sequence[TableName], *, copied: bool = True
) -> None:
    """Write a config with a sync each way, and, where they are to be `copied`, one for tables that are copied whole."""
    globs = [_exactly(table) for table in whole]
    nodes = {"old": {"url": reached(old.url), "capture": capture}, "new": {"url": reached(new.url)}}
    both = {"tables": ["*.*"], "exclude": globs, "sequences": True}
    forth = {"sources": ["old"], "targets": ["new"], **both}
    back = {"sources": ["new"], "targets": ["old"], "copy": "never", **both}
    syncs = {"forth": forth, "back": back}
    if whole and copied:
        syncs["whole"] = {"sources": ["old"], "targets": ["new"], "tables": globs}
    write_config(streamer.path, {"http": {"listen": f"127.0.0.1:{streamer.port}"}, "nodes": nodes, "syncs": syncs})


def _exactly(table: TableName) -> str:
    """The glob of this table alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(table))


def _fill(database: Database, odd: dict[TableName, str]) -> None:
    with database.connect() as connection:
        for table in odd:
            query = sql.SQL("INSERT INTO {} (id, {}, n) SELECT i, 'text ' || i, i / 3.0 FROM generate_series(-{}, -1) i")
            connection.execute(query.format(sql.Identifier(table.schema, table.name), sql.Identifier(VALUE), FEW))


def _work(tables: Sequence[tuple[TableName, str]]) -> More:
    def statement(dice: random.Random, writer: int, number: int) -> str:
        """Write a row of an odd table: each application has its own ids, so that none waits for another for long."""
        table, kind = dice.choice(tables)
        name = sql.Identifier(table.schema, table.name).as_string()
        value = sql.Identifier(VALUE).as_string()
        row = number * 10 + writer
        insert = f"INSERT INTO {name} (id, {value}, n) VALUES ({row}, 'it''s {number}', {number} / 7.0)"
        if kind not in WATCHED:
            return insert
        mine = f"WHERE id > 0 AND id % 10 = {writer}"
        update = f"UPDATE {name} SET n = n + 1, {value} = NULL {mine}"
        return dice.choice([insert, insert, update, f"DELETE FROM {name} {mine} AND id % 3 = 0"])

    return statement


# -- the copy ----------------------------------------------------------------------------------------------------------------------


def _copy_and_kill(migration: Migration) -> None:
    """Run the daemon until it streams; kill it, the source or the target at random moments of the copy, a daemon first."""
    streamer, dice = migration.streamer, migration.dice
    victims = ["daemon", *dice.choices(["daemon", "source", "target"], [2, 1, 1], k=KILLS - 1)]
    for victim in victims:
        if not streamer.running:
            streamer.start()
        portion = int(ROWS * dice.uniform(0, 1.5 / KILLS))
        before = _copied(streamer)
        wait_for(lambda: _copied(streamer) > before + portion or _streams(streamer), "the copy to get on", PATIENCE)  # noqa: B023
        print(f"{victim} killed after {_copied(streamer) - before} rows{', streaming' if _streams(streamer) else ''}")
        if victim == "daemon":
            streamer.kill()
        else:
            (migration.old if victim == "source" else migration.new).server.restart("immediate")
    if not streamer.running:
        streamer.start()
    wait_for(lambda: _streams(streamer), "both edges to stream", PATIENCE)


def _copied(streamer: Streamer) -> int:
    """Rows that this daemon has copied."""
    return sum(table["rows"] for edge in _edges(streamer) for table in edge["copy"])


def _streams(streamer: Streamer) -> bool:
    return {edge["state"] for edge in _edges(streamer)} == {"streaming"}


def _edges(streamer: Streamer) -> list[dict[str, Any]]:
    return [edge for stream in streamer.streams() for edge in stream["edges"]]


# -- moving ------------------------------------------------------------------------------------------------------------------------


def _verify(streamer: Streamer, sync: str) -> None:
    """Compare all tables while they are written."""
    done = streamer.command("verify", sync, succeeds=False, seconds=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def _move(migration: Migration, sync: str, there: Database) -> None:
    """Cut over, and see that the applications go on there; they try to write all the while."""
    name = "old" if there is migration.old else "new"
    print(migration.streamer.command("cutover", sync, "--to", name, "--block-writes", "--yes", seconds=PATIENCE).stdout)
    migration.applications.move(there)


# -- the end -----------------------------------------------------------------------------------------------------------------------


def _contents(database: Database, odd: dict[TableName, str]) -> dict[str, list[Row]]:
    """How many rows each table has, and a sum over all of them."""
    found = {}
    tables = [*odd, *(TableName("public", name) for name in ("account", "entry", "big"))]
    with database.connect() as connection:
        for table in tables:
            query = sql.SQL("SELECT count(*), sum(('x' || substr(md5(t::text), 1, 15))::bit(60)::bigint) FROM {} t")
            found[str(table)] = connection.execute(query.format(sql.Identifier(table.schema, table.name))).fetchall()
    return found
