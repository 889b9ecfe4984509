"""Sequences of targets that follow those of the source."""

from __future__ import annotations

from contextlib import closing

import pytest

from streamer import sequence_session
from streamer.admin.check import check
from streamer.admin.findings import Severity
from streamer.admin.setup import setup
from streamer.capture.sequences import Selection as Sequences
from streamer.capture.sequences import SequenceReader, definition
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.errors import SourceError, TargetError
from streamer.model import TableName
from streamer.report import EdgeReport, SequencesReport
from streamer.session import connect
from streamer.sinks.postgres_sequences import SequenceWriter
from tests.configs import make_config
from tests.conftest import Pair
from tests.integration.streams import daemon_running, tuned_back
from tests.servers import Database
from tests.waiting import wait_for

ODD = 'Odd "na%me'


@pytest.fixture
def shop(pair: Pair) -> Pair:
    """A source with sequences of every kind: of serial and identity columns, free ones, one that counts down."""
    source, _ = pair
    source.execute("CREATE TABLE orders (id serial PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY)")
    source.execute("CREATE SEQUENCE invoices START WITH 100 INCREMENT BY 5")
    source.execute('CREATE SEQUENCE "Odd ""na%me" INCREMENT BY -3 MINVALUE -1000 MAXVALUE -1')
    source.execute("CREATE SEQUENCE left_out")
    source.execute("CREATE SCHEMA other")
    source.execute("CREATE SEQUENCE other.far")
    source.execute("CREATE SEQUENCE other.drawn")
    source.execute("CREATE TABLE later (id int PRIMARY KEY DEFAULT nextval('other.drawn'))")
    return pair


def config_for(source: Database, target: str) -> Config:
    return make_config({"a": source.url, "b": target}, tables=["public.*"], exclude=["left_out"], sequences=True)


def run_once(config: Config) -> SequencesReport:
    with tuned_back():
        daemon = Daemon(config, once=True)
        daemon.run()
        (edge,) = daemon.report()[0].edges
        assert edge.sequences is not None
        return edge.sequences


def following(database: Database, name: str) -> int:
    (row,) = database.query("SELECT nextval(%s::regclass)", [name])
    return int(str(row[0]))


def found(config: Config, about: str) -> list[str]:
    return [f"{f.severity}: {f.reason}; {f.remedy}" for f in check(config) if about in f.object and f.severity is not Severity.OK]


def test_sequences_of_every_kind_follow(shop: Pair) -> None:
    source, target = shop
    config = config_for(source, target.url)
    setup(config, None, lambda line: None)
    source.execute("INSERT INTO orders SELECT FROM generate_series(1, 7)")
    source.execute("INSERT INTO later SELECT FROM generate_series(1, 4)")
    source.execute("SELECT nextval('invoices'), nextval('invoices'), nextval('left_out'), nextval('other.far')")
    source.execute("""SELECT nextval('"Odd ""na%me"'), nextval('"Odd ""na%me"')""")
    told = run_once(config)
    assert (told.number, told.problem) == (5, None)
    assert following(target, "orders_id_seq") == 8
    assert following(target, "orders_n_seq") == 8
    assert following(target, "invoices") == 110
    assert following(target, '"Odd ""na%me"') == -7
    assert following(target, "other.drawn") == 5
    assert target.query("SELECT 1 FROM pg_class WHERE relname IN ('left_out', 'far')") == []


def test_a_target_is_never_set_back(shop: Pair) -> None:
    source, target = shop
    config = config_for(source, target.url)
    setup(config, None, lambda line: None)
    target.execute("""SELECT setval('invoices', 900), setval('"Odd ""na%me"', -900)""")
    source.execute("""SELECT nextval('invoices'), nextval('"Odd ""na%me"')""")
    run_once(config)
    assert following(target, "invoices") == 905
    assert following(target, '"Odd ""na%me"') == -903


def test_a_sequence_that_was_set_and_not_called_is_followed_exactly(shop: Pair) -> None:
    source, target = shop
    config = config_for(source, target.url)
    setup(config, None, lambda line: None)
    source.execute("SELECT setval('invoices', 500, false)")
    assert run_once(config).moved == 1
    assert run_once(config).moved == 0
    assert following(target, "invoices") == 500


def test_a_sequence_that_cannot_follow_is_told_and_does_not_stop_the_rows(shop: Pair) -> None:
    source, target = shop
    config = config_for(source, target.url)
    setup(config, None, lambda line: None)
    target.execute("DROP SEQUENCE invoices")
    (line,) = found(config, '"public.invoices"')
    assert line.startswith("warning: does not exist; streamer setup creates it; ")
    statement = line.rpartition("; ")[2]
    assert statement.startswith('CREATE SEQUENCE "public"."invoices" ')
    source.execute("INSERT INTO orders SELECT FROM generate_series(1, 3)")
    told = run_once(config)
    assert told.problem is not None
    assert told.problem.message == 'sequence "public.invoices" does not exist on "b"'
    assert target.query("SELECT count(*) FROM orders") == [(3,)]
    assert following(target, "orders_id_seq") == 4  # the others follow
    target.execute(statement)
    assert found(config, '"public.invoices"') == []
    target.execute("ALTER SEQUENCE invoices MAXVALUE 120")
    source.execute("SELECT setval('invoices', 200)")
    told = run_once(config)
    assert told.problem is not None
    assert 'sequence "public.invoices" on "b" cannot follow to 200: setval: value 200 is out of bounds' in told.problem.message


def test_a_sequence_that_somebody_has_locked_on_the_source_does_not_stop_the_rows(
    shop: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = shop
    monkeypatch.setattr(sequence_session, "STATEMENT_TIMEOUT", "SET statement_timeout = '100ms'")
    config = config_for(source, target.url)
    setup(config, None, lambda line: None)
    assert run_once(config).problem is None
    source.execute("INSERT INTO orders SELECT FROM generate_series(1, 3)")
    with source.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("DROP SEQUENCE invoices")
        told = run_once(config)
    assert told.problem is not None
    assert "statement timeout" in told.problem.message
    assert target.query("SELECT count(*) FROM orders") == [(3,)]


def test_a_running_sync_has_them_follow_at_a_kick(shop: Pair) -> None:
    source, target = shop
    config = config_for(source, target.url)
    setup(config, None, lambda line: None)
    with daemon_running(config) as daemon:

        def edge() -> EdgeReport:
            return daemon.report()[0].edges[0]

        wait_for(lambda: (s := edge().sequences) and s.at, "the first look at the sequences")
        source.execute("SELECT nextval('invoices')")
        number = daemon.kick("shop")["a"]
        wait_for(lambda: daemon.report()[0].kicks.done >= number, "the kick to be answered")
        assert following(target, "invoices") == 105


def test_roles_that_may_not_read_or_set_are_told_what_to_grant(shop: Pair) -> None:
    source, target = shop
    setup(config_for(source, target.url), None, lambda line: None)
    source.execute("SELECT nextval('invoices')")
    for database in shop:
        database.execute("CREATE ROLE clerk LOGIN PASSWORD 'secret'")
        database.execute("GRANT USAGE ON SCHEMA public TO clerk")
    read, written = (database.server.url(database.name, "clerk", "secret") for database in shop)
    chosen = Sequences(lambda name: str(name) == "public.invoices", lambda name: False)
    with closing(SequenceReader("a", source.url, chosen)) as reader:
        states = reader.read()
    assert [(s.name, s.last, s.called, s.increment) for s in states] == [(TableName("public", "invoices"), 100, True, 5)]
    with (
        closing(SequenceReader("a", read, chosen)) as reader,
        pytest.raises(SourceError, match="clerk may not read it") as denied,
    ):
        reader.read()
    assert denied.value.hint == 'GRANT SELECT ON SEQUENCE "public"."invoices" TO "clerk"'
    with closing(SequenceWriter("b", written)) as writer, pytest.raises(TargetError, match="clerk may not set it") as refused:
        writer.advance(states)
    assert refused.value.hint == 'GRANT SELECT, UPDATE ON SEQUENCE "public"."invoices" TO "clerk"'


def test_the_statement_for_a_missing_sequence_makes_the_same_one(shop: Pair) -> None:
    source, target = shop
    source.execute("CREATE SEQUENCE small AS smallint START 7 CACHE 3 CYCLE")
    for name in ("small", ODD):
        with connect("a", source.url, application="test") as connection:
            target.execute(definition(connection, TableName("public", name), target.server.version))
    query = (
        "SELECT start_value, min_value, max_value, increment_by, cycle, cache_size, data_type::text FROM pg_sequences "
        "WHERE sequencename = ANY(%s) ORDER BY sequencename"
    )
    assert target.query(query, [["small", ODD]]) == source.query(query, [["small", ODD]])


def test_sources_draw_numbers_of_their_own(shop: Pair) -> None:
    source, other = shop
    config = make_config(
        {"a": source.url, "b": other.url},
        syncs={"shop": {"sources": ["a", "b"], "tables": ["orders"], "sequences": True}},
    )
    told = [f"{f.severity}: {f.reason}" for f in check(config) if f.object == 'sync "shop"']
    assert "ok: does not keep sequences in step between a, b: each draws numbers of its own" in told
    assert "warning: sequences = true does nothing: no target has sequences that could follow" in told
