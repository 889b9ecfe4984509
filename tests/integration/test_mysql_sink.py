"""What only the MySQL sink does: locks and deadlocks, rows that LOAD DATA would bend, many rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from streamer.copytext import format_rows
from streamer.errors import ApplyError, ConnectError, SchemaError, StreamerError, TakenError, TargetError
from streamer.model import LSN, UNCHANGED, Column, Group, Identity, Kind, Relation, TableDefinition
from streamer.ports import Sink, Start, Written
from streamer.sinks import mysql_apply
from tests.changes import ITEMS, PLAIN, copy_of, delete, group, insert, relation, table, update, write
from tests.integration.targets import MysqlTarget, opened
from tests.meanwhile import meanwhile
from tests.mysql_servers import MysqlDatabase
from tests.waiting import wait_for

WAITING = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"


@pytest.fixture
def target(mariadb: MysqlDatabase) -> Iterator[MysqlTarget]:
    try:
        yield MysqlTarget(mariadb)
    finally:
        mariadb.server.start()
        mariadb.execute("SET GLOBAL innodb_lock_wait_timeout = 10")
        mariadb.execute("SET GLOBAL max_allowed_packet = 16777216")


def filled(target: MysqlTarget, definition: TableDefinition = ITEMS, rows: int = 40) -> None:
    """Make the table, with rows."""
    target.create(definition)
    of = relation(definition)
    with opened(target) as sink:
        write(sink, group(*(insert(of, str(i), "a", "1.00") for i in range(rows)), to=150))


# -- locks -------------------------------------------------------------------------------------------------------------------------


@contextmanager
def other_session(target: MysqlTarget, *statements: str) -> Iterator[Any]:
    """A cursor of another program that has begun a transaction with these statements."""
    with closing(target.database.server.connect(target.database.name)) as connection, connection.cursor() as cursor:
        for statement in ("START TRANSACTION", *statements):
            cursor.execute(statement)
        yield cursor


@contextmanager
def writing(sink: Sink, changes: Group) -> Iterator[list[Written | StreamerError]]:
    """Have another thread write the group while the context lasts; gives what came of it, once it is done."""
    done: list[Written | StreamerError] = []

    def work(_: threading.Event) -> None:
        try:
            done.append(write(sink, changes))
        except StreamerError as error:
            done.append(error)

    with meanwhile(work):
        yield done


def wait_until_blocked(target: MysqlTarget) -> None:
    wait_for(lambda: target.database.server.query(WAITING) == [(1,)], "the writer to wait for a lock")


def test_a_lock_that_is_given_up_late_is_waited_for_again(target: MysqlTarget) -> None:
    filled(target)
    target.database.execute("SET GLOBAL innodb_lock_wait_timeout = 1")
    timeouts = "SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_timeouts'"
    target.database.execute("SET GLOBAL innodb_monitor_enable = 'lock_timeouts'")
    ((before,),) = target.database.query(timeouts)
    with opened(target) as sink:
        with (
            other_session(target, "UPDATE t SET name = 'theirs' WHERE id = 7") as other,
            writing(sink, group(update(relation(ITEMS), "7", "ours", None))) as done,
        ):
            wait_for(lambda: target.database.query(timeouts) > [(before,)], "a wait to time out")
            other.execute("COMMIT")
            wait_for(lambda: done, "the group to be written")
        assert done == [Written(updated=1)]
    assert ("7", "ours", None) in target.rows(ITEMS)


def test_a_lock_that_is_never_given_up_is_an_error_with_a_remedy(target: MysqlTarget) -> None:
    filled(target)
    target.database.execute("SET GLOBAL innodb_lock_wait_timeout = 1")
    with opened(target) as sink:
        write(sink, group(update(relation(ITEMS), "1", "begun", None), complete=False))
        # what was written of the transaction cannot be written again here, so it is tried once
        with other_session(target, "UPDATE t SET name = 'theirs' WHERE id = 7"), pytest.raises(TargetError, match="SHOW ENGINE"):
            write(sink, group(update(relation(ITEMS), "7", "ours", None), to=300))
    assert target.position() == LSN(150)


def test_a_deadlock_is_tried_again(target: MysqlTarget) -> None:
    filled(target)
    # the server breaks off the transaction that has written less
    much = "UPDATE t SET price = 2 WHERE id >= 10"
    with opened(target) as sink:
        with (
            other_session(target, much, "UPDATE t SET name = 'theirs' WHERE id = 7") as other,
            writing(sink, group(update(relation(ITEMS), "6", "ours", "1"), update(relation(ITEMS), "7", "ours", "1"))) as done,
        ):
            wait_until_blocked(target)
            other.execute("UPDATE t SET name = 'theirs' WHERE id = 6")
            other.execute("COMMIT")
            wait_for(lambda: done, "the group to be written")
        assert done == [Written(updated=2)]
    assert {("6", "ours", "1"), ("7", "ours", "1")} <= set(target.rows(ITEMS))


def test_cancel_ends_a_wait_for_a_lock(target: MysqlTarget) -> None:
    filled(target)
    with (
        opened(target) as sink,
        other_session(target, "UPDATE t SET name = 'theirs' WHERE id = 7"),
        writing(sink, group(update(relation(ITEMS), "7", "ours", None))) as done,
    ):
        wait_until_blocked(target)
        sink.cancel()
        wait_for(lambda: done, "the writer to give up")
        assert isinstance(done[0], TargetError)
        assert "broken off" in str(done[0])


def test_a_second_daemon_is_told_who_holds_the_edge(target: MysqlTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.sinks.mysql.LOCK_SECONDS", 0)
    with opened(target):
        second = target.sink()
        try:
            with pytest.raises(TakenError, match=r'another daemon writes it to "b" \(connection \d+\); .* KILL \d+'):
                second.open()
        finally:
            second.close()


def test_a_server_that_goes_away_is_a_connect_error(target: MysqlTarget) -> None:
    filled(target)
    with opened(target) as sink:
        target.database.server.kill()
        with pytest.raises(ConnectError, match='node "b"'):
            write(sink, group(update(relation(ITEMS), "7", "ours", None)))
        sink.cancel()
        sink.close()
    target.database.server.start()
    assert target.position() == LSN(150)


# -- rows that LOAD DATA would bend ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [1, 30])
@pytest.mark.parametrize("change", [insert, update], ids=["insert", "update"])
def test_a_text_that_is_too_long_is_refused_and_not_cut(target: MysqlTarget, change: Callable[..., Any], many: int) -> None:
    filled(target, rows=60 if change is update else 0)
    target.database.execute("ALTER TABLE t MODIFY name VARCHAR(3) CHARACTER SET utf8mb4")
    items = relation(ITEMS)
    changes = [change(items, str(i), "abc" if i else "abcd", None) for i in range(many)]
    with opened(target) as sink, pytest.raises(ApplyError, match=r"public\.t.*name.*`id` = '0'.*more than 3"):
        write(sink, group(*changes))


def test_a_row_that_a_check_refuses_is_named(target: MysqlTarget) -> None:
    filled(target, rows=0)
    target.database.execute("ALTER TABLE t ADD CONSTRAINT no_x CHECK (name <> 'x')")
    items = relation(ITEMS)
    changes = [insert(items, str(i), "x" if i == 17 else "a", None) for i in range(30)]
    with opened(target) as sink, pytest.raises(ApplyError, match=r"public\.t.*`id` = '17'.*no_x"):
        write(sink, group(*changes))
    assert target.rows(ITEMS) == []


@pytest.mark.parametrize("many", [1, 30])
def test_a_row_that_no_page_holds_is_named(target: MysqlTarget, many: int) -> None:
    wide = table("wide", id="integer", **{f"c{i}": "text" for i in range(300)})
    target.database.execute("SET GLOBAL innodb_strict_mode = 0")  # else MySQL makes no such table
    try:
        target.create(wide)
    finally:
        target.database.execute("SET GLOBAL innodb_strict_mode = 1")
    changes = [insert(relation(wide), str(i), *["x" * (1 if i else 40)] * 300) for i in range(many)]
    with opened(target) as sink, pytest.raises(ApplyError, match=r"public\.wide.*`id` = '0'.*Row size too large"):
        write(sink, group(*changes))


def test_a_null_where_none_may_be_is_refused(target: MysqlTarget) -> None:
    filled(target, rows=0)
    target.database.execute("ALTER TABLE t MODIFY name VARCHAR(30) NOT NULL")
    items = relation(ITEMS)
    changes = [insert(items, str(i), None if i == 17 else "a", None) for i in range(30)]
    with opened(target) as sink, pytest.raises(ApplyError, match=r"public\.t.*`id` = '17'.*name"):
        write(sink, group(*changes))
    with opened(target) as sink, pytest.raises(ApplyError, match=r"public\.t.*name"):
        sink.load(copy_of(ITEMS), Start(LSN(180)), [format_rows([("1", "a", None), ("2", None, None)])])
    assert target.rows(ITEMS) == []


def test_keys_that_only_differ_by_case_collide_loudly(target: MysqlTarget) -> None:
    words = table("words", key=("word",), word="text", n="integer")
    target.database.execute(
        "CREATE TABLE words (word VARCHAR(30) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci PRIMARY KEY, n INT) ENGINE = InnoDB"
    )
    r = relation(words)
    changes = [*(insert(r, f"word {i}", "1") for i in range(30)), insert(r, "WORD 3", "2")]
    with opened(target) as sink, pytest.raises(ApplyError, match=r"public\.words.*`word` = 'WORD 3'"):
        write(sink, group(*changes))


def test_zero_stays_zero_in_a_column_that_numbers_itself(target: MysqlTarget) -> None:
    numbered = table("numbered", id="integer", n="integer")
    target.database.execute("CREATE TABLE numbered (id INT AUTO_INCREMENT PRIMARY KEY, n INT) ENGINE = InnoDB")
    with opened(target) as sink:
        r = relation(numbered)
        write(sink, group(insert(r, "0", "1")))
        write(sink, group(*(insert(r, str(i), "1") for i in range(1, 30)), to=300))
    assert len(target.rows(numbered)) == 30
    assert ("0", "1") in target.rows(numbered)


def test_a_row_that_no_statement_can_carry_is_an_error_with_a_remedy(target: MysqlTarget) -> None:
    texts = table("texts", id="integer", value="text")
    target.create(texts)
    target.database.execute("SET GLOBAL max_allowed_packet = 1048576")
    with opened(target) as sink, pytest.raises(ApplyError, match="SET GLOBAL max_allowed_packet"):
        write(sink, group(insert(relation(texts), "1", "x" * 2_000_000)))


# -- many rows ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 40], ids=["dense", "sparse"])
def test_many_updates_and_deletes_find_their_rows_wherever_they_are(target: MysqlTarget, step: int) -> None:
    filled(target, rows=2000)
    items = relation(ITEMS)
    chosen = range(0, 2000, step) if step > 1 else range(500, 1500)
    with opened(target) as sink:
        done = write(sink, group(*(update(items, str(i), "b", "2") for i in [*chosen, 5000, 5001])))
        assert done == Written(updated=len(chosen), missing=2)
        partial = [(Kind.UPDATE, items, None, (str(i), UNCHANGED, "3")) for i in chosen]
        assert write(sink, group(*partial, to=300)) == Written(updated=len(chosen))
        same = write(sink, group(*partial, to=400))
        assert same == Written(updated=len(chosen)), "rows that stay as they are have been found all the same"
    assert {row for row in target.rows(ITEMS) if row[1] == "b"} == {(str(i), "b", "3") for i in chosen}
    with opened(target) as sink:
        assert write(sink, group(*(delete(items, str(i), None, None) for i in chosen), to=500)) == Written(deleted=len(chosen))
    assert len(target.rows(ITEMS)) == 2000 - len(chosen)


def test_a_table_is_looked_at_again_after_a_while(target: MysqlTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_apply, "LOOK_SECONDS", 0.0)
    filled(target)
    with opened(target) as sink:
        write(sink, group(update(relation(ITEMS), "1", "b", None), to=160))
        target.database.execute("ALTER TABLE t DROP PRIMARY KEY")
        with pytest.raises(SchemaError, match=r"public\.t.*no primary key.*\(id\).*ADD PRIMARY KEY \(`id`\)"):
            write(sink, group(update(relation(ITEMS), "1", "c", None), to=170))


def test_rows_without_a_key_are_told_apart_byte_by_byte(target: MysqlTarget) -> None:
    target.database.execute(
        "CREATE TABLE plain (a INT, b VARCHAR(30) CHARACTER SET latin1 COLLATE latin1_swedish_ci) ENGINE = InnoDB"
    )
    plain = relation(PLAIN, Identity.FULL)
    with opened(target) as sink:
        write(sink, group(*(insert(plain, "1", b) for b in ("x", "X", "x ", "é"))))
        assert write(sink, group(delete(plain, "1", "X"), delete(plain, "1", "x "), to=300)) == Written(deleted=2)
        assert write(sink, group(delete(plain, "1", "e"), to=400)) == Written(missing=1)
    assert target.rows(PLAIN) == [("1", "x"), ("1", "é")]


def test_a_float_finds_its_row_without_a_key(target: MysqlTarget) -> None:
    target.database.execute("CREATE TABLE plain (a FLOAT, b DOUBLE) ENGINE = InnoDB")
    r = Relation(PLAIN.table, (Column("a", 700, True), Column("b", 701, True)), Identity.FULL)
    with opened(target) as sink:
        write(sink, group(insert(r, "0.1", "0.1")))
        assert write(sink, group(delete(r, "0.1", "0.1"), to=300)) == Written(deleted=1)


# -- progress ----------------------------------------------------------------------------------------------------------------------


def test_a_progress_that_was_moved_by_hand_is_refused(target: MysqlTarget) -> None:
    filled(target)
    with opened(target) as sink:
        target.database.execute("UPDATE streamer_progress SET position = '0/1'")
        with pytest.raises(TargetError, match="not where this daemon left it"):
            write(sink, group(update(relation(ITEMS), "1", "b", None), to=300))


def test_a_target_that_was_not_set_up_is_an_error_with_a_remedy(target: MysqlTarget) -> None:
    target.database.execute("DROP TABLE streamer_progress")
    sink = target.sink()
    try:
        with pytest.raises(SchemaError, match="lacks the tables that streamer keeps there; run: streamer setup"):
            sink.open()
    finally:
        sink.close()
