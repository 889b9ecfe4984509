"""The version of a row on PostgreSQL: when and on which node the transaction that wrote it was first made.

From 14 on the server tells both of any transaction whose commit time it has kept, because the sink gives every transaction that it
applies the commit time of the original and a replication origin that names the node. Elsewhere (an older server, a role without the
right to origins) a row of streamer.transaction tells them of what streamer has applied, and all else is local. Where the server
keeps no commit times, and triggers capture what is changed, those of the triggers count. A version without a time is older than any
other.

The rows of an initial copy were all written by one transaction, with OLDEST for its time. Those whose real version may matter have
it in streamer.copied, together with that transaction's id: once the row is written again it is no longer of that transaction.

The traps: a row that was written behind a savepoint has the xid of that, not of its transaction. And the version of a row is asked
for by another statement than the one that locks it, because that one sees nothing of the transaction that it has waited for.

What belongs to a row without being in it (tombstone, version, copied) is kept under an id, the hash of table and key.

https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-COMMIT-TIMESTAMP
"""

from __future__ import annotations

import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

import orjson
from psycopg import sql

from streamer.model import NOTHING_SEEN, POSTGRES_EPOCH, Origin, Seen, TableName, Version
from streamer.session import Connection, cells, version

OLDEST: Final = POSTGRES_EPOCH + timedelta(seconds=1)
"""The commit time of copied rows; the epoch itself would be taken for none, and replaced by the present."""
FORMAT: Final = 90100
JSON: Final = 90200
ORIGIN_OF: Final = 140000  # pg_xact_commit_timestamp_origin: version 14
COMMIT_TIMES: Final = 90500
ORIGIN_PREFIX: Final = "streamer:"


SOURCE_SEEN: Final = "CASE WHEN source_seen <> '' THEN source_seen WHEN origin = source THEN seen ELSE '{}' END"
"""The expression for what an edge's source had applied of others by the edge's position, in streamer.progress."""


def seen_text(seen: Seen) -> str:
    """Return it as a JSON object of node and time."""
    return orjson.dumps({node: time.isoformat() for node, time in seen.items()}).decode()


def read_seen(text: str) -> Seen:
    """Return what `seen_text` wrote. Raises ValueError."""
    return {node: datetime.fromisoformat(time) for node, time in orjson.loads(text).items()} if text != "{}" else NOTHING_SEEN


def key_id(table: TableName, key: Sequence[str]) -> str:
    """Return the id that a key's tombstone and version are kept under; with an empty key that of a truncate of the table."""
    digest = hashlib.md5(orjson.dumps([table.schema, table.name, *key]), usedforsecurity=False)
    return str(uuid.UUID(digest.hexdigest()))


def key_json(key: Sequence[str]) -> str:
    """Return a key as its tombstone shows it, a JSON array; empty for the whole table."""
    return orjson.dumps(list(key)).decode() if key else ""


def key_text(server: int, row: str, columns: Sequence[str]) -> str:
    """The expression for a row's key as a JSON array, on a server of this version; `columns` are quoted. A cast to text is not what
    the type's output function writes, for char(n) for example."""
    output = "format('%s', {})" if server >= FORMAT else "array_to_string(ARRAY[{}], '')"
    texts = [output.format(f"{row}.{column}") for column in columns]
    if server >= JSON:
        return f"array_to_json(ARRAY[{', '.join(texts)}])::text"
    return "'[' || " + " || ',' || ".join(map(_json, texts)) + " || ']'"


def _json(text: str) -> str:
    """The expression for a JSON string, where the server knows none. How a session reads backslashes does not matter."""
    escapes = {92: 92, 34: 34, 8: ord("b"), 9: ord("t"), 10: ord("n"), 12: ord("f"), 13: ord("r")}
    for code, letter in escapes.items():
        text = f"replace({text}, chr({code}), chr(92) || chr({letter}))"
    for code in sorted(set(range(1, 32)) - escapes.keys()):
        text = f"replace({text}, chr({code}), chr(92) || 'u{code:04x}')"
    return f"'\"' || {text} || '\"'"


def key_hash(connection: Connection, table: TableName, key: str) -> str:
    """The expression for `key_id`; `key` is an expression for the JSON array of the key."""
    head = sql.Literal(orjson.dumps([table.schema, table.name]).decode()[:-1] + ",").as_string(connection).strip()
    text = f"{head} || substr({key}, 2)"
    if connection.info.parameter_status("server_encoding") not in ("UTF8", "SQL_ASCII"):
        text = f"convert_to({text}, 'UTF8')"
    return f"md5({text})::uuid"


def origin_name(sync: str, target: str, via: str, origin: str) -> str:
    """Return the name of the replication origin for what `origin` made and `via` handed on."""
    return f"{ORIGIN_PREFIX}{sync}:{target}:{via}:{origin}"


def keeps_commit_times(connection: Connection) -> bool:
    """Whether the server tells when a transaction was committed."""
    if version(connection) < COMMIT_TIMES:
        return False
    return connection.execute("SELECT current_setting('track_commit_timestamp')::bool").fetchone() == (True,)


class Versions(ABC):
    """How to ask for versions on one connection to `node`."""

    #: a condition: the row `t` was last written by transactions of this origin, or before anybody can tell. Its parameter is
    #: `mark(origin)`
    guard: str
    #: whether every commit time can be had of the server
    exact: bool

    def __init__(self, connection: Connection, node: str) -> None:
        self._connection = connection
        self._node = node
        #: what the node itself wrote up to then is taken for equal on all nodes, and for older than any change
        self.joined: datetime | None = None

    @abstractmethod
    def time(self, xid: str) -> str:
        """The expression for the commit time of the transaction that the expression `xid` tells."""

    @abstractmethod
    def origin(self, xid: str) -> str:
        """The expression for what `node` makes the node of, of that transaction."""

    @abstractmethod
    def mark(self, origin: Origin) -> str:
        """The parameter of `guard`."""

    @abstractmethod
    def node(self, mark: str | None) -> str:
        """The node that an `origin` stands for."""

    @abstractmethod
    def note(self, origin: Origin) -> tuple[str, list[str | None]] | None:
        """The statement that tells later readers where the open transaction was made, if one is needed."""

    def note_nested(self, origin: Origin, edge: Sequence[str]) -> tuple[str, list[str | None]] | None:
        """The same for what is written behind a savepoint, after the progress row of the edge (sync, source, target) has been."""
        return None

    def stamp(self, origin: Origin) -> tuple[str, list[str | None]] | None:
        """The same for a load, whose rows have another time than its tag."""
        return self.note(origin)

    def of(self, xids: Collection[str]) -> dict[str, Version]:
        """Return the versions of what these transactions wrote. Raises psycopg.Error."""
        if not xids:
            return {}
        told = f"SELECT x.xid::text, ({self.time('x.xid')})::text, ({self.origin('x.xid')})::text"
        query = f"{told} FROM unnest(%s::xid[]) AS x (xid)"
        result = self._connection.execute(query.encode(), [f"{{{','.join(xids)}}}"]).pgresult
        assert result is not None
        return {str(xid): self.read(time, mark) for xid, time, mark in cells(result)}

    def read(self, time: str | None, mark: str | None) -> Version:
        """Return the version that a row of a query tells; that of a copied row, and of one from before the sync, has no time."""
        at, node = None if time is None else datetime.fromisoformat(time), self.node(mark)
        return Version(None if at is not None and at <= self.oldest(node) else at, node)

    def oldest(self, node: str) -> datetime:
        """Return up to when what the node wrote counts as older than all that has a time."""
        return self.joined if node == self._node and self.joined is not None else OLDEST


class OriginVersions(Versions):
    """The server tells both, by replication origins. `current` tells the session's."""

    exact = True
    guard = "nullif((pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident, %s::oid) IS NULL"
    # ages count from the open transaction; those of its savepoints are negative
    _OF_OPEN: Final = (
        "SELECT x.xid::text FROM unnest(%s::xid[]) AS x (xid) "
        "WHERE age(x.xid) BETWEEN -1000000 AND 0 AND pg_xact_commit_timestamp(x.xid) IS NULL"
    )

    def __init__(self, connection: Connection, node: str) -> None:
        super().__init__(connection, node)
        self._nodes: dict[str, str] = {}
        self._idents: dict[str, str] = {}
        self._open: Version | None = None

    def time(self, xid: str) -> str:
        return f"pg_catalog.pg_xact_commit_timestamp({xid})"

    def origin(self, xid: str) -> str:
        return f"(pg_catalog.pg_xact_commit_timestamp_origin({xid})).roident"

    def follow(self, name: str, node: str) -> None:
        """Take the replication origin `name` for that of transactions made on `node`."""
        if node not in self._idents:
            row = self._connection.execute("SELECT pg_replication_origin_oid(%s)::text", [name]).fetchone()
            self._idents[node] = row[0] if row else "0"

    def mark(self, origin: Origin) -> str:
        return self._idents[origin.node]

    def node(self, mark: str | None) -> str:
        if mark is None or mark == "0":
            return self._node
        if mark not in self._nodes:
            self._nodes[mark] = self._look_up(mark)
        return self._nodes[mark]

    def _look_up(self, mark: str) -> str:
        """The node that the origin's name ends with; what another replication applied is a local change to everybody."""
        query = "SELECT roname FROM pg_catalog.pg_replication_origin WHERE roident = %s::oid"
        row = self._connection.execute(query, [mark]).fetchone()
        return row[0].rpartition(":")[2] if row and row[0].startswith(ORIGIN_PREFIX) else self._node

    def note(self, origin: Origin) -> None:
        self._open = Version(origin.commit_time, origin.node)

    def note_nested(self, origin: Origin, edge: Sequence[str]) -> None:
        self.note(origin)

    def of(self, xids: Collection[str]) -> dict[str, Version]:
        """Return the versions; those of the open transaction are known to nobody else yet."""
        versions = super().of(xids)
        untold = [xid for xid, version in versions.items() if version.time is None]
        if untold and self._open is not None:
            ours = self._connection.execute(self._OF_OPEN, [f"{{{','.join(untold)}}}"])
            versions.update((xid, self._open) for (xid,) in ours)
        return versions


class NotedVersions(Versions):
    """What streamer has applied is noted in streamer.transaction."""

    exact = False
    guard = "EXISTS (SELECT 1 FROM streamer.transaction AS n WHERE n.xid = t.xmin::text::bigint AND n.origin = %s)"
    _NOTE: Final = (
        "INSERT INTO streamer.transaction (xid, origin, commit_time) VALUES (txid_current() & 4294967295, %s, %s::timestamptz)"
    )
    _NOTE_NESTED: Final = (
        "INSERT INTO streamer.transaction (xid, origin, commit_time) SELECT p.xmin::text::bigint, %s, %s::timestamptz "
        "FROM streamer.progress AS p WHERE p.sync = %s AND p.source = %s AND p.target = %s"
    )

    def __init__(self, connection: Connection, node: str) -> None:
        super().__init__(connection, node)
        self._local_time = "pg_catalog.pg_xact_commit_timestamp({xid})" if keeps_commit_times(connection) else "NULL::timestamptz"

    def time(self, xid: str) -> str:
        return f"coalesce({_noted('commit_time', xid)}, {self._local_time.format(xid=xid)})"

    def origin(self, xid: str) -> str:
        return _noted("origin", xid)

    def mark(self, origin: Origin) -> str:
        return origin.node

    def node(self, mark: str | None) -> str:
        return mark or self._node

    def note(self, origin: Origin) -> tuple[str, list[str | None]] | None:
        return self._NOTE, [origin.node, origin.commit_time.isoformat()]

    def note_nested(self, origin: Origin, edge: Sequence[str]) -> tuple[str, list[str | None]] | None:
        return self._NOTE_NESTED, [origin.node, origin.commit_time.isoformat(), *edge]


class DeltaVersions(NotedVersions):
    """What triggers capture tells: of an applied transaction its tag, of one that was made here the time of its last delta, as its
    readers tell it. When these are purged it is noted in streamer.transaction, without an origin if it was made here."""

    guard = "({origin}) = %s"

    def __init__(self, connection: Connection, node: str) -> None:
        super().__init__(connection, node)
        self.guard = self.guard.format(origin=self.origin("t.xmin"))

    def time(self, xid: str) -> str:
        written = f"(SELECT max(d.time) FROM streamer.delta AS d WHERE d.txid = {_top(xid)})"
        return f"coalesce({_noted('commit_time', xid)}, {_tagged('origin_time', xid)}, {written})"

    def origin(self, xid: str) -> str:
        return f"coalesce({_noted('origin', xid)}, {_tagged('origin', xid)})"

    def note(self, origin: Origin) -> None:
        return None

    def note_nested(self, origin: Origin, edge: Sequence[str]) -> None:
        return None

    def stamp(self, origin: Origin) -> tuple[str, list[str | None]] | None:
        return super().note(origin)


def _noted(column: str, xid: str) -> str:
    return f"(SELECT n.{column} FROM streamer.transaction AS n WHERE n.xid = ({xid})::text::bigint)"


def _tagged(column: str, xid: str) -> str:
    return f"(SELECT g.{column} FROM streamer.delta_tag AS g WHERE g.txid = {_top(xid)})"


def _top(xid: str) -> str:
    """The expression for the whole number of the transaction that an xid belongs to. An xid is compared with those half of all
    behind it and half of all before it: that of the open transaction may lie behind the snapshot's end."""
    own, last = f"({xid})::text::bigint", "txid_snapshot_xmax(txid_current_snapshot()) + 2147483647"
    nested = f"(SELECT s.txid FROM streamer.delta_nested AS s WHERE s.xid = {own})"
    return f"coalesce({nested}, ({last}) - (({last} - {own}) & 4294967295))"


def readable_versions(connection: Connection, node: str) -> Versions:
    """How to ask a node that somebody else writes."""
    noted = connection.execute("SELECT EXISTS (SELECT 1 FROM streamer.transaction)").fetchone() == (True,)
    return choose_versions(connection, node, has_origins=not noted)


def choose_versions(connection: Connection, node: str, *, has_origins: bool) -> Versions:
    """How to ask a node; `has_origins` says whether what is applied there has a replication origin."""
    keeps = keeps_commit_times(connection)
    if keeps and has_origins and version(connection) >= ORIGIN_OF:
        return OriginVersions(connection, node)
    return NotedVersions(connection, node) if keeps or not captures(connection) else DeltaVersions(connection, node)


def captures(connection: Connection) -> bool:
    """Whether triggers capture changes in this database."""
    return connection.execute(_CAPTURES).fetchone() is not None


_CAPTURES: Final = """
SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'streamer' AND c.relname = 'delta_nested' AND c.relkind = 'r'
"""
