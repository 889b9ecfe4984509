"""Memory stays bounded whatever the size of a transaction: the peak of the daemon's process, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import wait_until_same
from tests.processes import peak_memory
from tests.servers import Database

LIMIT = 300  # MiB
ROWS = 2_000_000


@pytest.mark.timeout(240)
@pytest.mark.parametrize("capture", ["pgoutput", "wal2json", "trigger"])
def test_a_transaction_of_two_million_rows_passes_in_little_memory(
    tmp_path: Path, source15: Database, target18: Database, capture: str
) -> None:
    source15.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL, label text NOT NULL)")
    file = tmp_path / "shop.sqlite"
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{file}"}
    with Streamer(tmp_path, nodes, targets=["b", "s"], capture=capture).setup().start_streaming() as streamer:
        source15.execute("INSERT INTO t SELECT i, i * 2, 'row number ' || i FROM generate_series(1, %s) i", [ROWS])
        query = "SELECT count(*), sum(id), sum(n), sum(length(label)) FROM t"
        for target in (target18, file):
            wait_until_same(source15, target, query, deadline=200)

        peak = peak_memory(streamer.pid)
        print(f"peak {peak} MiB")
        assert peak < LIMIT
        assert streamer.stop() == 0
