"""`streamer check` tells when clients can write nowhere."""

from __future__ import annotations

from streamer.admin.check import check
from streamer.admin.setup import setup
from tests.configs import make_config
from tests.conftest import Pair
from tests.unit.test_check_verdicts import told


def test_databases_that_a_killed_cutover_has_left_all_read_only_are_told(pair: Pair) -> None:
    source, target = pair
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    config = make_config({"a": source.url, "b": target.url})
    setup(config, None, lambda line: None)
    target.execute(f'ALTER DATABASE "{target.name}" SET default_transaction_read_only = on')
    assert told(check(config)) == []  # as before a cutover
    source.execute(f'ALTER DATABASE "{source.name}" SET default_transaction_read_only = on')
    (ours, _) = [finding for finding in check(config) if "read-only" in finding.reason]
    assert (ours.object, ours.reason) == ('node "a"', 'is read-only for clients, as all databases of sync "shop" are')
    with source.connect() as client:
        client.autocommit = True
        for statement in ours.remedy.rpartition(": ")[2].split("; "):
            client.execute(statement.encode())
    assert told(check(config)) == []
