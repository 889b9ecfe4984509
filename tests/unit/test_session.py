"""What a connection that cannot be made says; no server is needed for that."""

from __future__ import annotations

import pytest

from streamer.errors import ConnectError
from streamer.session import connect


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("postgresql://127.0.0.1:1/x?bogus=1", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x?sslmode=nope", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:99999/x", "correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x?service=nope", "write it into ~/.pg_service.conf, or correct nodes.a.url"),
        ("postgresql://127.0.0.1:1/x", "start that server, or correct host and port in nodes.a.url"),
    ],
)
def test_a_url_that_leads_nowhere_names_what_to_correct(url: str, remedy: str) -> None:
    with pytest.raises(ConnectError) as told:
        connect("a", url, application="a test")
    assert told.value.hint == remedy
