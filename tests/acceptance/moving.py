"""An application that is moved: a sync each way, applications with a ledger, and whether all of it is on both sides in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.daemon import Streamer
from tests.acceptance.ledger import Applications, torn
from tests.configs import write_config
from tests.servers import Database

ROWS = 100


@contextmanager
def both_ways(directory: Path, urls: Mapping[str, str], capture: str = "auto") -> Iterator[Streamer]:
    """A sync each way, streaming; `capture` is that of the old node."""
    with Streamer(directory, urls) as streamer:
        nodes = {"old": {"url": urls["old"], "capture": capture}, "new": {"url": urls["new"]}}
        forth = {"sources": ["old"], "targets": ["new"], "tables": ["public.*"], "sequences": True}
        back = {"sources": ["new"], "targets": ["old"], "tables": ["public.*"], "sequences": True, "copy": "never"}
        http = {"listen": f"127.0.0.1:{streamer.port}"}
        write_config(streamer.path, {"http": http, "nodes": nodes, "syncs": {"forth": forth, "back": back}})
        yield streamer.setup().start_streaming()


@contextmanager
def writing(old: Database) -> Iterator[Applications]:
    """Applications that write to the old database, for as long as nobody moves them."""
    with Applications(old, ROWS, 1, lambda *_: "SELECT 1") as applications:
        applications.wait_for_more()
        yield applications


def check_everything_arrived(applications: Applications, streamer: Streamer, *databases: Database) -> None:
    """Applications are at rest; both sides must have each transaction once."""
    for sync in ("forth", "back"):
        streamer.command("kick", sync, "--wait", "60")
    assert applications.lost == []
    for database in databases:
        assert torn(database) == []
        assert dict(database.query("SELECT writer, entries FROM account")) == applications.acknowledged
