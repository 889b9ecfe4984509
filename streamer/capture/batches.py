"""The batches of a stream on its source: recorded, confirmed, and their deltas purged.

A batch is a number and the snapshot of a transaction: it holds what this snapshot sees and that of the number before does not. It
is recorded, durably, before anybody gets anything of it; one that nobody got is harmless. Numbers are drawn and snapshots are taken
under the lock of the stream's row in streamer.delta_reader, so they have the same order.

The traps: the snapshot must be taken after the lock, and recorded by another transaction than the one that holds it. And a standby
that is promoted may lack the last batches, of which targets hold rows; so whenever the server is another one, or was restarted, the
numbers leap: that of a lost batch is never given again, and who stands there is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from streamer.errors import SourceError
from streamer.model import LSN
from streamer.session import Connection
from streamer.versions import keeps_commit_times

FIRST: Final = 1
"""The number of the batch that a stream begins after."""
LEAP: Final = 1 << 18
"""How far numbers leap when the server is another one: more than anybody records before a standby notices."""
LAST: Final = (1 << 32) - 1 - LEAP
PURGE_ROWS: Final = 20_000
"""Deltas deleted in one transaction."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the batches of a stream stand."""

    #: made with the stream's row: another row is another stream, whatever its name
    id: str
    #: of the last batch that was recorded
    number: int
    #: of the last batch that every target holds
    confirmed: int


def position_of(number: int) -> LSN:
    """Return the position just past a batch."""
    return LSN(number << 32)


def number_of(position: LSN) -> int:
    """Return the number of the last batch that lies before a position as a whole."""
    return position >> 32


def number_in_batch(position: LSN) -> int:
    """Return the number of the first transaction behind a position in the batch that it lies in; 0 if it lies before a batch."""
    return position & 0xFFFFFFFF


def installed(connection: Connection) -> bool:
    """Return whether streamer captures by triggers in this database."""
    return connection.execute(_INSTALLED).fetchone() is not None


def try_lock(connection: Connection, stream: str) -> bool:
    """Make this session the one that reads the stream, until it ends; return whether there is no other."""
    return connection.execute(_TRY_LOCK, [stream]).fetchone() == (True,)


def reading(connection: Connection, stream: str) -> list[int]:
    """Return the process of the session that reads the stream, if there is one."""
    return [pid for (pid,) in connection.execute(_HOLDER, [stream])]


def create_reader(connection: Connection, stream: str) -> None:
    """Make the stream, which begins now: whatever is not committed yet is its first batch's. The triggers must be in place."""
    with connection.transaction():
        connection.execute(_CREATE, {"stream": stream, "number": FIRST})
        connection.execute(_RECORD, {"stream": stream, "number": FIRST, "snapshot": None, "base": 0})


def drop_reader(connection: Connection, stream: str) -> None:
    """Remove the stream with its batches."""
    with connection.transaction():
        connection.execute("DELETE FROM streamer.delta_batch WHERE stream = %s", [stream])
        connection.execute("DELETE FROM streamer.delta_reader WHERE stream = %s", [stream])


def purge(connection: Connection) -> int:
    """Delete deltas that no stream needs any more, PURGE_ROWS at most; return how many. Where there is no stream, none is needed.

    Whoever purges holds the row of streamer.delta_identity: two that delete the same rows would wait for each other. Where deltas
    tell the versions of rows (`DeltaVersions`), what they tell is kept.
    """
    with connection.transaction():
        connection.execute("SELECT 1 FROM streamer.delta_identity FOR UPDATE")
        (needed,) = connection.execute(_NEEDED).fetchone() or (0,)
        # the planner takes a table that has just grown for a small one, and would compare each of its rows with the whole array
        connection.execute("SET LOCAL enable_seqscan = off")
        if _tell_versions(connection):
            # of the transactions that are purged now; one of which a part remains is kept now, too
            (last,) = connection.execute(_LAST, {"needed": needed, "rows": PURGE_ROWS}, prepare=False).fetchone() or (None,)
            needed = needed if last is None else last + 1
            connection.execute(_KEEP_VERSIONS, {"needed": needed}, prepare=False)
        connection.execute("DELETE FROM streamer.delta_tag WHERE txid < %s", [needed], prepare=False)
        connection.execute("DELETE FROM streamer.delta_nested WHERE txid < %s", [needed], prepare=False)
        return connection.execute(_PURGE, [needed, PURGE_ROWS], prepare=False).rowcount


def _tell_versions(connection: Connection) -> bool:
    """Whether the node takes part in a sync with several sources, and has nothing else that tells when a row was written."""
    if keeps_commit_times(connection) or connection.execute(_HAS_MEMBERS).fetchone() is None:
        return False
    return connection.execute("SELECT EXISTS (SELECT 1 FROM streamer.member)").fetchone() == (True,)


class Batches:
    """The batches of one stream on the node named `node`, over a connection in autocommit mode. Raises psycopg.Error."""

    def __init__(self, connection: Connection, node: str, stream: str) -> None:
        self._connection = connection
        self._node = node
        self.stream = stream
        connection.execute("SET synchronous_commit = on")  # with the batch, whatever its snapshot sees becomes durable

    def standing(self) -> Standing | None:
        """Return where the stream stands; None if it does not exist."""
        row = self._connection.execute(_STANDING, [self.stream]).fetchone()
        return None if row is None else Standing(*row)

    def snapshot(self, number: int) -> str | None:
        """Return the snapshot of a batch; None if it has been confirmed since, or was never recorded."""
        row = self._connection.execute(_SNAPSHOT, [self.stream, number]).fetchone()
        return None if row is None else str(row[0])

    def after(self, number: int) -> tuple[int, str] | None:
        """Return the number and the snapshot of the batch that was recorded next after this one; None if none was."""
        row = self._connection.execute(_NEXT, [self.stream, number]).fetchone()
        return None if row is None else (int(row[0]), str(row[1]))

    def begin(self) -> int:
        """Lock the stream until `record` or the end of the session; return the number for the snapshot that is taken next."""
        self._connection.execute("BEGIN")
        row = self._connection.execute(_LOCK, [self.stream]).fetchone()
        if row is None or row[0] >= LAST:
            self._connection.execute("ROLLBACK")
            problem = "has been removed" if row is None else "has no numbers left"
            raise SourceError(f'the stream "{self.stream}" on "{self._node}" {problem}', "run: streamer setup")
        number, same = row
        return int(number) + (1 if same else LEAP)

    def record(self, number: int, snapshot: str, base: int) -> None:
        """Record the batch and give back the lock. Returning means durable. `base` is the least id of its deltas."""
        self._connection.execute(_RECORD, {"stream": self.stream, "number": number, "snapshot": snapshot, "base": base})
        self._connection.execute(_ADVANCE, [number, self.stream])
        self._connection.execute("COMMIT")

    def confirm(self, number: int) -> None:
        """Note that every target durably holds the batches up to this one."""
        with self._connection.transaction():
            self._connection.execute(_CONFIRM, {"stream": self.stream, "number": number})
            self._connection.execute(_FORGET, {"stream": self.stream})

    def purge(self) -> int:
        """Delete deltas that no stream needs, PURGE_ROWS at most; return how many."""
        return purge(self._connection)


_INSTALLED: Final = """
SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'streamer' AND c.relname = 'delta_reader'
"""
_TRY_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext('streamer'), hashtext(%s))"
_HOLDER: Final = """
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid = hashtext('streamer')::oid AND objid = hashtext(%s)::oid AND objsubid = 2
"""
_CREATE: Final = """
INSERT INTO streamer.delta_reader (stream, id, number, confirmed, server)
SELECT %(stream)s, md5(random()::text || clock_timestamp()::text || %(stream)s), %(number)s, %(number)s, pg_postmaster_start_time()
"""
_RECORD: Final = """
INSERT INTO streamer.delta_batch (stream, number, snapshot, base)
VALUES (%(stream)s, %(number)s, coalesce(%(snapshot)s::text::txid_snapshot, txid_current_snapshot()), %(base)s)
"""
# a restored dump has the identity's row of the original, but another table
_STANDING: Final = """
SELECT r.id || CASE WHEN i.relation = 'streamer.delta'::regclass::oid THEN '' ELSE ' restored' END, r.number, r.confirmed
FROM streamer.delta_reader r CROSS JOIN streamer.delta_identity i WHERE r.stream = %s
"""
_SNAPSHOT: Final = "SELECT snapshot::text FROM streamer.delta_batch WHERE stream = %s AND number = %s"
_NEXT: Final = "SELECT number, snapshot::text FROM streamer.delta_batch WHERE stream = %s AND number > %s ORDER BY number LIMIT 1"
_LOCK: Final = "SELECT number, server = pg_postmaster_start_time() FROM streamer.delta_reader WHERE stream = %s FOR UPDATE"
_ADVANCE: Final = "UPDATE streamer.delta_reader SET number = %s, server = pg_postmaster_start_time() WHERE stream = %s"
_CONFIRM: Final = """
UPDATE streamer.delta_reader SET confirmed = %(number)s
WHERE stream = %(stream)s AND confirmed < %(number)s AND number >= %(number)s
"""
_FORGET: Final = """
DELETE FROM streamer.delta_batch
WHERE stream = %(stream)s AND number < (SELECT confirmed FROM streamer.delta_reader WHERE stream = %(stream)s)
"""
# the largest bigint: without a stream nothing is needed
_NEEDED: Final = """
SELECT coalesce(min(coalesce(txid_snapshot_xmin(b.snapshot), 0)), 9223372036854775807)
FROM streamer.delta_reader r LEFT JOIN streamer.delta_batch b ON b.stream = r.stream AND b.number = r.confirmed
"""
_HAS_MEMBERS: Final = """
SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'streamer' AND c.relname = 'member'
"""
_LAST: Final = """
SELECT max(txid) FROM (SELECT txid FROM streamer.delta WHERE txid < %(needed)s ORDER BY txid LIMIT %(rows)s) AS d
"""
_KEEP_VERSIONS: Final = """
INSERT INTO streamer.transaction (xid, origin, commit_time)
SELECT w.xid, coalesce(g.origin, ''), coalesce(g.origin_time, (SELECT max(d.time) FROM streamer.delta AS d WHERE d.txid = w.txid))
FROM (SELECT txid & 4294967295 AS xid, txid FROM streamer.delta WHERE txid < %(needed)s
      UNION SELECT txid & 4294967295, txid FROM streamer.delta_tag WHERE txid < %(needed)s
      UNION SELECT xid, txid FROM streamer.delta_nested WHERE txid < %(needed)s) AS w
LEFT JOIN streamer.delta_tag AS g ON g.txid = w.txid
WHERE NOT EXISTS (SELECT 1 FROM streamer.transaction AS n WHERE n.xid = w.xid)
"""
_PURGE: Final = """
DELETE FROM streamer.delta
WHERE ctid = ANY (ARRAY(SELECT ctid FROM streamer.delta WHERE txid < %s ORDER BY txid LIMIT %s))
"""
