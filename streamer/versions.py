"""The version of a row on PostgreSQL: when and on which node the transaction that wrote it was first made.

From 14 on the server tells both of any transaction whose commit time it has kept, because the sink gives every transaction that it
applies the commit time of the original and a replication origin that names the node. Elsewhere (an older server, a role without the
right to origins, no track_commit_timestamp) a row of streamer.transaction tells them of what streamer has applied, and all else is
local. A version without a time is older than any other.

The rows of an initial copy were all written by one transaction, with OLDEST for its time. Those whose real version may matter have
it in streamer.copied, together with that transaction's id: once the row is written again it is no longer of that transaction.

What belongs to a row without being in it (tombstone, version, copied) is kept under an id, the hash of table and key.

https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-COMMIT-TIMESTAMP
"""

from __future__ import annotations

import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import orjson
from psycopg import sql

from streamer.model import NOTHING_SEEN, POSTGRES_EPOCH, Origin, Seen, TableName, Version
from streamer.session import Connection, version

OLDEST: Final = POSTGRES_EPOCH + timedelta(seconds=1)
"""The commit time of copied rows; the epoch itself would be taken for none, and replaced by the present."""
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


def key_text(row: str, columns: Sequence[str]) -> str:
    """The expression for a row's key as a JSON array; `columns` are quoted. A cast to text is not what the type's output function
    writes, for char(n) for example."""
    texts = ", ".join(f"format('%s', {row}.{column})" for column in columns)
    return f"array_to_json(ARRAY[{texts}])::text"


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

    #: what two columns of a query give: the commit time, and what `read` makes the node of
    columns: str
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
    def join(self, xid: str) -> str:
        """The join that gives `columns` for the transaction that the expression `xid` tells."""

    @abstractmethod
    def mark(self, origin: Origin) -> str:
        """The parameter of `guard`."""

    @abstractmethod
    def node(self, mark: str | None) -> str:
        """The node that the second of `columns` stands for."""

    @abstractmethod
    def note(self, origin: Origin) -> tuple[str, list[str | None]] | None:
        """The statement that tells later readers where the open transaction was made, if one is needed."""

    def read(self, time: str | None, mark: str | None) -> Version:
        """Return the version that a row of a query tells; that of a copied row, and of one from before the sync, has no time."""
        at, node = None if time is None else datetime.fromisoformat(time), self.node(mark)
        if at is not None and (at <= OLDEST or (node == self._node and self.joined is not None and at <= self.joined)):
            at = None
        return Version(at, node)


class OriginVersions(Versions):
    """The server tells both, by replication origins. `current` tells the session's."""

    columns = "v.at::text, v.ident::text"
    exact = True
    guard = "nullif((pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident, %s::oid) IS NULL"

    def __init__(self, connection: Connection, node: str) -> None:
        super().__init__(connection, node)
        self._nodes: dict[str, str] = {}
        self._idents: dict[str, str] = {}

    def join(self, xid: str) -> str:
        return f"CROSS JOIN LATERAL pg_catalog.pg_xact_commit_timestamp_origin({xid}) AS v(at, ident)"

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
        return None


class NotedVersions(Versions):
    """What streamer has applied is noted in streamer.transaction."""

    columns = "v.at::text, v.origin"
    exact = False
    guard = "EXISTS (SELECT FROM streamer.transaction AS x WHERE x.xid = t.xmin::text::bigint AND x.origin = %s)"
    _NOTE: Final = (
        "INSERT INTO streamer.transaction (xid, origin, commit_time) VALUES (txid_current() %% 4294967296, %s, %s::timestamptz)"
    )

    def __init__(self, connection: Connection, node: str) -> None:
        super().__init__(connection, node)
        self._local_time = "pg_catalog.pg_xact_commit_timestamp({xid})" if keeps_commit_times(connection) else "NULL::timestamptz"

    def join(self, xid: str) -> str:
        local = self._local_time.format(xid=xid)
        return (
            f"CROSS JOIN LATERAL (SELECT coalesce(max(x.commit_time), {local}) AS at, max(x.origin) AS origin "
            f"FROM streamer.transaction AS x WHERE x.xid = ({xid})::text::bigint) AS v"
        )

    def mark(self, origin: Origin) -> str:
        return origin.node

    def node(self, mark: str | None) -> str:
        return self._node if mark is None else mark

    def note(self, origin: Origin) -> tuple[str, list[str | None]]:
        return self._NOTE, [origin.node, origin.commit_time.isoformat()]


def readable_versions(connection: Connection, node: str) -> Versions:
    """How to ask a node that somebody else writes."""
    noted = connection.execute("SELECT EXISTS (SELECT FROM streamer.transaction)").fetchone() == (True,)
    return choose_versions(connection, node, has_origins=not noted)


def choose_versions(connection: Connection, node: str, *, has_origins: bool) -> Versions:
    """How to ask a node; `has_origins` says whether what is applied there has a replication origin."""
    if has_origins and version(connection) >= ORIGIN_OF and keeps_commit_times(connection):
        return OriginVersions(connection, node)
    return NotedVersions(connection, node)
