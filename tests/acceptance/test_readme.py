"""The five minutes of the README, followed to the letter: its statements, its config, its commands and what they print.

Only hosts and ports are others, those of the servers of the tests. Numbers in what is printed may differ.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from tests.conftest import Databases
from tests.servers import Database, PostgresServer, free_port
from tests.waiting import wait_for, wait_for_equal

README = Path(__file__).parents[2] / "README.md"
SHOP = """
GRANT CREATE ON SCHEMA public TO shop;
SET ROLE shop;
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer bigint REFERENCES customers, amount numeric);
INSERT INTO customers (name) SELECT 'customer ' || n FROM generate_series(1, 100) n;
INSERT INTO orders (customer, amount) SELECT 1 + n % 100, n FROM generate_series(1, 500) n;
"""


class Reader:
    """Somebody who does what the README says, in an empty directory."""

    def __init__(self, directory: Path, source: PostgresServer, target: PostgresServer) -> None:
        section = README.read_text(encoding="utf-8").split("## Replicate your own database")[1].split("\n## ")[0]
        self.statements = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
        self.config: str = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)[0]
        self.commands: dict[str, list[str]] = {}
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
            for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, *printed = command.splitlines()
                self.commands[line] = printed
        self.directory = directory
        self._source = source
        self._target = target

    def write_config(self) -> None:
        config = self.config.replace("10.0.0.1:5432", f"127.0.0.1:{self._source.port}")
        config = config.replace("10.0.0.2:5432", f"127.0.0.1:{self._target.port}")
        (self.directory / "streamer.toml").write_text(f'{config}\n[http]\nlisten = "127.0.0.1:{free_port()}"\n', encoding="utf-8")

    def start(self, command: str, output: IO[str] | int) -> subprocess.Popen[str]:
        program, *arguments = command.split()
        assert program == "streamer"
        (variable, password) = next(line.removeprefix("export ").split("=") for line in self.commands if line.startswith("export "))
        return subprocess.Popen(
            [sys.executable, "-m", "streamer.cli", *arguments],
            cwd=self.directory,
            env=os.environ | {variable: password, "PYTHONPATH": str(README.parent)},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> list[str]:
        process = self.start(command, subprocess.PIPE)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        return printed.splitlines()

    def streams(self) -> bool:
        """Whether `streamer status` finds that all is streaming."""
        process = self.start("streamer status", subprocess.DEVNULL)
        return process.wait() == 0


def alike(lines: list[str]) -> list[str]:
    """The lines without what differs from one machine to another: numbers, the width of columns, how tables were read."""
    return [re.sub(r"\s+", " ", re.sub(r"[0-9A-F]+/[0-9A-F]+|\d+(\.\d+)?", "#", line.removesuffix(" (pg_dump)"))) for line in lines]


@pytest.fixture
def reader(databases: Databases, pg15: PostgresServer, pg18: PostgresServer, tmp_path: Path) -> Iterator[Reader]:
    pg15.execute("CREATE ROLE shop LOGIN")
    databases.create(pg15, "shop").execute(SHOP)
    yield Reader(tmp_path, pg15, pg18)
    Database(pg18, "shop").drop()
    pg18.execute("DROP OWNED BY streamer; DROP ROLE streamer")


def test_a_stranger_replicates_a_database_by_the_readme(reader: Reader, pg15: PostgresServer, pg18: PostgresServer) -> None:
    source, target = reader.statements
    pg15.psql(source)
    pg18.psql(target)
    reader.write_config()
    for command in ("streamer check", "streamer setup"):
        assert alike(reader.run(command)) == alike(reader.commands[command])
    with (reader.directory / "log").open("w+") as log:
        daemon = reader.start("streamer run", log)
        try:
            wait_for(reader.streams, "the edges to stream")
            pg15.execute("INSERT INTO orders (customer, amount) VALUES (1, 9.99)", database="shop")
            pg15.execute("UPDATE customers SET name = upper(name) WHERE id <= 10", database="shop")
            rows = pg15.query(QUERY, database="shop")
            wait_for_equal(lambda: pg18.query(QUERY, database="shop"), rows, "the rows of the target")
            with closing(sqlite3.connect(reader.directory / "shop.sqlite")) as file:
                wait_for_equal(lambda: file.execute(QUERY).fetchall(), rows, "the rows of the file")
            assert alike(reader.run("streamer status")) == alike(reader.commands["streamer status"])
        finally:
            daemon.send_signal(signal.SIGTERM)
            ended = daemon.wait()
        assert ended == 0, (reader.directory / "log").read_text()
    reader.run("streamer teardown --yes")
    assert pg15.query("SELECT slot_name FROM pg_replication_slots WHERE database = 'shop'") == []


QUERY = "SELECT o.id, CAST(o.amount AS text), c.name FROM orders o JOIN customers c ON c.id = o.customer ORDER BY o.id"
