"""`streamer slots`: what is listed, made, dropped, skipped and looked into, on real servers with both plugins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import pytest

from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.admin.slots import drop, find, print_slots
from streamer.admin.slots_advance import advance
from streamer.admin.slots_create import create
from streamer.admin.slots_peek import peek, print_records
from streamer.capture.assemble import Interest
from streamer.capture.slot import SlotSource
from streamer.config import Config
from streamer.errors import SourceError, TakenError, UsageError
from streamer.ports import IDLE_BYTES
from streamer.report import SlotReport
from tests.configs import make_config
from tests.integration.streams import running
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for

SLOT = "streamer_shop_a"
TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text)"


def silent(line: str) -> None: ...


def yes(lines: Sequence[str]) -> bool:
    return True


def no(lines: Sequence[str]) -> bool:
    return False


@pytest.fixture
def config(source18: Database, target15: Database) -> Config:
    source18.execute(TABLE)
    made = make_config({"a": source18.url, "b": target15.url})
    setup(made, None, silent)
    return made


@pytest.fixture
def wal2json(source15: Database, target18: Database) -> Config:
    source15.execute(TABLE)
    made = make_config({"a": source15.url, "b": target18.url}, capture="wal2json")
    setup(made, None, silent)
    return made


def slot(config: Config, name: str = SLOT) -> SlotReport:
    return next(s for s in find(config).slots if s.slot == name)


def ids(database: Database) -> list[int]:
    return [number for (number,) in database.query("SELECT id FROM t ORDER BY id")]


# -- list ------------------------------------------------------------------------------------------------------------------------


def test_every_slot_is_listed_once_ours_and_others(
    config: Config, source18: Database, target15: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    target15.execute("SELECT pg_create_logical_replication_slot('somebody', 'test_decoding')")
    source18.execute("SELECT pg_create_physical_replication_slot('a_standby')")
    source18.execute("INSERT INTO t VALUES (1, 'x')")
    try:
        found = find(config)
    finally:
        source18.execute("SELECT pg_drop_replication_slot('a_standby')")
    assert found.problems == []
    ours, theirs = found.slots
    assert (ours.node, ours.slot, ours.plugin, ours.active, ours.sync, ours.source) == ("a", SLOT, "pgoutput", False, "shop", "a")
    assert (theirs.node, theirs.slot, theirs.plugin, theirs.sync) == ("b", "somebody", "test_decoding", "")
    assert ours.retained_bytes is not None
    assert ours.lag_bytes is not None
    assert ours.retained_bytes >= ours.lag_bytes > 0
    assert (ours.wal_status, ours.failover, ours.temporary) == ("reserved", False, False)
    assert ours.inactive_since is not None  # 17 and later
    assert theirs.inactive_since is None
    print_slots(found, as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert "shop: a" in printed[1]
    print_slots(found, as_json=True)
    assert [s["slot"] for s in json.loads(capsys.readouterr().out)["slots"]] == [SLOT, "somebody"]


def test_two_nodes_in_one_cluster_do_not_double_its_slots(source18: Database, target18: Database) -> None:
    source18.execute(TABLE)
    config = make_config({"a": source18.url, "b": target18.url.replace("127.0.0.1", "localhost")})
    setup(config, None, silent)
    target18.execute("SELECT pg_create_logical_replication_slot('other', 'test_decoding')")
    assert [(s.node, s.slot, s.sync) for s in find(config).slots] == [("a", SLOT, "shop"), ("b", "other", "")]


def test_a_node_that_is_away_is_told_and_the_others_are_listed(source18: Database) -> None:
    source18.execute("SELECT pg_create_logical_replication_slot('other', 'test_decoding')")
    found = find(make_config({"a": source18.url, "b": "postgresql://x@127.0.0.1:1/b"}))
    assert [s.slot for s in found.slots] == ["other"]
    assert [type(problem).__name__ for problem in found.problems] == ["ConnectError"]


# -- create and drop -------------------------------------------------------------------------------------------------------------


def test_a_slot_is_dropped_after_a_yes_and_made_again(config: Config) -> None:
    asked: list[str] = []

    def ask(lines: Sequence[str]) -> bool:
        asked.extend(lines)
        return len(asked) > 2

    assert not drop(config, "a", SLOT, force=False, confirm=ask, say=silent)
    assert 'the sync "shop" reads it' in asked[1]
    assert drop(config, "a", SLOT, force=False, confirm=ask, say=silent)
    assert find(config).slots == []
    create(config, "shop", None, silent, failover=False)
    assert slot(config).failover is False


def test_a_slot_that_is_read_is_dropped_by_force_only_and_the_stream_says_how_to_go_on(config: Config) -> None:
    with running(config, set_up=False) as streams:
        with pytest.raises(UsageError, match=r"is being read by process \d+ \(sync \"shop\"\); end the reader first.*--force"):
            drop(config, "a", SLOT, force=False, confirm=yes, say=silent)
        assert drop(config, "a", SLOT, force=True, confirm=yes, say=silent)
        streams.wait_for_problem('slot "streamer_shop_a" does not exist on "a"')


def test_failover_slots_are_made_and_existing_ones_altered(config: Config, wal2json: Config) -> None:
    said: list[str] = []
    create(config, "shop", "a", said.append, failover=True)
    assert slot(config).failover is True
    assert said[-1] == f'a: slot "{SLOT}" is a failover slot now'
    drop(config, "a", SLOT, force=False, confirm=yes, say=silent)
    create(config, "shop", "a", silent, failover=True)
    assert slot(config).failover is True
    with pytest.raises(SourceError, match='node "a" is PostgreSQL 15, which has no failover slots'):
        create(wal2json, "shop", None, silent, failover=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: drop(c, "z", SLOT, force=False, confirm=yes, say=silent), 'the config has no node "z"; it has a, b, s'),
        (lambda c: drop(c, "s", SLOT, force=False, confirm=yes, say=silent), 'node "s" is sqlite, which has no slots'),
        (lambda c: drop(c, "a", "x", force=False, confirm=yes, say=silent), 'node "a" has no logical slot "x"; it has none'),
        (lambda c: create(c, "shop", "b", silent, failover=False), 'node "b" is no source of sync "shop"; its sources are a'),
        (lambda c: create(c, "z", None, silent, failover=False), 'the config has no sync "z"; it has shop'),
    ],
)
def test_what_is_not_there_is_refused(source18: Database, call: Callable[[Config], object], message: str) -> None:
    config = make_config({"a": source18.url, "b": source18.url, "s": "sqlite:///s.sqlite"}, targets=["b", "s"])
    with pytest.raises(UsageError) as caught:
        call(config)
    assert str(caught.value).startswith(message)


# -- peek ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["config", "wal2json"])
def test_peek_shows_what_comes_next_and_consumes_nothing(
    plugin: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    config: Config = request.getfixturevalue(plugin)
    source = request.getfixturevalue("source18" if plugin == "config" else "source15")
    assert peek(config, "a", SLOT, 10) == []
    source.execute("INSERT INTO t VALUES (1, 'x'), (2, NULL)")
    source.execute("UPDATE t SET v = 'y' WHERE id = 1; DELETE FROM t WHERE id = 2; TRUNCATE t")
    before = slot(config).confirmed
    for _ in range(2):
        found = peek(config, "a", SLOT, 10)
        assert [(r["kind"], r["table"], r["new"]) for r in found] == [
            ("insert", "public.t", {"id": "1", "v": "x"}),
            ("insert", "public.t", {"id": "2", "v": None}),
            ("update", "public.t", {"id": "1", "v": "y"}),
            ("delete", "public.t", None),
            ("truncate", "public.t", None),
        ]
    assert (slot(config).confirmed, len(find(config).slots)) == (before, 1)
    assert len(peek(config, "a", SLOT, 3)) == 3
    print_records(found, as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("transaction ")
    assert printed[0].endswith(" on a")
    assert printed[1:3] == ["  insert public.t (id='1', v='x')", "  insert public.t (id='2', v=NULL)"]
    assert len(printed) == 7  # two transactions with five changes


@pytest.mark.parametrize("plugin", ["config", "wal2json"])
def test_peek_does_not_disturb_a_reader(plugin: str, request: pytest.FixtureRequest) -> None:
    config: Config = request.getfixturevalue(plugin)
    source, target = ("source18", "target15") if plugin == "config" else ("source15", "target18")
    with running(config, set_up=False) as streams:
        reader = slot(config).active_pid
        request.getfixturevalue(source).execute("INSERT INTO t VALUES (1, 'x')")
        assert len(peek(config, "a", SLOT, 5)) <= 1  # it may have been applied and confirmed by now
        wait_for(lambda: ids(request.getfixturevalue(target)) == [1], "the row")
        assert (slot(config).active_pid, streams.problems) == (reader, [])


def test_peek_gives_the_beginning_of_a_transaction_that_is_far_larger(config: Config, source18: Database) -> None:
    source18.execute("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 50000) g")
    assert [record["new"]["id"] for record in peek(config, "a", SLOT, 2)] == ["1", "2"]


def test_slots_of_others_are_shown_as_their_plugin_says(config: Config, source18: Database) -> None:
    source18.execute("SELECT pg_create_logical_replication_slot('theirs', 'test_decoding')")
    source18.execute("SELECT pg_create_logical_replication_slot('closed', 'pgoutput')")
    source18.execute("INSERT INTO t VALUES (1, 'x')")
    texts = [record["text"] for record in peek(config, "a", "theirs", 10)]
    assert "table public.t: INSERT: id[integer]:1 v[text]:'x'" in texts
    with pytest.raises(UsageError, match="its plugin pgoutput cannot be read without knowing for what"):
        peek(config, "a", "closed", 10)


# -- advance ---------------------------------------------------------------------------------------------------------------------


def test_advance_tells_what_is_skipped_and_the_stream_goes_on_after_it(
    config: Config, source18: Database, target15: Database
) -> None:
    assert run(config, sync=None, source=None, once=True) == []
    source18.execute("INSERT INTO t VALUES (1, 'x'), (2, 'x')")
    source18.execute("INSERT INTO t VALUES (3, 'x')")
    told: list[str] = []
    said: list[str] = []
    assert not advance(config, "a", SLOT, "now", confirm=no, say=said.append)
    assert said == ["nothing was changed"]

    def ask(lines: Sequence[str]) -> bool:
        told.extend(lines)
        return True

    assert advance(config, "a", SLOT, "now", confirm=ask, say=said.append)
    assert "skipped for good: 2 transactions with 3 of public.t" in told[0]
    assert told[1] == "edge shop: a -> b will never have it"
    assert said[-1].startswith(f'a: advanced slot "{SLOT}" to ')
    source18.execute("INSERT INTO t VALUES (4, 'x')")
    assert run(config, sync=None, source=None, once=True) == []
    assert ids(target15) == [4]


def test_advance_to_a_position_skips_only_what_lies_before_it(wal2json: Config, source15: Database, target18: Database) -> None:
    assert run(wal2json, sync=None, source=None, once=True) == []
    source15.execute("INSERT INTO t VALUES (1, 'poison')")
    (between,) = source15.query("SELECT pg_current_wal_lsn()::text")[0]
    source15.execute("INSERT INTO t VALUES (2, 'fine')")
    assert advance(wal2json, "a", SLOT, between, confirm=yes, say=silent)
    assert run(wal2json, sync=None, source=None, once=True) == []
    assert ids(target18) == [2]


def test_advance_of_a_quiet_slot_skips_nothing_and_says_so(config: Config, source18: Database) -> None:
    source18.execute("CREATE TABLE other (id int); INSERT INTO other VALUES (1)")
    told: list[str] = []

    def ask(lines: Sequence[str]) -> bool:
        told.extend(lines)
        return True

    assert advance(config, "a", SLOT, "now", confirm=ask, say=silent)
    assert told[0].endswith("; no change of the sync is skipped")


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ("yesterday", '"yesterday" is no position; write now, or an LSN like 16/B374D848'),
        ("FFFFFF/0", 'position FFFFFF/0 lies behind the end of the WAL of "a"'),
        ("0/1", "and cannot go back to 0/1"),
    ],
)
def test_a_position_that_cannot_be_is_refused(config: Config, position: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        advance(config, "a", SLOT, position, confirm=yes, say=silent)


def test_a_slot_in_use_is_not_advanced(config: Config, source18: Database) -> None:
    with running(config, set_up=False), pytest.raises(UsageError, match=r"is being read by process \d+; pause its sync"):
        advance(config, "a", SLOT, "now", confirm=yes, say=silent)


def test_an_edge_that_is_written_keeps_its_slot_from_being_advanced(config: Config, source18: Database) -> None:
    with running(config, set_up=False) as streams:
        source18.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        wait_for(lambda: any("terminating" in p or "closed" in p for p in streams.problems) or not slot(config).active, "no reader")
        with pytest.raises((TakenError, UsageError)):
            advance(config, "a", SLOT, "now", confirm=yes, say=silent)


@pytest.fixture
def archiving(pg15: PostgresServer) -> Iterator[PostgresServer]:
    """A server that fills up a file of WAL now and then."""
    pg15.execute("ALTER SYSTEM SET archive_timeout = '1h'")
    pg15.execute("SELECT pg_reload_conf()")
    wait_for(lambda: pg15.query("SHOW archive_timeout") == [("1h",)], "the setting to be taken")
    yield pg15
    pg15.execute("ALTER SYSTEM RESET archive_timeout")
    pg15.execute("SELECT pg_reload_conf()")


@pytest.mark.usefixtures("archiving")
def test_where_each_write_fills_a_file_of_wal_nodes_that_read_each_other_note_larger_steps(
    source15: Database, target18: Database
) -> None:
    """Else one's note would make the other note something, for ever."""
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source15.url, "b": target18.url})
    setup(config, None, lambda line: None)
    alone, among = (
        SlotSource("a", config.nodes["a"], "shop", "streamer_shop_a", Interest(config.syncs["shop"].selects, echoing=nodes))
        for nodes in (0, 3)
    )
    assert alone.state().idle_bytes == IDLE_BYTES
    assert among.state().idle_bytes == 6 * (16 << 20)
