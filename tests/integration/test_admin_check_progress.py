"""`streamer check` on what targets hold: a source that cannot go on from there is an error before `run` says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.admin.check import check
from streamer.admin.findings import failed
from streamer.admin.run import run
from streamer.admin.setup import setup
from tests.configs import make_config
from tests.servers import Database
from tests.unit.test_check_verdicts import told


@pytest.mark.parametrize("capture", ["pgoutput", "trigger"])
def test_a_slot_that_is_gone_while_targets_hold_what_came_from_it_is_an_error(
    source15: Database, target18: Database, tmp_path: Path, capture: str
) -> None:
    """After a failover to a standby without the slot, `check` had nothing to say, and `status` that all had failed."""
    source15.execute("CREATE TABLE t (id int PRIMARY KEY)")
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{tmp_path}/s.sqlite"}
    config = make_config(nodes, targets=["b", "s"], capture=capture)
    setup(config, None, lambda line: None)
    assert not failed(check(config))
    run(config, once=True, sync=None, source=None)
    assert not failed(check(config))
    if capture == "trigger":
        source15.execute("TRUNCATE streamer.delta_reader CASCADE")
    else:
        source15.execute("SELECT pg_drop_replication_slot('streamer_shop_a')")
    assert any(line.startswith('error: sync "shop" from "a"') and "start over" in line for line in told(check(config)))
    source15.execute("INSERT INTO t VALUES (1)")
    setup(config, None, lambda line: None)
    lines = told(check(config))
    for target_name in "b" if capture == "trigger" else "bs":  # a file does not tell of which installation its position is
        assert any(line.startswith(f"error: edge shop: a -> {target_name}: ") and "anew" in line for line in lines), lines
