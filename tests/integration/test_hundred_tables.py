"""A database of a hundred tables, with odd names and types, some of them without a key: it works on the first try."""

from __future__ import annotations

import random

import pytest
from psycopg import sql

from streamer.admin.check import check
from streamer.admin.findings import Severity
from streamer.admin.keyless import Method
from streamer.admin.setup import setup
from streamer.admin.tables import tables
from streamer.daemon import Daemon
from streamer.model import TableName
from tests.configs import make_config
from tests.integration.streams import tuned_back
from tests.odd_tables import KEYS, VALUE, make_tables
from tests.servers import Database

NUMBER = 100
SEED = 20_261_121


def change(source: Database, made: dict[TableName, str], first: int) -> None:
    """Insert into every table, and in most change and delete rows, too."""
    for name, kind in made.items():
        table = sql.Identifier(name.schema, name.name)
        rows = "SELECT i, 'text ' || i, i / 3.0 FROM generate_series({}, {}) i"
        query = "INSERT INTO {} (id, {}, n) " + rows
        source.execute(sql.SQL(query).format(table, sql.Identifier(VALUE), first, first + 4))
        if first > 1 and kind != "nothing":
            source.execute(sql.SQL("UPDATE {} SET n = n + 1 WHERE id % 2 = 0").format(table))
            source.execute(sql.SQL("DELETE FROM {} WHERE id = {}").format(table, first - 2))


@pytest.mark.parametrize("capture", ["pgoutput", "trigger"])
def test_a_hundred_tables_work_on_the_first_try(source15: Database, target18: Database, capture: str) -> None:
    print(f"seed {SEED}")
    source15.execute("CREATE VIEW public.looked AS SELECT 1 AS id")
    made = make_tables(source15, random.Random(SEED), NUMBER)
    config = make_config({"a": source15.url, "b": target18.url}, capture=capture, tables=["*.*"])
    assert [f for f in check(config) if f.severity is Severity.ERROR] == []
    said: list[str] = []
    setup(config, None, said.append)
    change(source15, made, 1)
    with tuned_back():
        for number in range(2):
            daemon = Daemon(config, once=True)
            assert daemon.run(), daemon.report()
            if number == 0:
                change(source15, made, 11)
    listed = {table.table: table for table in tables(config, None)[0]}
    assert len(listed) == NUMBER
    expected = dict.fromkeys(KEYS, Method.STREAM)
    if capture == "trigger":
        expected |= dict.fromkeys(("full", "nothing"), Method.FULLCOPY)
    else:
        expected |= dict.fromkeys(("unique", "nothing"), Method.INSERTS)
    for table, kind in made.items():
        assert listed[str(table)].targets["b"].startswith(expected[kind])
        all_rows = sql.SQL("SELECT * FROM {} ORDER BY 1, 2").format(sql.Identifier(table.schema, table.name))
        there, here = source15.query(all_rows), target18.query(all_rows)
        if expected[kind] is Method.INSERTS:
            assert len(here) == 10
        else:
            assert here == there, (table, kind)
    told = [line for line in said if line.startswith("warning")]
    assert len(told) == sum(expected[kind] is not Method.STREAM for kind in made.values())
