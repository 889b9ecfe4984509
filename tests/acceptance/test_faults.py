"""What goes wrong with slots, publications, tables, rows and servers: one line with the remedy, and nothing skipped over.

Every fault is made on real servers under a running daemon, and seen as a user sees it: in `status`, and in the log. Where curing
the fault is enough, the stream must go on by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamer.model import LSN
from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import rows, wait_until_same
from tests.conftest import Databases
from tests.proxy import Proxy
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for

ALL = "SELECT * FROM t ORDER BY id"
SLOT = "streamer_shop_a"
DROP_SLOT = f"SELECT pg_drop_replication_slot('{SLOT}')"


def make_table(database: Database) -> None:
    """Make the table t, with rows."""
    database.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i")


@pytest.fixture
def shop(tmp_path: Path, source15: Database, target18: Database) -> Iterator[Streamer]:
    """15 to 18 with the table t, set up."""
    make_table(source15)
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}) as streamer:
        yield streamer.setup()


@pytest.fixture
def fan(tmp_path: Path, source15: Database, target18: Database) -> Iterator[Streamer]:
    """15 to 18 and an SQLite file with the table t, set up and streaming."""
    make_table(source15)
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{tmp_path}/shop.sqlite"}
    with Streamer(tmp_path, nodes, targets=["b", "s"]) as streamer:
        yield streamer.setup().start_streaming()


def expect_in_status(streamer: Streamer, words: str, remedy: str, state: str) -> None:
    """Wait for the problem, and see that `status` shows it with its remedy, in one line."""
    streamer.wait_for_problem(words)
    (line,) = [line for line in streamer.status() if line["target"] == "b"]
    assert (line["state"], words in line["error"], remedy in line["remedy"]) == (state, True, True), line
    assert "\n" not in line["error"] + line["remedy"]


# -- slots -------------------------------------------------------------------------------------------------------------------------


def advance_slot(source: Database) -> None:
    source.execute(f"SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())")


def recreate_slot(source: Database) -> None:
    source.execute(DROP_SLOT)
    source.execute(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")


SLOT_FAULTS = [
    pytest.param(lambda source: source.execute(DROP_SLOT), "does not exist", id="vanished"),
    pytest.param(recreate_slot, "created anew or advanced", id="created anew"),
    pytest.param(advance_slot, "created anew or advanced", id="advanced"),
]


@pytest.mark.parametrize("running", [False, True], ids=["before the start", "while running"])
@pytest.mark.parametrize(("fault", "words"), SLOT_FAULTS)
def test_changes_that_a_slot_no_longer_has_are_not_skipped_over(
    tmp_path: Path, source15: Database, target18: Database, fault: Callable[[Database], None], words: str, running: bool
) -> None:
    make_table(source15)
    with Proxy(source15.server) as proxy:
        streamer = Streamer(tmp_path, {"a": proxy.url("source"), "b": target18.url})
        with streamer.setup().start_streaming():
            source15.execute("UPDATE t SET n = 1")
            wait_until_same(source15, target18, ALL)
            if running:
                proxy.stop()
            else:
                streamer.stop()
            wait_for(lambda: not source15.query("SELECT 1 FROM pg_replication_slots WHERE active"), "the slot to be free")
            source15.execute("UPDATE t SET n = 2")
            fault(source15)
            source15.execute("UPDATE t SET n = 3 WHERE id > 5")
            if running:
                proxy.start()
            else:
                streamer.start()

            expect_in_status(streamer, words, "streamer teardown --sync shop", "failed")
            assert target18.query("SELECT DISTINCT n FROM t") == [(1,)]
            assert streamer.stop() == 1


def test_the_remedy_for_lost_changes_works(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming().stop()
    source15.execute("UPDATE t SET n = 2")
    advance_slot(source15)
    shop.start().wait_for_problem("advanced")
    shop.stop()

    shop.command("teardown", "--sync", "shop", "--yes")
    shop.command("setup", "--sync", "shop")
    shop.write_config(copy="always")
    shop.start_streaming()
    wait_until_same(source15, target18, ALL)
    assert not shop.problems()


def test_a_slot_of_another_cluster_is_refused(
    tmp_path: Path, databases: Databases, source15: Database, target18: Database, pg18: PostgresServer
) -> None:
    make_table(source15)
    elsewhere = databases.create(pg18, "source")
    make_table(elsewhere)
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}).setup().start_streaming() as streamer:
        streamer.stop()
    other = Streamer(tmp_path, {"a": elsewhere.url, "b": target18.url})
    with other.setup().start():
        expect_in_status(other, "belongs to cluster", "correct nodes.a.url", "failed")


def test_a_slot_that_lost_its_wal_is_refused(shop: Streamer, source15: Database) -> None:
    server = source15.server
    shop.start_streaming().stop()
    try:
        server.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        server.execute("SELECT pg_reload_conf()")
        for _ in range(4):
            source15.execute("UPDATE t SET n = n + 1")
            server.execute("SELECT pg_switch_wal()")
        server.execute("CHECKPOINT")
        said = shop.command("status", succeeds=False).stdout  # no stream says it yet, nor while its target is away
        assert 'slot "streamer_shop_a" is lost; changes are lost; to start over' in said
        shop.start()
        expect_in_status(shop, "has lost WAL", "streamer teardown --sync shop", "failed")
    finally:
        server.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        server.execute("SELECT pg_reload_conf()")


def test_an_idle_database_beside_a_busy_one_does_not_pin_wal(
    tmp_path: Path, pair: tuple[Database, Database], databases: Databases
) -> None:
    source, target = pair
    make_table(source)
    busy = databases.create(source.server, "busy")
    busy.execute("CREATE TABLE load (x text)")
    with Streamer(tmp_path, {"a": source.url, "b": target.url}).setup().start_streaming():
        busy.execute("INSERT INTO load SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
        (found,) = busy.query("SELECT pg_current_wal_lsn()::text")
        reached = LSN.parse(found[0]) - (2 << 20)
        query = f"SELECT confirmed_flush_lsn >= '{LSN(reached)}' FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        wait_for(lambda: source.query(query) == [(True,)], "the confirmed position to follow")


# -- publications ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pair", "which"), [("15to18", SLOT), ("18to15", SLOT), ("18to15", f"{SLOT}-in")], indirect=["pair"])
def test_a_publication_dropped_while_running_stops_the_stream(tmp_path: Path, pair: tuple[Database, Database], which: str) -> None:
    source, target = pair
    make_table(source)
    source.execute("CREATE TABLE without_key (x int)")
    with Streamer(tmp_path, {"a": source.url, "b": target.url}).setup().start_streaming() as streamer:
        source.execute(f'DROP PUBLICATION "{which}"')
        source.execute("UPDATE t SET n = 1")
        source.execute("INSERT INTO without_key VALUES (1)")

        expect_in_status(streamer, "publication", "streamer teardown --sync shop", "failed")
        streamer.stop()
        # what was changed without it cannot be read, so that making it again is not enough
        streamer.setup().start()
        streamer.wait_for_problem("publication")
        assert target.query("SELECT DISTINCT n FROM t") == [(0,)]
        assert target.query("SELECT * FROM without_key") == []


def test_a_table_taken_out_of_the_publication_is_noticed(tmp_path: Path, source18: Database, target15: Database) -> None:
    source, target = source18, target15
    make_table(source)
    with Streamer(tmp_path, {"a": source.url, "b": target.url}).setup().start_streaming() as streamer:
        source.execute(f"ALTER PUBLICATION {SLOT} DROP TABLE t")

        expect_in_status(streamer, '"public.t" is no longer in the publication', "streamer setup", "retrying")
        streamer.stop()
        streamer.start()
        streamer.wait_for_problem('"public.t" is no longer in the publication')
        streamer.setup()
        source.execute("UPDATE t SET n = 1")
        wait_until_same(source, target, ALL)


def test_a_table_added_by_setup_while_running_is_copied_whole_at_the_next_start(
    shop: Streamer, source15: Database, target18: Database
) -> None:
    shop.start_streaming()
    source15.execute("CREATE TABLE late (id int PRIMARY KEY)")
    source15.execute("INSERT INTO late VALUES (1)")
    shop.setup()
    source15.execute("INSERT INTO late VALUES (2)")
    source15.execute("UPDATE t SET n = 1")
    wait_until_same(source15, target18, ALL)
    shop.stop()
    shop.start()
    wait_until_same(source15, target18, "SELECT * FROM late ORDER BY id")


# -- tables and rows ---------------------------------------------------------------------------------------------------------------


def both(target: Database, streamer: Streamer, statement: str) -> None:
    """Run a statement on both targets."""
    target.execute(statement)
    rows(streamer.directory / "shop.sqlite", statement)


def wait_until_both_same(streamer: Streamer, source: Database, target: Database, query: str = ALL) -> None:
    for node in (target, streamer.directory / "shop.sqlite"):
        wait_until_same(source, node, query)
    wait_for(lambda: not streamer.problems(), "the daemon to be content")


def test_a_column_added_on_the_source_waits_for_the_targets(fan: Streamer, source15: Database, target18: Database) -> None:
    source15.execute("ALTER TABLE t ADD COLUMN extra text")
    source15.execute("UPDATE t SET extra = 'x', n = n + 1")
    wait_for(lambda: len([p for p in fan.problems() if "extra" in p]) == 2, "both targets to miss the column")
    assert {line["state"] for line in fan.status()} == {"retrying"}
    both(target18, fan, "ALTER TABLE t ADD COLUMN extra text")

    wait_until_both_same(fan, source15, target18)


def test_a_column_dropped_on_the_source_keeps_its_values_on_the_targets(
    fan: Streamer, source15: Database, target18: Database
) -> None:
    both(target18, fan, "ALTER TABLE t ADD COLUMN left_alone int DEFAULT 7")
    source15.execute("ALTER TABLE t ADD COLUMN extra text")
    both(target18, fan, "ALTER TABLE t ADD COLUMN extra text")
    source15.execute("UPDATE t SET extra = 'x'")
    wait_until_both_same(fan, source15, target18, "SELECT id, n, extra FROM t ORDER BY id")
    source15.execute("ALTER TABLE t DROP COLUMN extra")
    source15.execute("UPDATE t SET n = n + 1")
    source15.execute("INSERT INTO t VALUES (11, 0)")

    wait_until_both_same(fan, source15, target18, "SELECT id, n FROM t ORDER BY id")
    for node in (target18, fan.directory / "shop.sqlite"):
        assert rows(node, "SELECT DISTINCT left_alone, extra FROM t ORDER BY extra") in (
            [(7, None), (7, "x")],
            [(7, "x"), (7, None)],
        )


def test_a_column_dropped_on_the_targets_is_an_error_that_names_it(fan: Streamer, source15: Database, target18: Database) -> None:
    both(target18, fan, "ALTER TABLE t DROP COLUMN n")
    source15.execute("UPDATE t SET n = n + 1")
    wait_for(lambda: len([p for p in fan.problems() if '"n"' in p]) == 2, "both targets to miss the column")
    both(target18, fan, "ALTER TABLE t ADD COLUMN n integer")  # a type that STRICT tables know

    source15.execute("UPDATE t SET n = n + 1")
    wait_until_both_same(fan, source15, target18)


def test_a_column_retyped_on_the_target_refuses_rows_until_it_is_cured(
    shop: Streamer, source15: Database, target18: Database
) -> None:
    shop.start_streaming()
    target18.execute("ALTER TABLE t ALTER COLUMN n TYPE smallint")
    source15.execute("UPDATE t SET n = 100000 + id")
    expect_in_status(shop, "smallint", "cure", "retrying")
    target18.execute("ALTER TABLE t ALTER COLUMN n TYPE bigint")

    wait_until_same(source15, target18, ALL)


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json"])
def test_a_column_retyped_on_the_source_is_followed_once_the_target_takes_its_values(
    tmp_path: Path, source15: Database, target18: Database, capture: str
) -> None:
    make_table(source15)
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}, capture=capture).setup().start_streaming() as streamer:
        source15.execute("ALTER TABLE t ALTER COLUMN n TYPE text USING 'no ' || n")
        source15.execute("UPDATE t SET n = n || ' more'")
        expect_in_status(streamer, "invalid input syntax", "cure", "retrying")
        target18.execute("ALTER TABLE t ALTER COLUMN n TYPE text USING n::text")

        wait_until_same(source15, target18, ALL)


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json"])
def test_a_row_that_a_constraint_refuses_stops_its_edge_and_no_other(
    tmp_path: Path, source15: Database, target18: Database, capture: str
) -> None:
    make_table(source15)
    file = tmp_path / "shop.sqlite"
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{file}"}
    with Streamer(tmp_path, nodes, targets=["b", "s"], capture=capture).setup().start_streaming() as streamer:
        target18.execute("ALTER TABLE t ADD CONSTRAINT small CHECK (n < 5)")
        source15.execute("UPDATE t SET n = 1")
        source15.execute("UPDATE t SET n = 9 WHERE id = 3")
        source15.execute("UPDATE t SET n = 2 WHERE id = 4")
        wait_until_same(source15, file, ALL)
        expect_in_status(streamer, "small", "streamer tries again by itself", "retrying")
        (problem,) = streamer.problems()
        assert '"public.t" on "b" refuses the update of' in problem
        assert "3" in problem
        assert target18.query("SELECT n FROM t WHERE id = 3") != [(9,)]
        target18.execute("ALTER TABLE t DROP CONSTRAINT small")

        wait_until_same(source15, target18, ALL)
        wait_for(lambda: not streamer.problems(), "the daemon to be content")


def test_a_table_dropped_on_a_target_is_an_error_until_it_is_back(fan: Streamer, source15: Database, target18: Database) -> None:
    both(target18, fan, "ALTER TABLE t RENAME TO gone")
    source15.execute("UPDATE t SET n = n + 1")
    wait_for(lambda: len([p for p in fan.problems() if '"public.t"' in p]) == 2, "both targets to miss the table")
    both(target18, fan, "ALTER TABLE gone RENAME TO t")

    wait_until_both_same(fan, source15, target18)


# -- servers -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def sender_timeout(server: PostgresServer, timeout: str) -> Iterator[None]:
    """The server gives up silent readers after `timeout` while the context lasts."""
    server.execute(f"ALTER SYSTEM SET wal_sender_timeout = '{timeout}'")
    server.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        server.execute("ALTER SYSTEM RESET wal_sender_timeout")
        server.execute("SELECT pg_reload_conf()")


def test_a_blocked_target_does_not_cut_the_replication_connection(shop: Streamer, source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE wide (id int PRIMARY KEY, x text)")
    shop.setup()
    with sender_timeout(source15.server, "1s"), target18.connect() as locker:
        shop.start_streaming()
        locker.execute("BEGIN; LOCK TABLE wide")
        for _ in range(5):  # more than the queue holds, in several transactions: a group takes a part of them
            source15.execute(
                "INSERT INTO wide SELECT (SELECT count(*) FROM wide) + i, repeat(md5(i::text), 40000) FROM generate_series(1, 12) i"
            )
        query = "SELECT pid, clock_timestamp() FROM pg_stat_replication WHERE application_name LIKE 'streamer%'"
        ((pid, before),) = source15.query(query)
        answered = "SELECT pid FROM pg_stat_replication WHERE reply_time > %s::timestamptz + '3 s'"
        wait_for(lambda: source15.query(answered, [before]), "the server to have heard of us three seconds later")
        assert source15.query(answered, [before]) == [(pid,)]
        assert "terminating walsender process due to replication timeout" not in source15.server.log
        locker.execute("ROLLBACK")
        wait_until_same(source15, target18, "SELECT count(*), sum(length(x)) FROM wide")


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_wrong_password_is_told_and_never_shown(tmp_path: Path, source15: Database, target18: Database, end: str) -> None:
    make_table(source15)
    right, wrong = "Tr0ub4dor&3 50%", "correct-horse-battery"
    database = source15 if end == "source" else target18
    database.execute(f"CREATE ROLE streamer SUPERUSER LOGIN PASSWORD '{right}'")
    nodes = {"a": source15.url, "b": target18.url}
    node = "a" if end == "source" else "b"
    nodes[node] = database.server.url(database.name, "streamer", "X").replace(":X@", ":${SHOP_PASSWORD}@")
    with Streamer(tmp_path, nodes) as streamer:
        streamer.environment["SHOP_PASSWORD"] = "Tr0ub4dor%263%2050%25"
        streamer.setup()
        streamer.environment["SHOP_PASSWORD"] = wrong
        said = [streamer.command(verb, succeeds=False) for verb in ("check", "setup", "status")]
        streamer.start()
        expect_in_status(streamer, "password authentication failed", "~/.pgpass", "retrying")
        said.append(streamer.command("status", succeeds=False))
        database.execute(f"ALTER ROLE streamer PASSWORD '{wrong}'")
        wait_until_same(source15, target18, ALL)
        wait_for(lambda: "OK: " in streamer.command("status", succeeds=False).stdout, "the daemon to be content")
        said.append(streamer.command("status"))
    told = "".join(done.stdout + done.stderr for done in said) + streamer.log
    for secret in (right, wrong, "Tr0ub4dor"):
        assert secret not in told
