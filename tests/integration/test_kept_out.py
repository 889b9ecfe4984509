"""Servers that do not let us in any more tell which statement lets us in again."""

from __future__ import annotations

import pytest
from psycopg import sql

from streamer.errors import ConnectError
from streamer.session import connect
from tests.servers import Database


@pytest.mark.parametrize(
    ("rule", "remedy"),
    [
        ("ALTER ROLE kept_out NOLOGIN", "ALTER ROLE … LOGIN"),
        ("ALTER ROLE kept_out CONNECTION LIMIT 0", "ALTER ROLE … CONNECTION LIMIT"),
        ("ALTER DATABASE {} CONNECTION LIMIT 0", "ALTER DATABASE … CONNECTION LIMIT"),
        ("ALTER DATABASE {} ALLOW_CONNECTIONS false", "ALTER DATABASE … ALLOW_CONNECTIONS true"),
    ],
)
def test_a_server_that_keeps_us_out_is_told_with_what_opens_it(source18: Database, rule: str, remedy: str) -> None:
    """Of a limit of one role or database it was said that max_connections should be raised, which does not help."""
    server = source18.server
    server.execute("CREATE ROLE kept_out LOGIN PASSWORD 'pw'")
    server.execute(sql.SQL(rule).format(sql.Identifier(source18.name)))
    with pytest.raises(ConnectError, match='node "a"') as caught:
        connect("a", server.url(source18.name, "kept_out", "pw"), application="test")
    server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(source18.name)))
    assert caught.value.hint.startswith(remedy)
