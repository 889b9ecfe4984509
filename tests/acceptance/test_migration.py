"""docs/migration.md, typed into a shell as it stands, while an application writes: over to the new server and back again.

What the application was told to be committed must be on both servers in the end, each row once, whichever server it was on.
"""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Final, Self

import psycopg
import pytest

from tests.acceptance.shell import Shell, page, shell
from tests.conftest import Databases
from tests.role import blocks
from tests.servers import Database, PostgresServer, free_port
from tests.waiting import wait_for

PASSWORD: Final = "of-the-application"
SHOP: Final = """
GRANT CREATE ON SCHEMA public TO shop;
SET ROLE shop;
CREATE TYPE state AS ENUM ('new', 'paid');
CREATE TABLE customers (id bigserial PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer bigint NOT NULL REFERENCES customers, number bigint NOT NULL,
    state state NOT NULL DEFAULT 'new', made timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE audit (id bigserial PRIMARY KEY, number bigint NOT NULL);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO audit (number) VALUES (NEW.number); RETURN NEW; END';
CREATE TRIGGER note AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION note();
CREATE VIEW paid AS SELECT * FROM orders WHERE state = 'paid';
INSERT INTO customers (name) SELECT 'customer ' || n FROM generate_series(1, 100) n;
INSERT INTO orders (customer, number) SELECT 1 + n % 100, -n FROM generate_series(1, 500) n;
"""
NUMBERS: Final = "SELECT number FROM orders WHERE number > 0 ORDER BY number"
AUDIT: Final = "SELECT number FROM audit WHERE number > 0 ORDER BY number"
EVERYTHING: Final = "SELECT id, customer, number, state::text, made FROM orders ORDER BY id"
LEFT_OVER: Final = """
SELECT slot_name FROM pg_replication_slots WHERE database = 'shop'
UNION ALL SELECT pubname FROM pg_publication
UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'streamer'
UNION ALL SELECT roname FROM pg_replication_origin
"""


class Application:
    """Orders something again and again, on the server that it is told to use, and remembers what was committed."""

    def __init__(self, place: PostgresServer) -> None:
        self.place = place
        self.committed: list[int] = []
        self._numbers = itertools.count(1)
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def move(self, place: PostgresServer) -> None:
        """Use another server from now on, and return when it does."""
        self.place, before = place, len(self.committed)
        wait_for(lambda: len(self.committed) > before + 5, f"the application to write to {place!r}")

    def _work(self) -> None:
        while not self._enough.is_set():
            try:
                with psycopg.connect(self.place.url("shop", "shop", PASSWORD), connect_timeout=10) as connection:
                    self._order(connection)
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):  # it was thrown out, or may not write
                self._enough.wait(0.05)

    def _order(self, connection: psycopg.Connection) -> None:
        place = self.place
        while self.place is place and not self._enough.is_set():
            number = next(self._numbers)
            connection.execute("INSERT INTO orders (customer, number) VALUES (%s, %s)", [1 + number % 100, number])
            connection.execute("UPDATE orders SET state = 'paid' WHERE number = %s", [number - 3])
            connection.commit()
            self.committed.append(number)
            self._enough.wait(0.01)


@pytest.fixture
def old(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> Database:
    """The database that is moved; what comes to be on the new server goes when the test ends."""
    pg15.start()
    pg15.execute(f"CREATE ROLE shop LOGIN PASSWORD '{PASSWORD}'")
    database = databases.create(pg15, "shop")
    pg15.execute("ALTER DATABASE shop OWNER TO shop")
    database.execute(SHOP)
    databases.create(pg18, "shop").drop()
    return database


class Administrator:
    """Somebody who does what stands below a heading of the page, but for taking everything down, which comes last."""

    def __init__(self, typing: Shell, directory: Path, old: PostgresServer, new: PostgresServer) -> None:
        self._typing = typing
        self._directory = directory
        self._servers = {"10.0.0.1:5432": old, "10.0.0.2:5432": new}

    def do(self, heading: str) -> None:
        for block in page("docs/migration.md"):
            if not block.heading.startswith(heading) or "teardown" in block.text:
                continue
            if block.language == "toml":
                self._configure(block.text)
            else:
                self._typing.follow(self._placed(block.text))

    def take_down(self) -> None:
        (commands,) = (block.text for block in page("docs/migration.md") if "teardown" in block.text)
        self._typing.follow(commands)

    def _configure(self, text: str) -> None:
        """Give the rights that the page refers to, and write the config."""
        for server in self._servers.values():
            for heading in ("On a node that is both", "For a cutover"):
                server.psql(blocks(heading, "sql")[0])
        http = f'[http]\nlisten = "127.0.0.1:{free_port()}"\n'
        (self._directory / "streamer.toml").write_text(self._placed(text) + http)

    def _placed(self, text: str) -> str:
        for place, server in self._servers.items():
            text = text.replace(place, f"127.0.0.1:{server.port}")
        return text


def test_an_application_moves_to_another_server_and_back_and_loses_nothing(
    old: Database, pg18: PostgresServer, tmp_path: Path
) -> None:
    new = Database(pg18, "shop")
    with shell(tmp_path, old.server.bin_dir) as typing:
        admin = Administrator(typing, tmp_path, old.server, pg18)
        with Application(old.server) as application:
            for heading in ("# Moving", "1. ", "2. ", "3. ", "4. "):
                admin.do(heading)
            application.move(pg18)
            admin.do("5. ")
            admin.do("How to go back")
            application.move(old.server)
        typing.follow('$ streamer kick forth --wait 60\nsync "forth" is done\n')
        numbers = [number for (number,) in old.query(NUMBERS)]
        assert len(set(numbers)) == len(numbers)
        assert set(application.committed) <= set(numbers)
        for query in (EVERYTHING, AUDIT):
            assert old.query(query) == new.query(query)
        assert [number for (number,) in old.query(AUDIT)] == numbers, "the trigger has fired once for each order"
        admin.take_down()
    for database in (old, new):
        assert database.query(LEFT_OVER) == []
