"""A ledger that shows whether any transaction was lost, doubled or torn, and the applications that write it.

Each application numbers its transactions in the database, and adds up what they move: a transaction is a row of `entry`, the new
sum in `account`, and a row of `big` that is touched. It remembers what was acknowledged. Sessions end in the middle, servers refuse
it: then it comes back, and asks the database how far it is.

The trap: when a server dies during COMMIT, nobody has told the application whether it was done. It may be, so one entry more than
was acknowledged is right after such an end, and one less never is.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final, Self

import psycopg

from tests.servers import Database, Row
from tests.waiting import wait_for

LEDGER: Final = """
CREATE TABLE account (writer int PRIMARY KEY, entries bigint NOT NULL, balance bigint NOT NULL);
CREATE TABLE entry (
    id bigserial PRIMARY KEY, writer int NOT NULL REFERENCES account, number bigint NOT NULL, amount bigint NOT NULL,
    balance bigint NOT NULL
);
CREATE TABLE big (id bigint PRIMARY KEY, touched bigint NOT NULL DEFAULT 0, filler text NOT NULL);
"""
WRITERS: Final = 3
PAUSE: Final = 0.01  # seconds after each transaction, for the others on the machine
TORN: Final = """
SELECT 'entries of ' || a.writer, a.entries, count(e.number) FROM account a LEFT JOIN entry e USING (writer)
GROUP BY a.writer, a.entries, a.balance
HAVING a.entries <> count(e.number) OR a.balance <> coalesce(sum(e.amount), 0) OR a.entries <> count(DISTINCT e.number)
    OR a.entries <> coalesce(max(e.number), 0)
UNION ALL
SELECT 'balance of ' || s.writer || ' at ' || s.number, s.balance, s.running
FROM (SELECT writer, number, balance, sum(amount) OVER (PARTITION BY writer ORDER BY number) AS running FROM entry) s
WHERE s.balance <> s.running
UNION ALL
SELECT 'rows touched', t.times, e.number FROM (SELECT sum(touched) AS times FROM big) t, (SELECT count(*) AS number FROM entry) e
WHERE t.times <> e.number
"""
"""What is wrong with the ledger, with what there is and what there should be. One statement, so that it sees one moment."""

More = Callable[[random.Random, int, int], str]
"""What an application also does in a transaction: a statement, by its dice, its own number and that of the transaction."""


def make_ledger(database: Database, rows: int) -> None:
    """Make an empty ledger, and the big table with so many rows."""
    database.execute(LEDGER)
    database.execute("INSERT INTO account SELECT i, 0, 0 FROM generate_series(1, %s) i", [WRITERS])
    database.execute("INSERT INTO big SELECT i, 0, md5(i::text) FROM generate_series(1, %s) i", [rows])


def torn(database: Database) -> list[Row]:
    """What is wrong with the ledger."""
    return database.query(TORN)


class Applications:
    """They write all the time while the context lasts, to the database that they are told to use."""

    def __init__(self, place: Database | None, rows: int, seed: int, more: More) -> None:
        self.place = place
        self.acknowledged = dict.fromkeys(range(1, WRITERS + 1), 0)
        #: what was acknowledged, and was not there when somebody came back
        self.lost: list[str] = []
        #: how often one came back
        self.ends = 0
        self._rows, self._seed, self._more = rows, seed, more
        self._enough = threading.Event()
        self._connected: set[int] = set()
        self._threads = [threading.Thread(target=self._work, args=(writer,)) for writer in self.acknowledged]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let them finish the transaction in hand, and end."""
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def move(self, place: Database) -> None:
        """Have them use another database, and return when all of them do."""
        self.place = place
        self.wait_for_more()

    def rest(self) -> None:
        """Have them finish the transaction in hand, and wait until they are told where to go on."""
        self.place = None
        wait_for(lambda: not self._connected, "applications to rest")

    def wait_for_more(self) -> None:
        """Wait until each of them has written a few more."""
        before = dict(self.acknowledged)
        wait_for(lambda: all(self.acknowledged[w] > n + 5 for w, n in before.items()), f"applications to write to {self.place}")

    def _work(self, writer: int) -> None:
        dice = random.Random(self._seed + writer)
        while not self._enough.is_set():
            self._connected.add(writer)
            try:
                if (place := self.place) is not None:
                    self._use(place, writer, dice)
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):  # it died, threw us out, or lets nobody write
                pass
            finally:
                self._connected.discard(writer)
            self._enough.wait(0.05)

    def _use(self, place: Database, writer: int, dice: random.Random) -> None:
        with psycopg.connect(place.url, connect_timeout=10) as connection:
            self._come_back(connection, writer)
            while self.place is place and not self._enough.is_set():
                self._transact(connection, writer, dice)

    def _come_back(self, connection: psycopg.Connection[Row], writer: int) -> None:
        """Go on where the database says that we are."""
        ((there,),) = connection.execute("SELECT entries FROM account WHERE writer = %s", [writer]).fetchall()
        connection.commit()
        if not 0 <= there - self.acknowledged[writer] <= 1:
            self.lost.append(f"writer {writer}: {self.acknowledged[writer]} were acknowledged, {there} are on {self.place}")
        self.acknowledged[writer] = there
        self.ends += 1

    def _transact(self, connection: psycopg.Connection[Row], writer: int, dice: random.Random) -> None:
        amount = dice.randint(-1000, 1000)
        query = "UPDATE account SET entries = entries + 1, balance = balance + %s WHERE writer = %s RETURNING entries, balance"
        ((number, balance),) = connection.execute(query, [amount, writer]).fetchall()
        query = "INSERT INTO entry (writer, number, amount, balance) VALUES (%s, %s, %s, %s)"
        connection.execute(query, [writer, number, amount, balance])
        connection.execute("UPDATE big SET touched = touched + 1 WHERE id = %s", [dice.randint(1, self._rows)])
        connection.execute(self._more(dice, writer, number).encode())
        if dice.random() < 0.05:
            connection.rollback()
            return
        connection.commit()
        self.acknowledged[writer] = number
        self._enough.wait(PAUSE)
