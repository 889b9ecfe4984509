"""`streamer setup` when a table was made later, and a daemon may be running, or another setup: what it says has to be done then."""

from __future__ import annotations

import threading

import pytest

from streamer.admin.nodes import session
from streamer.admin.setup import setup
from streamer.config import Config
from streamer.errors import ConnectError, SourceError
from tests.configs import make_config
from tests.meanwhile import meanwhile
from tests.servers import Database
from tests.waiting import wait_for


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


def test_of_two_setups_at_once_the_one_that_is_overtaken_says_to_run_it_again(source18: Database, target15: Database) -> None:
    source18.execute("CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config({"a": source18.url, "b": target15.url})
    with source18.connect() as other:
        other.execute("BEGIN; CREATE SCHEMA streamer")

        def overtake(stop: threading.Event) -> None:
            waits = "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
            wait_for(lambda: source18.query(waits), "the setup to wait for the other one")
            other.execute("COMMIT")

        told = r'node "a": duplicate key .* another command is at work on the same things: when it has ended, run this one again'
        with meanwhile(overtake), pytest.raises(SourceError, match=told):
            run_setup(config)
        other.execute("DROP SCHEMA streamer")  # it is the other role's
    assert any('created slot "streamer_shop_a"' in line for line in run_setup(config))


def test_a_command_whose_connection_is_lost_does_not_promise_to_try_again_by_itself(source18: Database) -> None:
    config = make_config({"a": source18.url, "b": source18.url})

    def lose() -> None:
        with session(config, "a") as connection:
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(ConnectError, match=r'node "a": .*; run the command again$'):
        lose()
