"""`streamer cutover`: over to another server and back while applications write; and whatever fails, they go on where they were."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest

from streamer import config as config_module
from streamer.admin.cutover import cutover
from streamer.admin.cutover_preflight import Options
from streamer.errors import StreamerError, UsageError
from tests.acceptance.daemon import Streamer
from tests.acceptance.ledger import make_ledger
from tests.acceptance.moving import ROWS, both_ways, check_everything_arrived, writing
from tests.conftest import Databases
from tests.role import reached
from tests.servers import Database, PostgresServer

QUICK = Options(block_writes=True, verify=False, wait=30)
"""Rows are compared by the tests that want it."""
TRY = ("cutover", "forth", "--to", "new", "--skip-verify", "--dry-run")
SETTINGS = "SELECT setconfig FROM pg_db_role_setting"
BEHIND_THE_STREAM = "BEGIN; UPDATE streamer.progress SET updated = now(); {}; COMMIT"
"""A change that looks like one of streamer's own, which does not travel back."""


@pytest.fixture(scope="module")
def made() -> Iterator[Databases]:
    """One pair of databases for all tests here: each leaves it as it was, streaming both ways, with clients on the old one."""
    databases = Databases()
    try:
        yield databases
    finally:
        databases.drop()


@pytest.fixture(scope="module")
def old(made: Databases, server_a: PostgresServer) -> Database:
    database = made.create(server_a, "old")
    make_ledger(database, ROWS)
    return database


@pytest.fixture(scope="module")
def new(made: Databases, server_b: PostgresServer) -> Database:
    return made.create(server_b, "new")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, old: Database, new: Database) -> Iterator[Streamer]:
    with both_ways(tmp_path_factory.mktemp("moving"), {"old": reached(old.url), "new": reached(new.url)}) as streamer:
        yield streamer


class Move:
    """The command in this process: something can happen when it has asked, and when it tells a step."""

    def __init__(self, streamer: Streamer) -> None:
        self._config = config_module.load(streamer.path)
        self.said: list[str] = []

    def __call__(
        self,
        options: Options = QUICK,
        *,
        asked: Callable[[], object] = lambda: None,
        at: str = "",
        happens: Callable[[], object] = lambda: None,
        dry_run: bool = False,
    ) -> None:
        self.said.clear()

        def confirm(lines: object) -> bool:
            asked()
            return True

        def say(line: str) -> None:
            print(line)
            self.said.append(line)
            if at and at in line:
                happens()

        cutover(self._config, "forth", "new", options, confirm, say, dry_run=dry_run)


@contextmanager
def heeded(number: int) -> Iterator[None]:
    """Have the signal not ignored, as it is where the test run is a job in the background."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_whatever_fails_amid_the_steps_the_application_goes_on_where_it_was(moving: Streamer, old: Database, new: Database) -> None:
    move = Move(moving)
    proven = Options(block_writes=True)

    def rename(name: str, other: str) -> Callable[[], object]:
        return lambda: new.execute(f"ALTER SEQUENCE {name} RENAME TO {other}")

    def stray() -> None:
        with psycopg.connect(old.url, options="-c default_transaction_read_only=off") as connection:
            connection.execute("UPDATE big SET filler = 'stray' WHERE id = 1")

    def spoil() -> None:
        new.execute(BEHIND_THE_STREAM.format("UPDATE big SET filler = 'x' WHERE id = 2"))

    def mend() -> None:
        old.execute("UPDATE big SET filler = 'mended' WHERE id = 2")
        assert "1 row differed when they were compared last" in moving.command(*TRY, succeeds=False).stdout
        moving.command("verify", "forth")

    def fails(
        message: str,
        attempt: Callable[[], None],
        cure: Callable[[], object] = lambda: None,
        error: type[BaseException] = StreamerError,
    ) -> None:
        with pytest.raises(error, match=message):
            attempt()
        assert '"old" takes writes again' in move.said[-1]
        assert old.query(SETTINGS) == []
        cure()
        applications.wait_for_more()

    with writing(old) as applications:
        fails("sequence .* does not exist", lambda: move(asked=rename("entry_id_seq", "gone")), rename("gone", "entry_id_seq"))
        fails(
            'step 2 of 6 failed: node "new"', lambda: move(at="2/6", happens=lambda: new.server.stop("immediate")), new.server.start
        )
        moving.wait_for_state("streaming")
        fails("somebody has written 1 transaction", lambda: move(at="4/6", happens=stray))
        fails("is different in 1 row", lambda: move(proven, at="3/7", happens=spoil), mend)
        for number in (signal.SIGTERM, signal.SIGINT):
            with heeded(number):
                fails("^$", lambda: move(at="3/6", happens=partial(os.kill, os.getpid(), number)), error=KeyboardInterrupt)  # noqa: B023
        applications.stop()
        check_everything_arrived(applications, moving, old, new)


def test_an_undo_that_is_impossible_is_told_as_a_statement_and_a_second_try_moves_all_the_same(
    moving: Streamer, old: Database, new: Database
) -> None:
    move = Move(moving)
    with pytest.raises(StreamerError, match="not everything could be undone"):
        move(at="3/6", happens=lambda: old.server.stop("immediate"))
    statement = 'BEGIN READ WRITE; ALTER DATABASE "old" RESET default_transaction_read_only; COMMIT'
    assert move.said[-1].strip() == f"do it by hand: {statement}"
    old.server.start()
    moving.wait_for_state("streaming")
    move()
    assert "which is read-only already" in next(line for line in move.said if line.startswith("1/6"))
    old.execute(statement)
    assert old.query(SETTINGS) == []


def test_a_dry_run_tells_the_steps_and_changes_nothing(
    moving: Streamer, old: Database, new: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    move = Move(moving)
    before = new.query("SELECT last_value FROM entry_id_seq")
    with old.connect() as somebody:
        move(Options(block_writes=True), dry_run=True)
        assert somebody.execute("SELECT 1").fetchone() == (1,)
        found = capsys.readouterr().out
        assert f"session {somebody.info.backend_pid} postgres: idle" in found
    assert "rows of 3 tables are equal" in found
    assert '1. keep writers from "old": ALTER DATABASE "old" SET default_transaction_read_only = on' in found
    assert old.query(SETTINGS) == []
    assert new.query("SELECT last_value FROM entry_id_seq") == before


def test_without_force_it_waits_for_writers_and_names_who_is_left(moving: Streamer, old: Database, new: Database) -> None:
    move = Move(moving)
    with old.connect() as somebody, old.connect() as idle:
        somebody.autocommit = False
        somebody.execute("UPDATE big SET filler = 'last' WHERE id = 1")
        commit = threading.Timer(0.1, somebody.commit)  # the step waits, whenever that comes
        move(Options(verify=False), at="1/6", happens=commit.start)
        commit.join()
        assert f"{idle.info.backend_pid} postgres: idle" in next(line for line in move.said if "still there" in line)
    assert new.query("SELECT filler FROM big WHERE id = 1") == [("last",)]


def test_without_a_daemon_it_says_how_to_start_one(moving: Streamer) -> None:
    moving.stop()
    try:
        with pytest.raises(UsageError, match="start it: streamer run"):
            Move(moving)()
    finally:
        moving.start_streaming()


def test_a_way_back_that_does_not_run_or_is_missing_is_told_before_anything_is_done(moving: Streamer) -> None:
    text = moving.path.read_text()
    moving.path.write_text(text.replace("[syncs.back]", "[syncs.elsewhere]"))
    refused = moving.command("cutover", "forth", "--to", "new", "--yes", succeeds=False)
    assert "the daemon does not run edge elsewhere: new -> old" in refused.stderr
    moving.path.write_text(text[: text.index("[syncs.back]")])
    refused = moving.command("cutover", "forth", "--to", "new", "--yes", succeeds=False)
    assert refused.stdout.splitlines()[0] == "[syncs.back]"
    assert "streamer setup --sync back" in refused.stderr
    moving.path.write_text(text)
