"""`streamer setup` when a table was made later, and a daemon may be running: what it says has to be done then."""

from __future__ import annotations

import pytest

from streamer.admin.setup import setup
from streamer.config import Config
from tests.configs import make_config
from tests.servers import Database


def run_setup(config: Config) -> list[str]:
    said: list[str] = []
    setup(config, None, said.append)
    return said


@pytest.mark.parametrize("capture", ["pgoutput", "trigger"])
def test_setup_tells_how_a_running_daemon_takes_up_a_table_that_was_made_later(
    source18: Database, target15: Database, capture: str
) -> None:
    source18.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source18.url, "b": target15.url}, capture=capture)
    assert not any("more tables now" in line for _ in "ab" for line in run_setup(config))
    source18.execute("CREATE TABLE later (id int PRIMARY KEY)")
    hint = 'sync "shop" has more tables now; streamer run takes them up when it is started again, or by: '
    assert run_setup(config)[-1] == f"{hint}streamer pause shop; streamer resume shop"
