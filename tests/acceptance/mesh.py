"""Several sources under one daemon, and what became of every transaction, told by the servers' own WAL.

`Mesh` is a `Streamer` whose config has any syncs. `Observer` is a logical slot with test_decoding beside streamer's own: it sees
each transaction of its node, who made it, and which commit it stands for. So "each transaction is applied exactly once everywhere,
and nothing comes back" can be counted through any number of kills of the daemon, without believing the daemon's counters.
The trap: resolving a conflict may make a new transaction, long after the last writer has stopped; `wait_until_quiet` looks twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from streamer.model import LSN
from tests import configs
from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import rows
from tests.role import reached
from tests.servers import Database, Row
from tests.waiting import wait_for, wait_for_equal

MARKS = "CREATE TABLE mark (node integer, n integer, PRIMARY KEY (node, n))"
COUNT = "SELECT count(*) FROM mark WHERE node = %s"
PROGRESS = "streamer.progress"
DELTAS = "streamer.delta"
"""What the tables begin with that triggers write."""
_LINE = re.compile(r"table (\S+): ([A-Z]+): ?(.*)", re.DOTALL)
_VALUE = re.compile(r"(?:^| )(\w+)\[[^]]*(?:\[\])?\]:('(?:[^']|'')*'|\S+)")


class Mesh(Streamer):
    """A daemon over `nodes`: databases and SQLite files. `urls` takes the place of a node's own url (a proxy's, a plain role's)."""

    def __init__(
        self,
        directory: Path,
        nodes: Mapping[str, Database | Path],
        syncs: Mapping[str, Mapping[str, Any]],
        *,
        urls: Mapping[str, str] | None = None,
        captures: Mapping[str, str] | None = None,
    ) -> None:
        self.nodes = dict(nodes)
        self.syncs: dict[str, dict[str, Any]] = {name: {"tables": ["public.*"]} | dict(sync) for name, sync in syncs.items()}
        self.captures = dict(captures or {})
        own = {name: node.url if isinstance(node, Database) else f"sqlite:///{node}" for name, node in nodes.items()}
        super().__init__(directory, own | dict(urls or {}))

    def write_config(self, **changes: object) -> None:
        """Write the config, with these keys of the first sync changed."""
        next(iter(self.syncs.values())).update(changes)
        nodes = {name: {"url": url} | self._capture_of(name) for name, url in self._nodes.items()}
        document = {"nodes": nodes, "syncs": self.syncs, "http": {"listen": f"127.0.0.1:{self.port}"}}
        configs.write_config(self.path, document)

    def add_node(self, name: str, node: Database) -> None:
        """Put one more node into the config, into no sync yet."""
        self.nodes[name] = node
        self._nodes[name] = reached(node.url)
        self.write_config()

    def _capture_of(self, name: str) -> dict[str, str]:
        return {"capture": self.captures[name]} if name in self.captures else {}

    # -- the databases ---------------------------------------------------------------------------------------------------------

    @property
    def databases(self) -> dict[str, Database]:
        return {name: node for name, node in self.nodes.items() if isinstance(node, Database)}

    @property
    def sources(self) -> dict[str, Database]:
        """The sources of the first sync."""
        return {name: self.databases[name] for name in next(iter(self.syncs.values()))["sources"]}

    def on_all(self, statement: str) -> None:
        """Run statements on every PostgreSQL node: for tables, before the daemon runs."""
        for database in self.databases.values():
            database.execute(statement)

    def wait_until_equal(self, query: str, deadline: float = 60) -> list[Row]:
        """Wait until the query gives the same rows on all nodes; return them."""
        first, *others = self.nodes.values()

        def equal() -> bool:
            expected = rows(first, query)
            return all(rows(node, query) == expected for node in others)

        wait_for(equal, f"all nodes to be equal: {query}", deadline)
        return rows(first, query)

    def wait_until_quiet(self, queries: Iterable[str], deadline: float = 60) -> None:
        """Wait until the queries give the same rows on all nodes, and everything that a node had to say has been heard, twice."""
        wanted = list(queries)
        for _ in range(2):
            self.mark(deadline)
            for query in wanted:
                self.wait_until_equal(query, deadline)

    def mark(self, deadline: float = 60) -> dict[str, LSN]:
        """Make a transaction on each source, and wait until all nodes have them; return where the sources were before."""
        before = {}
        for number, (name, database) in enumerate(self.sources.items()):
            before[name] = self._position(name)
            database.execute("INSERT INTO mark SELECT %s, count(*) FROM mark WHERE node = %s", [number, number])
        counts = {number: database.query(COUNT, [number]) for number, database in enumerate(self.sources.values())}
        for node, (number, count) in product(self.nodes.values(), counts.items()):
            look = partial(rows, node, COUNT.replace("%s", str(number)))
            try:
                wait_for_equal(look, count, f"{node} to have heard of {list(self.sources)[number]}", deadline)
            except AssertionError as error:
                raise AssertionError("; ".join([str(error), *self.problems()])) from None
        return before

    def _position(self, source: str) -> LSN:
        """Where a source of the first sync stands: in its WAL, or after so many batches."""
        database = self.databases[source]
        if self.captures.get(source) == "trigger":
            return LSN(database.query("SELECT max(number) << 32 FROM streamer.delta_reader")[0][0])
        return LSN.parse(str(database.query("SELECT pg_current_wal_insert_lsn()::text")[0][0]))

    @contextmanager
    def apart(self, *queries: str) -> Iterator[None]:
        """Stop the daemon, so that what is written while the context lasts is concurrent; then wait until the queries are equal."""
        self.wait_until_quiet(())
        self.stop()
        yield
        self.start()
        self.wait_until_quiet(queries)

    def progress(self, target: str, source: str, sync: str) -> LSN:
        """What a PostgreSQL target holds of a source."""
        query = "SELECT position FROM streamer.progress WHERE (sync, source, target) = (%s, %s, %s)"
        ((position,),) = self.databases[target].query(query, [sync, source, target])
        return LSN.parse(str(position))

    def history_of(self, table: str) -> list[str]:
        """The conflicts in a table and its deleted keys on each node, as lines to read."""
        conflicts = (
            "SELECT target, kind, key, change, current_origin, current_commit::text, incoming_origin, incoming_commit::text,"
            " winner, left(current_row, 80), left(incoming_row, 80), error FROM streamer.conflict WHERE table_name = %s ORDER BY id"
        )
        deleted = "SELECT 'deleted', key, xmin::text, deleted::text FROM streamer.tombstone WHERE table_name = %s"
        return [
            f"on {name}: {' '.join(map(str, row))}"
            for name, node in self.databases.items()
            for query in (conflicts, deleted)
            for row in node.query(query, [table])
        ]

    def conflicts(self, where: str = "true") -> list[Row]:
        """Kind, table, winner and target of the conflicts that were resolved anywhere."""
        query = f"SELECT kind, table_name, winner, target FROM streamer.conflict WHERE {where} ORDER BY id"
        return [row for database in self.databases.values() for row in database.query(query)]


@dataclass(frozen=True)
class Seen:
    """A transaction in the WAL of a node: who made it, and the lines of test_decoding about it."""

    #: the source that it was received from; empty if it was made here
    source: str
    origin: str
    commit_time: datetime
    lines: Sequence[tuple[str, str, str]] = field(repr=False)

    def touches(self, table: str) -> bool:
        return any(name == table for name, _, _ in self.lines)

    @property
    def matters(self) -> bool:
        """Whether others should hear of it."""
        return any(name.startswith("public.") or name == "streamer.removal" for name, _, _ in self.lines)


class Observer:
    """Sees every transaction of a node from the moment that it is made."""

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self._database = database
        database.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [self._slot])

    @property
    def tells_commit_times(self) -> bool:
        """Whether others are told the commit times of the WAL: where triggers capture, only if the server keeps them."""
        return self._database.query("SHOW track_commit_timestamp") == [("on",)]

    @property
    def _slot(self) -> str:
        return f"observer_{self._database.name}"

    def transactions(self) -> list[Seen]:
        """All transactions since it was made, in the order of their commits."""
        query = (
            "SELECT data FROM pg_logical_slot_peek_changes(%s, NULL, NULL, 'include-timestamp', 'on', 'skip-empty-xacts', 'on',"
            " 'include-xids', 'off')"
        )
        # only what is flushed can be seen, and streamer commits asynchronously
        self._database.execute("SELECT pg_logical_emit_message(true, 'observer', 'flush')")
        found: list[Seen] = []
        lines: list[tuple[str, str, str]] = []
        for (text,) in self._database.query(query, [self._slot]):
            if text.startswith("BEGIN"):
                lines = []
            elif (match := _LINE.fullmatch(text)) and not match[1].startswith(DELTAS):
                lines.append((match[1], match[2], match[3]))
            elif text.startswith("COMMIT") and lines:
                found.append(self._seen(lines, datetime.fromisoformat(text.partition("(at ")[2].rstrip(")"))))
        return found

    def _seen(self, lines: Sequence[tuple[str, str, str]], commit_time: datetime) -> Seen:
        """A transaction that streamer applied begins with its tag: the progress row."""
        name, _, values = lines[0]
        if name != PROGRESS:
            return Seen("", self.name, commit_time, lines)
        tag = {column: value.strip("'") for column, value in _VALUE.findall(values)}
        return Seen(tag["source"], tag["origin"], datetime.fromisoformat(tag["origin_time"]), lines)
