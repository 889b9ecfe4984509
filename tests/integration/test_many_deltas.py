"""A delta table of a million rows: read in little memory and with few statements, as a whole and transaction by transaction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamer.capture.assemble import Interest
from streamer.capture.nonblocking import Statements
from streamer.capture.trigger_query import window
from streamer.capture.trigger_source import TriggerSource
from streamer.config import slot_name
from tests.integration.delta_readers import captured, place, reading
from tests.servers import Database

LIMIT = 64
"""In MiB: what reading may add to the process."""


def memory(field: str) -> int:
    """What our process has in memory, or had at most, in MiB. https://man7.org/linux/man-pages/man5/proc_pid_status.5.html"""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What readers have the server do from now on."""
    done: list[str] = []
    for name in ("run", "copy"):
        method = getattr(Statements, name)

        def noted(self: Statements, text: str, *arguments: int, method: object = method) -> object:
            done.append(text)
            return method(self, text, *arguments)  # type: ignore[operator]

        monkeypatch.setattr(Statements, name, noted)
    return done


@pytest.mark.parametrize(
    ("count", "by_transaction", "most"), [(1_000_000, False, 10), (200_000, True, 60)], ids=["as a whole", "by transaction"]
)
def test_a_million_deltas_are_read_in_little_memory(
    trigger_source: Database, statements: list[str], count: int, by_transaction: bool, most: int
) -> None:
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, label text NOT NULL)")
    trigger_source.execute("INSERT INTO t SELECT i, 'row number ' || i FROM generate_series(1, %s) i", [count])
    config, _ = captured(trigger_source)
    interest = Interest(config.syncs["shop"].selects, by_transaction=by_transaction)
    source = TriggerSource("a", trigger_source.url, "shop", slot_name("shop", "a"), interest)
    trigger_source.execute(
        "INSERT INTO streamer.delta (relation, kind, key) SELECT 't'::regclass, 'u', ARRAY[i::text] FROM generate_series(1, %s) i",
        [count],
    )
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most that we ever had
    before = memory("VmRSS")
    with source.read_from([place(source)]) as reader:
        told = total = 0
        while told < count:
            for item in reader.read(1.0):
                for _, _, _, new in getattr(item, "changes", ()):
                    told += 1
                    total += int(new[0])
    assert (told, total) == (count, count * (count + 1) // 2)
    assert memory("VmHWM") - before < LIMIT
    assert len([text for text in statements if "streamer.wakeup" not in text]) <= most


def test_a_long_transaction_does_not_have_every_batch_read_what_was_committed_since_it_began(trigger_source: Database) -> None:
    trigger_source.execute("CREATE TABLE t (id bigint PRIMARY KEY, n text)")
    _, source = captured(trigger_source)
    with reading(source, place(source)) as batches, trigger_source.connect() as long:
        long.execute("BEGIN; INSERT INTO t VALUES (0, 'long')")
        for n in range(1, 4):
            trigger_source.execute(f"INSERT INTO t SELECT i, 'a' FROM generate_series({n}0000, {n}9999) i")
            assert len(batches.next().changes) == 10000
        ((snapshot,),) = trigger_source.query("SELECT snapshot::text FROM streamer.delta_batch ORDER BY number DESC LIMIT 1")
        plan = trigger_source.query(f"EXPLAIN ANALYZE SELECT id FROM streamer.delta WHERE {window(snapshot)}")
        read = [int(rows) for (line,) in plan for rows in re.findall(r"actual time=\S+ rows=(\d+)", line)]
        assert read, plan
        assert max(read) <= 1, plan
        assert not any("Seq Scan" in line for (line,) in plan), plan
        long.execute("COMMIT")
        assert batches.next().told() == [("insert", "t", ("0", "long"))]
