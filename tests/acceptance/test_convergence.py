"""Three sources that write the same rows at once hold equal rows when it is quiet, whatever happens to the daemon and the wire.

The servers differ in version, capture and clock: the third is three seconds ahead. Where triggers capture, the second keeps no
commit times. The daemon is killed, connections are cut. What
is believed is the servers' own WAL: each transaction has been applied once on each other node, in order, and nothing has come back.
A table that differs is told with its seed, its history and its conflicts; `STREAMER_SEED` repeats a run (but not its timing).
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import permutations
from pathlib import Path

import pytest

from tests.acceptance.mesh import MARKS, Mesh, Observer, Seen
from tests.acceptance.workload import MERGED, SHAPES, Table, Workload, shortened
from tests.conftest import Databases
from tests.proxy import Proxy
from tests.servers import SLOTS, Database

MESSAGES = 90600  # what an observer needs
SEEDS = 20
TRANSACTIONS = 20  # that each node tries in each table
SECONDS = 8.0  # longer than the clocks differ
KILLS = 2


@pytest.fixture
def seed() -> int:
    """Where this run's seeds begin."""
    seed = int(os.environ.get("STREAMER_SEED", random.SystemRandom().randrange(1 << 20)))
    print(f"STREAMER_SEED={seed}")
    return seed


@pytest.fixture
def nodes(request: pytest.FixtureRequest, captures: Mapping[str, str], databases: Databases) -> Mapping[str, Database]:
    servers = {"a": "pg15", "b": "untimed_server" if captures.get("b") == "trigger" else "pg18", "c": "ahead"}
    if set(captures.values()) == {"trigger"}:
        servers = dict.fromkeys(captures, "untimed_server")
    return {name: databases.create(request.getfixturevalue(server), f"mesh_{name}") for name, server in servers.items()}


def make_tables(seed: int, captures: Mapping[str, str]) -> list[Table]:
    """Where triggers capture, none with columns that are merged."""
    shapes = [shape for shape in SHAPES if shape != "merged" or "trigger" not in captures.values()]
    return [Table(seed + i, shapes[i % len(shapes)]) for i in range(SEEDS)]


def sync_of(tables: list[Table], **settings: object) -> dict[str, object]:
    merged = {f"public.{table.name}": MERGED for table in tables if table.shape == "merged"}
    return {"sources": list("abc"), "copy": "never", "table": merged} | settings


@contextmanager
def replicating(
    directory: Path, nodes: Mapping[str, Database], tables: list[Table], captures: Mapping[str, str]
) -> Iterator[tuple[Mesh, Mapping[str, Proxy], Mapping[str, Observer]]]:
    """Three sources behind proxies, with their tables, and an observer each."""
    with ExitStack() as stack:
        proxies = {name: stack.enter_context(Proxy(node.server)) for name, node in nodes.items()}
        urls = {name: proxy.url(nodes[name].name) for name, proxy in proxies.items()}
        mesh = Mesh(directory, nodes, {"mesh": sync_of(tables, sources=list(nodes))}, urls=urls, captures=captures)
        stack.enter_context(mesh)
        mesh.on_all("; ".join([MARKS, *(table.ddl for table in tables)]))
        for node in nodes.values():
            if node.server.version >= SLOTS:
                node.execute("; ".join(table.identity for table in tables))
        mesh.setup()
        observers = {name: Observer(name, node) for name, node in nodes.items() if node.server.version >= MESSAGES}
        yield mesh, proxies, observers


def disturb(mesh: Mesh, proxies: Mapping[str, Proxy], workload: Workload, dice: random.Random) -> None:
    """Kill the daemon and cut wires while the workload runs."""
    for _ in range(KILLS):
        for _ in range(2):
            workload.pause(SECONDS / KILLS / 3)
            dice.choice(list(proxies.values())).cut()
        workload.pause(SECONDS / KILLS / 3)
        mesh.kill()
        mesh.start()


def wait_until_quiet(mesh: Mesh, workload: Workload) -> None:
    """Fail with the history of each table that a stream cannot get past."""
    try:
        mesh.wait_until_quiet([])
    except AssertionError as error:
        stuck = [table for table in workload.tables if re.search(rf"\b{table.name}\b|\b{table.name}_", str(error))]
        raise AssertionError("\n\n".join([str(error), *(told(mesh, workload, table) for table in stuck)])) from None


def expect_equal(mesh: Mesh, workload: Workload) -> None:
    """Fail with the history of each table that differs."""
    held = {table: [node.query(table.query) for node in mesh.databases.values()] for table in workload.tables}
    different = [told(mesh, workload, table) for table, (first, *others) in held.items() if any(rows != first for rows in others)]
    assert not different, "\n\n".join(different)


def told(mesh: Mesh, workload: Workload, table: Table) -> str:
    """All that is known of a table."""
    rows = [f"on {name}: {shortened(str(row))}" for name, node in mesh.databases.items() for row in node.query(table.query)]
    return "\n".join([f"table {table.name} ({table.shape}):", workload.told(table), *rows, *mesh.history_of(table.name)])


def expect_each_once(observers: Mapping[str, Observer], captures: Mapping[str, str]) -> None:
    """Fail unless every transaction has been applied once on each other node, in the order of its source, and none came back.

    Of a source whose triggers capture, transactions are passed over whose rows were all written again soon afterwards.
    """
    seen = {name: observer.transactions() for name, observer in observers.items()}
    assert all(t.origin == t.source for transactions in seen.values() for t in transactions if t.source)
    for source, target in permutations(observers, 2):
        if captures.get(source) == "trigger" and not observers[source].tells_commit_times:
            heard = applied(seen[target], source, ())
            assert len(heard) == len(set(heard)), f"{target} has applied twice of {source}: {heard}"
            continue
        made = [t.commit_time for t in seen[source] if not t.source and t.matters]
        heard = applied(seen[target], source, set(made))
        missing, doubled = Counter(made) - Counter(heard), Counter(heard) - Counter(made)
        assert not doubled, f"{target} has applied twice, or got back, of {source}: {lines(seen[target], doubled)}"
        if captures.get(source) != "trigger":
            assert not missing, f"{target} has not applied of {source}: {lines(seen[source], missing)}"
            assert heard == made, f"{target} has applied what {source} made in another order"


def lines(transactions: Sequence[Seen], times: Collection[datetime]) -> list[str]:
    """What the transactions with these commit times did."""
    return [
        f"{seen.commit_time}: {[shortened(' '.join(line)) for line in seen.lines]}"
        for seen in transactions
        if seen.commit_time in times
    ]


def applied(transactions: Sequence[Seen], source: str, made: Collection[datetime]) -> list[datetime]:
    """The commit times of what came from a source, also of what changed nothing. What only moves progress has an old tag."""
    times: list[datetime] = []
    for seen in transactions:
        if seen.source == source and (len(seen.lines) > 1 or (times[-1:] != [seen.commit_time] and seen.commit_time in made)):
            times.append(seen.commit_time)
    return times


def expect_progress_at_the_end(mesh: Mesh) -> None:
    """Fail unless every edge has passed what was in the WAL before a last transaction."""
    before = mesh.mark()
    for source, target in permutations(before, 2):
        assert mesh.progress(target, source, "mesh") > before[source]


@pytest.mark.parametrize(
    "captures",
    [
        {"a": "wal2json"},
        {"a": "wal2json", "c": "trigger"},
        {"a": "wal2json", "b": "trigger", "c": "trigger"},
        {"a": "trigger", "b": "trigger"},
    ],
    ids=["WAL", "both plugins and triggers", "WAL and triggers", "triggers without commit times"],
)
def test_nodes_that_write_the_same_rows_at_once_become_equal(
    tmp_path: Path, nodes: Mapping[str, Database], seed: int, captures: Mapping[str, str]
) -> None:
    tables = make_tables(seed, captures)
    with replicating(tmp_path, nodes, tables, captures) as (mesh, proxies, observers):
        mesh.start_streaming()
        workload = Workload(tables, nodes, TRANSACTIONS, SECONDS)
        workload.start()
        try:
            disturb(mesh, proxies, workload, random.Random(seed))
        finally:
            workload.join()
        wait_until_quiet(mesh, workload)
        expect_equal(mesh, workload)
        expect_progress_at_the_end(mesh)
        expect_each_once(observers, captures)
        kinds = Counter(kind for kind, *_ in mesh.conflicts())
        print(f"{len(workload.history)} transactions, conflicts: {dict(kinds)}")
        assert kinds, "nothing has collided"
        assert mesh.stop() == 0
