"""The true versions of copied rows and tombstones: how a load writes them, and how they are found again.

All that a load writes has one xmin, and the commit time OLDEST. For rows whose version may matter streamer.copied has the true one.
Where the target has rows or tombstones by then, of its own or of an earlier load, the later of the two versions of a key stays.

The traps: statements with the expression for a key's text hold percent signs, so they are sent without parameters. And a row's
xmin is that of its top-level transaction only if no savepoint was open, so there must be none in a load.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import orjson
from psycopg import Cursor, sql

from streamer.model import Version
from streamer.ports import RowVersion
from streamer.session import Connection, version
from streamer.sinks.policy import Key, Rules
from streamer.sinks.postgres_table import TargetTable, quote
from streamer.versions import OLDEST, Versions, key_hash, key_id, key_json, key_text

_STAGE: Final = "pg_temp.streamer_versions"
_OUR_XID: Final = "(txid_current() % 4294967296)::text::xid"
_MAKE: Final = (
    "CREATE TEMPORARY TABLE streamer_versions (id uuid, buried boolean, key text, origin text, commit_time timestamptz) "
    "ON COMMIT DROP"
)
_FILL: Final = f"COPY {_STAGE} (id, buried, key, origin, commit_time) FROM STDIN"
_FORGET: Final = f"DELETE FROM streamer.copied AS c USING {_STAGE} AS s WHERE c.id = s.id AND c.buried = s.buried"
_KEEP: Final = (
    "INSERT INTO streamer.copied (id, buried, xid, origin, commit_time) "
    f"SELECT s.id, s.buried, {_OUR_XID}, s.origin, s.commit_time FROM {_STAGE} AS s"
)
_KNOWN_LATER: Final = (
    f"DELETE FROM {_STAGE} AS s USING streamer.tombstone AS d WHERE s.buried AND d.id = s.id AND {{time}} > s.commit_time"
)
_BURY_AGAIN: Final = f"UPDATE streamer.tombstone AS d SET deleted = s.commit_time FROM {_STAGE} AS s WHERE s.buried AND d.id = s.id"
_BURY: Final = (
    "INSERT INTO streamer.tombstone (id, schema_name, table_name, key, deleted) "
    f"SELECT s.id, {{schema}}, {{name}}, s.key, s.commit_time FROM {_STAGE} AS s "
    "WHERE s.buried AND NOT EXISTS (SELECT 1 FROM streamer.tombstone AS d WHERE d.id = s.id)"
)
_OLDEST_HERE: Final = """
SELECT least((SELECT min({time}) FROM {table} AS t),
             (SELECT min({buried}) FROM streamer.tombstone AS t WHERE t.schema_name = {schema} AND t.table_name = {name}))
"""
_DELETED_HERE: Final = """
DELETE FROM {rows} AS s
USING (SELECT t.id, {time} AS at FROM streamer.tombstone AS t
       WHERE t.schema_name = {schema} AND t.table_name = {name}) AS d
WHERE d.id = {gone} AND d.at > {seen}{unless}
"""
_UNLESS_LATER: Final = f"""
  AND NOT EXISTS (SELECT 1 FROM {_STAGE} AS w WHERE w.id = {{id}} AND NOT w.buried AND w.commit_time > d.at)
"""
_DELETED_THERE: Final = (
    f"DELETE FROM {{table}} AS t USING {_STAGE} AS w WHERE w.buried AND w.id = {{gone}} AND {{time}} < w.commit_time"
)
_IS_LATER_THERE: Final = f"w.id = {{id}} AND NOT w.buried AND {{same}} AND {{time}} < w.commit_time AND NOT t.xmin = {_OUR_XID}"
_LATER_THERE: Final = f"UPDATE {{table}} AS t SET {{set}} FROM {{rows}} AS s, {_STAGE} AS w WHERE {_IS_LATER_THERE}{{free}}"
_IN_THE_WAY: Final = f"DELETE FROM {{table}} AS t USING {{rows}} AS s, {_STAGE} AS w WHERE {_IS_LATER_THERE}"
_IS_FREE: Final = " AND NOT EXISTS (SELECT 1 FROM {table} AS t WHERE {holds} AND NOT ({same}))"
# OFFSET 0: the pairs are few, so all else is asked of them only
_LOSERS: Final = f"""
SELECT DISTINCT CASE WHEN p.at < w.commit_time THEN p.own ELSE p.copied END
FROM (SELECT {{time}} AS at, {{own}} AS own, {{copied}} AS copied, {{own_id}} AS own_id, {{id}} AS copied_id, {{columns}}
      FROM {{table}} AS t JOIN {{rows}} AS s ON {{holds}} AND NOT ({{same}}) OFFSET 0) AS p
LEFT JOIN {_STAGE} AS w ON w.id = p.copied_id AND NOT w.buried
WHERE (p.at < w.commit_time OR p.at > '{OLDEST.isoformat()}')
  AND NOT EXISTS (SELECT 1 FROM {{table}} AS t WHERE {{at_copied}} AND ({{time}} < w.commit_time) IS NOT TRUE)
  AND NOT EXISTS (SELECT 1 FROM {{rows}} AS s JOIN {_STAGE} AS v ON v.id = {{id}} AND NOT v.buried
                  WHERE {{at_own}} AND NOT ({{held}}) AND p.at < v.commit_time)
  AND NOT EXISTS (SELECT 1 FROM {_STAGE} AS v WHERE v.buried AND v.id = p.own_id AND p.at < v.commit_time)
  AND NOT EXISTS (SELECT 1 FROM {_STAGE} AS v WHERE v.buried AND v.id = {{truncated}} AND p.at < v.commit_time)
"""
_FORGET_MERGED: Final = f"""
DELETE FROM streamer.version AS m USING {{rows}} AS s, {{table}} AS t WHERE m.id = {{id}} AND {{same}} AND t.xmin = {_OUR_XID}
"""
_KEEP_MERGED: Final = f"""
INSERT INTO streamer.version (id, xid)
SELECT {{own}}, t.xmin FROM {{table}} AS t, {{rows}} AS s
WHERE {{same}} AND NOT t.xmin = {_OUR_XID}
  AND NOT EXISTS (SELECT 1 FROM streamer.version AS m WHERE m.id = {{own}})
"""
_MERGE: Final = "UPDATE {table} AS t SET {set} FROM {rows} AS s WHERE {same}"
_TRUE: Final = "SELECT id::text, xid::text, commit_time, origin FROM streamer.copied WHERE buried = %s AND id = ANY(%s::uuid[])"


class CopiedVersions:
    """What one load does about versions, in its transaction; `versions` is how to ask the target. With `rules`, the target's rows
    are not known to the source: their columns are merged with those of copied ones, as they will be there."""

    def __init__(self, connection: Connection, target: TargetTable, versions: Versions, rules: Rules | None) -> None:
        self._connection = connection
        self._target = target
        self._versions = versions
        self._rules = rules or Rules("latest")
        self._key = [quote(c) for c in target.keys[0]]
        table = target.table
        self._truncated = f"'{key_id(table, ())}'::uuid"
        self._names = {"schema": self._literal(table.schema), "name": self._literal(table.name), "table": target.rows}

    def oldest_here(self) -> datetime | None:
        """Return the time of the oldest row or tombstone that the target has, if known."""
        names = {"time": self._versions.time(self._written()), "buried": self._versions.time("t.xmin"), **self._names}
        row = self._run(_OLDEST_HERE.format(**names)).fetchone()
        return row[0] if row else None

    def stage(self, rows: Iterable[RowVersion]) -> None:
        """Receive the true versions."""
        self._run("SET LOCAL enable_hashjoin = on")
        self._run(_MAKE)
        with self._connection.cursor() as cursor, cursor.copy(_FILL) as copy:
            for row in rows:
                id_, key = key_id(self._target.table, row.key), key_json(row.key)
                copy.write_row((id_, row.deleted, key, row.version.node, row.version.time))
        self._run(f"ANALYZE {_STAGE}")

    def leave_out_deleted(self, rows: str, seen: datetime) -> None:
        """Take out of the staged `rows` what was deleted here later. What was deleted here up to `seen` was known to the source."""
        theirs = self._id("s")
        times = {"time": self._buried("t", "t.deleted"), "seen": self._literal(seen.isoformat())}
        unless = "" if self._rules.merged else _UNLESS_LATER.format(id=theirs)
        for gone in (theirs, self._truncated):
            self._run(_DELETED_HERE.format(rows=rows, gone=gone, unless=unless, **times, **self._names))

    def losers(self, rows: str, columns: Sequence[str]) -> set[Key]:
        """Return the keys of rows, staged or here, whose unique values belong to a later row on the other side; of rows that would
        stay, or come to be, in the table."""
        own, copied = (key_text(version(self._connection), row, self._key) for row in "ts")
        there = {"id": self._id("s"), "own_id": self._id("t"), "time": self._time(self._written()), **self._pairs(rows)}
        keys = [(f"t{i}", f"s{i}", c) for i, c in enumerate(self._key)]
        query = functools.partial(
            _LOSERS.format,
            own=own,
            copied=copied,
            at_own=" AND ".join(f"s.{c} = p.{ours}" for ours, _, c in keys),
            at_copied=" AND ".join(f"t.{c} = p.{theirs}" for _, theirs, c in keys),
            truncated=self._truncated,
            **there,
        )
        lost: set[Key] = set()
        for unique in self._uniques(columns):
            told = [f"t.{c} AS {ours}, s.{c} AS {theirs}" for ours, theirs, c in keys]
            told += [f"t.{c} AS u{i}" for i, c in enumerate(unique)]
            held = " AND ".join(f"s.{c} = p.u{i}" for i, c in enumerate(unique))
            found = self._run(query(holds=_alike(unique), held=held, columns=", ".join(told)))
            lost |= {tuple(orjson.loads(key)) for (key,) in found}
        return lost

    def settle(self, rows: str, columns: Sequence[str]) -> None:
        """Compare the `columns` of the staged `rows` with the target's, and take out of the target what is older."""
        theirs, own = self._id("s"), self._id("t")
        time = self._time(self._written())
        for gone in (own, self._truncated):
            self._run(_DELETED_THERE.format(gone=gone, time=time, **self._names))
        there = self._pairs(rows)
        plain = [c for c in columns if c not in self._target.keys[0] and not self._target.columns[c].always_identity]
        assigned = [quote(c) for c in plain if c not in self._rules.merged]
        if assigned:
            free = "".join(_IS_FREE.format(holds=_alike(unique), **there) for unique in self._uniques(columns))
            set_ = ", ".join(f"{c} = s.{c}" for c in assigned)
            later = _LATER_THERE.format(set=set_, free=free, id=theirs, time=time, **there)
            while self._run(later).rowcount and free:  # each may let go of a unique value that another waits for
                pass
            if free:  # those that are left wait for one another; they come back as they were copied
                self._run(_IN_THE_WAY.format(id=theirs, time=time, **there))
        self._run(_FORGET_MERGED.format(id=theirs, **there))
        if merged := [c for c in plain if c in self._rules.merged]:
            self._run(_KEEP_MERGED.format(own=own, **there))
            self._run(_MERGE.format(set=", ".join(f"{quote(c)} = {self._sum(c)}" for c in merged), **there))

    def _pairs(self, rows: str) -> dict[str, str]:
        """How a query names the target's rows `t` and the staged `rows` `s`, and when they have the same key."""
        return {"rows": rows, "same": _alike(self._key), **self._names}

    def _uniques(self, columns: Sequence[str]) -> list[list[str]]:
        """The unique keys but the first, quoted."""
        return [[quote(c) for c in u] for u in self._target.uniques if u != self._target.keys[0] and set(u) <= set(columns)]

    def _sum(self, column: str) -> str:
        """The expression for a merged column of two rows that were inserted independently (as merge.py has it)."""
        ours, theirs = f"t.{quote(column)}", f"s.{quote(column)}"
        if column in self._rules.delta:
            both = f"{ours} + {theirs}"
        else:  # equal values may be written differently: every node must choose the same text
            better = ">" if column in self._rules.max else "<"
            ours_stay = f"{ours} {better} {theirs} OR ({ours} = {theirs} AND {ours}::text {better} {theirs}::text)"
            both = f"CASE WHEN {ours_stay} THEN {ours} ELSE {theirs} END"
        return f"CASE WHEN {ours} IS NULL THEN {theirs} WHEN {theirs} IS NULL THEN {ours} ELSE {both} END"

    def write(self) -> None:
        """Leave the tombstones, and note the true versions of what this transaction has written."""
        self._run(_KNOWN_LATER.format(time=self._buried("d", "'-infinity'")))  # that of a key we have just deleted is ours
        self._run(_BURY_AGAIN)
        self._run(_BURY.format(**self._names))
        self._run(_FORGET)
        self._run(_KEEP)

    def _id(self, row: str) -> str:
        return key_hash(self._connection, self._target.table, key_text(version(self._connection), row, self._key))

    def _written(self) -> str:
        """The expression for the transaction that wrote a row here, but for its merged columns."""
        if not self._rules.merged:
            return "t.xmin"
        own = self._id("t")
        return f"coalesce((SELECT m.xid FROM streamer.version AS m WHERE m.id = {own}), t.xmin)"

    def _buried(self, tombstone: str, unknown: str) -> str:
        """The expression for when a key was deleted, `unknown` if its transaction does not tell: that of an earlier load never
        does, but what it has brought says so itself."""
        time, oldest = self._versions.time(f"{tombstone}.xmin"), self._literal(OLDEST.isoformat())
        return f"CASE WHEN {time} = {oldest} THEN {tombstone}.deleted ELSE coalesce({time}, {unknown}) END"

    def _time(self, xid: str) -> str:
        return f"coalesce({self._versions.time(xid)}, '-infinity')"

    def _run(self, query: str) -> Cursor[tuple[Any, ...]]:
        return self._connection.execute(query.encode())

    def _literal(self, text: str) -> str:
        return sql.Literal(text).as_string(self._connection).strip()


def _alike(columns: Sequence[str]) -> str:
    return " AND ".join(f"t.{c} = s.{c}" for c in columns)


def true_versions(connection: Connection, found: Sequence[tuple[str, str | None, Version]], *, buried: bool) -> list[Version]:
    """Return the versions of rows or tombstones, given with ids and xmin: of those without a time the one that a copy brought."""
    ids = [id_ for id_, _, version in found if version.time is None]
    if not ids:
        return [version for _, _, version in found]
    rows = connection.execute(_TRUE, [buried, ids], prepare=True)
    true = {(id_, xid): Version(time, node) for id_, xid, time, node in rows}
    return [true.get((id_, xid or ""), version) if version.time is None else version for id_, xid, version in found]
