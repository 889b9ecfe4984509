"""What a PostgreSQL target holds back: what belongs to a row, also where only the commit shows it, and nothing else."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from streamer.errors import ApplyError, StreamerError
from streamer.model import Change, Group
from streamer.sinks.postgres import PostgresSink
from streamer.sinks.postgres_transactions import MultiMaster
from tests.changes import group, insert, relation, table, update, write
from tests.integration.masters import LATEST
from tests.integration.targets import EDGE, PostgresTarget, opened
from tests.servers import Database, PostgresServer

LINES = table("lines", id="integer", note="text")
R = relation(LINES)


@pytest.fixture(params=["target15", "target18"])
def target(request: pytest.FixtureRequest) -> PostgresTarget:
    made = PostgresTarget(request.getfixturevalue(request.param))
    made.create(LINES)
    return made


def fires(target: PostgresTarget, body: str, when: str = "BEFORE INSERT OR UPDATE ON lines") -> None:
    """Make a trigger that fires for replicated rows too."""
    constraint = " CONSTRAINT" if "DEFERR" in when else ""
    target.database.execute(f"CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$")
    target.database.execute(f"CREATE{constraint} TRIGGER look {when} FOR EACH ROW EXECUTE PROCEDURE look()")
    target.database.execute("ALTER TABLE lines ENABLE ALWAYS TRIGGER look")


def pairs(target: PostgresTarget) -> None:
    """Have every commit look whether a line has a partner: the line with the negative number."""
    fires(
        target,
        "IF NOT EXISTS (SELECT 1 FROM public.lines WHERE id = -NEW.id) THEN RAISE 'line % has no partner', NEW.id; END IF;",
        "AFTER INSERT OR UPDATE ON lines DEFERRABLE INITIALLY DEFERRED",
    )


def transactions(*changes: list[Change], to: int = 200) -> Group:
    """A group of whole transactions."""
    ends = [sum(map(len, changes[: n + 1])) for n in range(len(changes))]
    return replace(group(*(change for transaction in changes for change in transaction), to=to), ends=ends)


def pair(number: int) -> list[Change]:
    return [insert(R, str(number), "x"), insert(R, str(-number), "x")]


def held(target: PostgresTarget) -> list[tuple[str, str | None]]:
    """Keys and errors of what is held."""
    return [(json.loads(key or "")["id"], error) for _, key, _, error in target.held()]


def ids(target: PostgresTarget) -> list[int]:
    return [number for (number,) in target.database.query("SELECT id FROM lines ORDER BY id")]


def test_a_transaction_that_its_commit_refuses_is_held_whole(target: PostgresTarget) -> None:
    pairs(target)
    alone = [insert(R, "7", "x"), insert(R, "8", "x"), insert(R, "-8", "x")]
    with opened(target, lambda table: True) as sink:
        written = write(sink, transactions(pair(1), alone, pair(2), [update(R, "8", "y")], pair(3)))
        assert (written.inserted, written.quarantined) == (6, 4)
        # a deferred constraint still may be broken for a while
        assert write(sink, transactions(pair(4), [insert(R, "7", "again")], to=300)).quarantined == 1
    assert ids(target) == [-4, -3, -2, -1, 1, 2, 3, 4]
    refused = "line 7 has no partner"
    assert held(target) == [("7", refused), ("8", refused), ("-8", refused), ("8", None), ("7", None)]


def test_without_a_quarantine_a_refused_commit_is_an_error(target: PostgresTarget) -> None:
    pairs(target)
    with opened(target) as sink, pytest.raises(StreamerError, match="line 7 has no partner"):
        write(sink, transactions(pair(1), [insert(R, "7", "x")]))
    assert ids(target) == []


def test_a_large_transaction_that_its_commit_refuses_stops_the_edge(target: PostgresTarget) -> None:
    pairs(target)
    with opened(target, lambda table: True) as sink:
        write(sink, group(insert(R, "7", "x"), complete=False))
        with pytest.raises(ApplyError, match="refuses the commit of a large transaction: line 7 has no partner"):
            write(sink, group(*pair(8)))
    assert (ids(target), held(target)) == ([], [])


def says(target: PostgresTarget) -> None:
    """Have a trigger raise the error whose code stands in the note."""
    fires(target, "IF length(NEW.note) = 5 THEN RAISE 'not %', NEW.note USING ERRCODE = NEW.note; END IF;")


def test_what_a_trigger_says_of_a_row_is_held(target: PostgresTarget) -> None:
    says(target)
    states = ["P0001", "22023", "23514", "MY001", "45000"]
    bad = [insert(R, str(n), state) for n, state in enumerate(states, 100)]
    with opened(target, lambda table: True) as sink:
        write(sink, group(*(insert(R, str(n), "good") for n in range(100)), *bad))
    assert [error for _, error in held(target)] == [f"not {state}" for state in states]
    assert len(ids(target)) == 100


def test_what_is_no_matter_of_a_row_stops_the_edge(target: PostgresTarget) -> None:
    says(target)
    for state in ("42501", "53100", "57014", "40001", "25006", "0A000"):
        with opened(target, lambda table: True) as sink, pytest.raises(StreamerError, match=f"not {state}"):
            write(sink, group(insert(R, "1", "good"), insert(R, "2", state)))
    assert (ids(target), held(target)) == ([], [])


def test_values_that_fit_no_column_constraint_or_index_are_held(target: PostgresTarget) -> None:
    noise = "".join(random.Random(1).choices("0123456789abcdef", k=20_000))
    alterations = {
        "ADD UNIQUE (note)": noise,
        "ALTER COLUMN note TYPE varchar(3)": "four",
        "ADD CHECK (note <> 'six')": "six",
        "ALTER COLUMN note TYPE integer USING id": "two",
    }
    for number, (alteration, value) in enumerate(alterations.items(), 10):
        target.database.execute(f"ALTER TABLE lines {alteration}")
        with opened(target, lambda table: True) as sink:
            write(sink, group(insert(R, str(number), str(number)), insert(R, f"{number}0", value), to=100 * number))
    assert ids(target) == [10, 11, 12, 13]
    for (_, error), words in zip(held(target), ["index row", "too long", "check constraint", "invalid input"], strict=True):
        assert words in (error or "")


def test_statements_behind_a_refused_one_are_prepared_when_they_are_needed(target: PostgresTarget) -> None:
    """They travel together, and the server does not look at what comes after an error."""
    target.database.execute("ALTER TABLE lines ADD CHECK (note <> 'bad')")
    with opened(target, lambda table: True) as sink:
        for number in range(1, 9):
            write(sink, group(insert(R, str(number), "bad"), to=100 * number))
        write(sink, group(insert(R, "9", "bad"), insert(R, "10", "good"), to=1000))
    assert (len(held(target)), ids(target)) == (9, [10])


@pytest.mark.parametrize("refused", [1, 2, 3, 4, 5, 6, 40])
def test_statements_are_prepared_anew_after_each_of_many_refusals_in_a_group(target: PostgresTarget, refused: int) -> None:
    """psycopg looks for a rollback only in statements that are new to it."""
    target.database.execute("ALTER TABLE lines ADD CHECK (note <> 'bad')")
    with opened(target, lambda table: True) as sink:
        for number in range(8):
            ids_of = range(100 * number + 1, 100 * number + 1 + refused)
            rows = [insert(R, str(id_), "bad") for id_ in ids_of]
            write(sink, group(*rows, insert(R, str(100 * number + 99), "good"), to=1000 * (number + 1)))
    assert (len(held(target)), ids(target)) == (8 * refused, [100 * number + 99 for number in range(8)])


def test_a_character_that_the_encoding_lacks_is_held(pg15: PostgresServer) -> None:
    pg15.execute("CREATE DATABASE held_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        latin = PostgresTarget(Database(pg15, "held_latin1"))
        latin.create(LINES)
        with opened(latin, lambda table: True) as sink:
            write(sink, group(insert(R, "1", "Zürich"), insert(R, "2", "5 €")))
        assert [(row and json.loads(row)) for _, _, row, _ in latin.held()] == [{"id": "2", "note": "5 €"}]
        assert latin.rows(LINES) == [("1", "Zürich")]
    finally:
        pg15.execute("DROP DATABASE held_latin1")


def test_a_sync_with_several_sources_wants_the_quarantine_empty(target: PostgresTarget) -> None:
    target.database.execute("ALTER TABLE lines ADD CHECK (id < 5)")
    with opened(target, lambda table: True) as sink:
        write(sink, group(insert(R, "7", "x")))
    masters = MultiMaster(lambda name: LATEST, lambda name: pytest.fail(name), 5.0, 30, 7, True)
    sink = PostgresSink(EDGE, target.database.url, masters)
    with pytest.raises(StreamerError, match='"b" holds changes in quarantine from when the sync had one source'):
        sink.open()
    sink.close()
