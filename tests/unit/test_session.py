"""What a connection that cannot be made says; no server is needed for that."""

from __future__ import annotations

import pytest
from psycopg import OperationalError

from streamer.errors import ConnectError
from streamer.session import connect, remedy


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("postgresql://127.0.0.1:1/x?bogus=1", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x?sslmode=nope", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x?channel_binding=nope", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x?keepalives=nope", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x?connect_timeout=nope", "correct nodes.a.url"),
        ("postgresql://%zz/x", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:99999/x", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x?service=nope", "write it into ~/.pg_service.conf, or correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x", "start that server, or correct host and port in nodes.a.url"),
    ],
)
def test_a_url_that_leads_nowhere_names_what_to_correct(url: str, remedy: str) -> None:
    with pytest.raises(ConnectError) as told:
        connect("a", url, application="a test")
    assert told.value.hint == remedy


def test_a_socket_that_is_not_there_names_what_to_correct() -> None:
    with pytest.raises(ConnectError) as told:
        connect("a", "postgresql:///x?host=/nowhere&port=7", application="a test")
    assert str(told.value) == (
        'node "a": on socket "/nowhere/.s.PGSQL.7": No such file or directory; '
        "start that server, or correct host, which is the socket's directory, and port in nodes.a.url"
    )


@pytest.mark.parametrize(
    ("told", "begins"),
    [
        (
            'on socket "/tmp/.s.PGSQL.5432" failed: FATAL:  Peer authentication failed for user "streamer"',
            "run streamer as its system user",
        ),
        (
            'at "::1", port 5432 failed: server certificate for "db" (and 1 other name) does not match host name "::1"',
            "write a name of that",
        ),
        ('at "::1", port 5432 failed: SSL error: certificate verify failed', "write sslrootcert=FILE"),
        ('at "::1", port 5432 failed: received invalid response to SSL negotiation: J', "no PostgreSQL answers there"),
        ('at "::1", port 5432 failed: FATAL:  sorry, too many clients already', "raise max_connections"),
        (
            'at "::1", port 5432 failed: FATAL:  number of requested standby connections exceeds "max_wal_senders" (currently 2)',
            "raise max_wal_senders",
        ),
        ('at "::1", port 5432 failed: ERROR:  permission denied for table t', "grant it to the role of nodes.a.url"),
        ('at "::1", port 5432 failed: FATAL:  the database system is starting up', "otherwise"),
    ],
)
def test_a_server_that_refuses_names_what_to_do(told: str, begins: str) -> None:
    assert remedy("a", OperationalError(f"connection failed: connection to server {told}"), "otherwise").startswith(begins)
