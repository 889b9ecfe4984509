"""Keys that are equal though they are written differently, captured by triggers: a change of the writing is a change of one row.

The trap: a target of another engine compares the text, so what it has is only found by the writing that it was given.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from streamer.admin.setup import setup
from streamer.daemon import Daemon
from tests.configs import make_config
from tests.integration.streams import tuned_back
from tests.servers import Database

ALL = "SELECT CAST(k AS text), v FROM t ORDER BY 1"


@pytest.mark.parametrize(
    ("kind", "first", "then", "back"),
    [
        ("text COLLATE loose", "'k' || i", "upper(k)", "lower(k)"),
        ("numeric", "(i || '.0')::numeric", "(k || '0')::numeric", "(k || '00')::numeric"),
        ("interval", "i * interval '1 day'", "i * interval '24 hours'", "i * interval '1 day'"),
    ],
)
@pytest.mark.parametrize("hashed", ["on", "off"])
def test_a_key_that_is_written_differently_stays_one_row(
    source15: Database, target18: Database, tmp_path: Path, kind: str, first: str, then: str, back: str, hashed: str
) -> None:
    source15.execute("CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    source15.execute(f"CREATE TABLE t (k {kind} PRIMARY KEY, i int, v text)")
    source15.execute(f"INSERT INTO t SELECT {first}, i, 'v' FROM generate_series(1, 300) i")
    kind = kind.removesuffix(" COLLATE loose")  # the other server's build may lack ICU
    target18.execute(f"CREATE TABLE t (k {kind} PRIMARY KEY, i int, v text)")
    database = source15.query("SELECT current_database()")[0][0]
    source15.execute(f"ALTER DATABASE {database} SET enable_hashagg = {hashed}")  # sorted groups begin anywhere
    config = make_config({"a": source15.url, "b": target18.url, "s": f"sqlite:///{tmp_path}/s.db"}, capture="trigger")
    setup(config, None, lambda line: None)
    with tuned_back():
        assert Daemon(config, once=True).run()
        for value in (then, back, then):
            source15.execute(f"UPDATE t SET k = {value}, v = v || '.'")
        source15.execute("DELETE FROM t WHERE i % 3 = 0")
        daemon = Daemon(config, once=True)
        assert daemon.run(), daemon.report()
    expected = sorted(source15.query(ALL))
    assert sorted(target18.query(ALL)) == expected
    with closing(sqlite3.connect(tmp_path / "s.db")) as file:
        assert sorted(file.execute(ALL).fetchall()) == expected
