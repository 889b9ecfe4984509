"""Tables whose ranges were copied at different times: what was written between them, and what does not fit together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streamer.admin.teardown import teardown
from streamer.capture.snapshot import exported_snapshot
from streamer.config import Config
from streamer.errors import StreamerError
from streamer.model import KeyRange, TableName
from tests.configs import make_config
from tests.integration.streams import Running, running
from tests.integration.targets import PostgresTarget, opened
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

ALL = "SELECT id, name, md5(pad) FROM large ORDER BY id"
RECORDS = "SELECT bounds, position FROM streamer.copied_part"
LONG = "array_to_string(ARRAY(SELECT md5(i::text || n::text) FROM generate_series(1, 200) n), '')"
"""A value that is stored apart, and does not travel with an update of something else."""
WRITERS = """
CREATE TABLE writer (pid int);
CREATE FUNCTION note_writer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.writer VALUES (pg_backend_pid()); RETURN NULL; END $$
"""
NOTE_WRITER = """
CREATE TRIGGER note_writer BEFORE INSERT ON {0} FOR EACH STATEMENT EXECUTE PROCEDURE note_writer();
ALTER TABLE {0} ENABLE ALWAYS TRIGGER note_writer
"""
SESSIONS = "SELECT FROM pg_stat_activity WHERE application_name = 'streamer shop: a -> b'"
LARGE = TableName("public", "large")
NOT_YET = """
CREATE FUNCTION not_yet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.id > 500 THEN RAISE 'not yet'; END IF; RETURN NEW; END $$;
CREATE TRIGGER not_yet BEFORE INSERT ON large FOR EACH ROW EXECUTE PROCEDURE not_yet();
ALTER TABLE large ENABLE ALWAYS TRIGGER not_yet
"""


def config_of(source: Database, target: Database, capture: str = "auto") -> Config:
    return make_config({"a": source.url, "b": target.url}, capture=capture, copy_range_rows=100)


@contextmanager
def half_copied(source: Database, target: Database, config: Config) -> Iterator[Running]:
    """Streams whose target has the rows up to 500 of a table of 1,000, and refuses others until the trigger goes."""
    for node in (source, target):
        node.execute("CREATE TABLE large (id int PRIMARY KEY, name text, pad text)")
    source.execute(f"INSERT INTO large SELECT i, 'n' || i, CASE WHEN i % 100 = 0 THEN {LONG} END FROM generate_series(1, 1000) i")
    source.execute("VACUUM ANALYZE large")
    target.execute(NOT_YET)
    with running(config, wait=False) as streams:
        streams.wait_for_problem("not yet")
        wait_for(lambda: len(target.query(RECORDS)) >= 4, "half of the ranges")
        yield streams


MOVED = "UPDATE large SET id = -700 WHERE id = 701; UPDATE large SET id = 1050 WHERE id = 51; DELETE FROM large WHERE id = 800"
MOVED_LONG = "UPDATE large SET id = -700 WHERE id = 700"
EMPTIED = "TRUNCATE large; INSERT INTO large VALUES (3, 'new'), (600, 'newer')"
SWAPPED = (
    "UPDATE large SET name = 'x' WHERE id = 10; UPDATE large SET name = 'n10' WHERE id = 900; "
    "UPDATE large SET name = 'n900' WHERE id = 10"
)


@pytest.mark.parametrize(
    ("between", "capture", "restarts"),
    [
        pytest.param(MOVED, "auto", False, id="rows moved"),
        pytest.param(MOVED, "trigger", False, id="rows moved, captured by triggers"),
        pytest.param(MOVED_LONG, "auto", True, id="a row moved without its long value"),
        pytest.param(MOVED_LONG, "trigger", False, id="triggers tell long values"),
        pytest.param(EMPTIED, "auto", True, id="truncated"),
        pytest.param(EMPTIED, "trigger", True, id="truncated, captured by triggers"),
        pytest.param(SWAPPED, "auto", True, id="unique values swapped"),
    ],
)
def test_what_is_written_between_two_copies_of_ranges(
    source15: Database, target18: Database, between: str, capture: str, restarts: bool
) -> None:
    with half_copied(source15, target18, config_of(source15, target18, capture)) as streams:
        for statement in between.split("; "):
            source15.execute(statement)
        if between == SWAPPED:
            target18.execute("ALTER TABLE large ADD UNIQUE (name)")
        target18.execute("DROP TRIGGER not_yet ON large")
        streams.wait_until_streaming()
        source15.execute("UPDATE large SET name = 'last' WHERE id = 3")
        wait_for_equal(lambda: target18.query(ALL), source15.query(ALL), "the rows")
        assert not streams.problems
        assert len({position for _, position in target18.query(RECORDS)}) == (0 if restarts else 2)


def test_teardown_takes_away_what_was_copied_of_a_table_that_is_not_whole(source15: Database, target18: Database) -> None:
    config = config_of(source15, target18)
    with half_copied(source15, target18, config):
        pass
    said: list[str] = []
    teardown(config, None, force=False, confirm=lambda lines: True, say=said.append)
    assert 'b: removed the part of table "public.large" that was copied' in said
    assert target18.query("SELECT count(*) FROM large") == [(0,)]


def test_ranges_share_sessions_on_the_target_which_end_with_the_copy(source15: Database, target18: Database) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE large (id int PRIMARY KEY)")
    source15.execute("INSERT INTO large SELECT generate_series(1, 1000)")
    target18.execute(WRITERS)
    target18.execute(NOTE_WRITER.format("large"))
    with running(config_of(source15, target18)):
        assert target18.query("SELECT count(*) >= 10, count(DISTINCT pid) <= 2 FROM writer") == [(True, True)]
        wait_for(lambda: len(target18.query(SESSIONS)) == 1, "the sessions of the copy to end")
    assert target18.query("SELECT count(*) FROM large") == [(1000,)]


def test_no_session_stays_when_ranges_are_forgotten_without_a_copy(target15: Database) -> None:
    with opened(PostgresTarget(target15)) as sink:
        assert sink.ranges is not None
        sink.ranges.forget(LARGE)
        wait_for(lambda: len(target15.query(SESSIONS)) == 1, "the session that forgot to end")


def test_small_tables_share_sessions_on_the_target_which_end_with_the_copy(source15: Database, target18: Database) -> None:
    """Each had one of its own, and had its catalog read with queries planned anew: half a minute for a thousand tables."""
    tables = [f"small{n}" for n in range(10)]
    target18.execute(WRITERS)
    for table in tables:
        for node in (source15, target18):
            node.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
        source15.execute(f"INSERT INTO {table} VALUES (1)")
        target18.execute(NOTE_WRITER.format(table))
    with running(config_of(source15, target18)):
        assert target18.query("SELECT count(*), count(DISTINCT pid) <= 2 FROM writer") == [(len(tables), True)]
        wait_for(lambda: len(target18.query(SESSIONS)) == 1, "the sessions of the copy to end")


def test_a_table_whose_rows_have_been_taken_is_not_locked_while_they_are_written(source15: Database) -> None:
    """The versions of copied rows are read over another connection: it waited behind a TRUNCATE, which waited for the lock."""
    source15.execute("CREATE TABLE large (id int PRIMARY KEY); INSERT INTO large SELECT generate_series(1, 10)")
    with (
        exported_snapshot("a", source15.url, lambda connection: "pgoutput", StreamerError) as snapshot,
        snapshot.rows(LARGE, ["id"]) as blocks,
    ):
        assert len(b"".join(blocks).splitlines()) == 10
        source15.execute("SET lock_timeout = '10s'; TRUNCATE large")


def test_reads_from_a_snapshot_share_a_session_and_lock_no_table_in_between(source15: Database) -> None:
    source15.execute("CREATE TABLE large (id int PRIMARY KEY); INSERT INTO large SELECT generate_series(1, 10)")
    sessions = "SELECT FROM pg_stat_activity WHERE application_name = 'streamer copy'"
    with exported_snapshot("a", source15.url, lambda connection: "pgoutput", StreamerError) as snapshot:
        for low, high in ((None, "5"), ("5", None)):
            with snapshot.rows(LARGE, ["id"], within=KeyRange("id", numeric=True, low=low, high=high)) as blocks:
                assert len(b"".join(blocks).splitlines()) == 5
        assert len(source15.query(sessions)) == 1
        source15.execute("SET lock_timeout = '5s'; ALTER TABLE large ADD n int")
    wait_for(lambda: not source15.query(sessions), "the session to end")
