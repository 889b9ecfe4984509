"""docs/tutorial.md, typed into a shell line by line: what it prints is what the page shows.

Only the addresses of the two servers are others, and the port that the daemon answers on.
"""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.shell import page, shell
from tests.conftest import Databases
from tests.servers import PostgresServer, free_port


def test_a_beginner_gets_through_the_tutorial(
    databases: Databases, pg15: PostgresServer, pg18: PostgresServer, tmp_path: Path
) -> None:
    config = tmp_path / "streamer.toml"
    http = f'[http]\nlisten = "127.0.0.1:{free_port()}"\n\n'
    for server in (pg15, pg18):
        databases.create(server, "bank").drop()  # what is left of it goes when the test ends, however it does
    with shell(tmp_path, pg18.bin_dir) as typing:
        for block in page("docs/tutorial.md"):
            if block.language == "toml":
                before = config.read_text().partition("[syncs.bank]")[0] if config.exists() else http
                config.write_text(before + block.text)
            else:
                commands = block.text.replace("127.0.0.1:5432", f"127.0.0.1:{pg15.port}")
                typing.follow(commands.replace("127.0.0.1:5433", f"127.0.0.1:{pg18.port}"))
