"""The SQL by which a batch is read transaction by transaction. Pure, and nothing that 8.4 does not know.

Each key belongs to the transaction that wrote it last: of those that have a delta of it, the one with the greatest id, because
whoever draws an id holds the row's lock. It made the row as it is now, so the row is told as its change; what was overwritten
within the batch is not told, since the overwriter saw it. Transactions come in the order of their last ids: whoever waited for
another one drew its last id later, whatever the clock says. Where several nodes write, they come in the order of their commit
times, because these tell what a node had seen; one that streamer applied here has the commit time of its origin, so it counts as
committed with its last delta.

The trap: a batch that was recorded before is read with the rows of today. What was written again since belongs to a later batch.

https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-COMMIT-TIMESTAMP
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from streamer.capture.definition_types import literal
from streamer.capture.trigger_query import DeltaTable, column_name, found, grouped, joins, oids, place, window

NO_COMMIT_TIMES: Final = "NULL::timestamptz"
COMMIT_TIMES: Final = "pg_catalog.pg_xact_commit_timestamp((d.txid & 4294967295)::text::xid)"
"""The commit time of a transaction, where the server keeps it: of a txid the upper half counts how often xids began anew."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A recorded batch: what its snapshot sees and that of the batch before does not, both as text."""

    #: the number of the batch before, and its own
    number: int
    end: int
    #: the snapshots of the two
    lower: str
    upper: str
    #: NO_COMMIT_TIMES or COMMIT_TIMES
    commit_time: str
    #: the origin and the source of applied transactions that are wanted
    carried: Collection[tuple[str, str]] = ()


def tags(batch: Batch) -> str:
    """Return the query for the applied transactions: the id of the last delta, sync, source, origin and the time there."""
    return (
        "SELECT greatest(g.id, (SELECT max(d.id) FROM streamer.delta AS d WHERE d.txid = g.txid)) AS last, "
        "g.sync, g.source, g.origin, g.origin_time::text "
        f"FROM streamer.delta_tag AS g WHERE {_ours(batch)} ORDER BY last"
    )


def transactions(batch: Batch, *, masters: bool) -> str:
    """Return the query for all transactions in order: txid, last id, time in microseconds since 1970, and the tag's source, origin,
    position, time, and what the origin had seen; NULL if it was made here."""
    return (
        "SELECT b.txid, b.last, b.moment, g.source, g.origin, g.origin_position, g.origin_time::text, g.seen "
        f"FROM (SELECT DISTINCT txid, last, moment FROM ({_deltas(batch)}) AS x WHERE {_visible(batch)}) AS b "
        f"LEFT JOIN streamer.delta_tag AS g ON g.txid = b.txid ORDER BY {'b.moment, ' if masters else ''}b.last"
    )


def truncates(batch: Batch) -> str:
    """Return the query for the truncates: relation, txid, id, whether the batch has it, and whether it was made here. Those after
    the batch are among them: what they removed is not there any more.
    """
    own = "NOT EXISTS (SELECT 1 FROM streamer.delta_tag AS g WHERE g.txid = x.txid)"
    return (
        f"SELECT relation::bigint, txid, id, {_visible(batch)}, {own} "
        f"FROM ({_deltas(batch)}) AS x WHERE kind = 't' AND dropped = 0 ORDER BY id"
    )


def removals(batch: Batch, relation: int) -> str:
    """Return the query for what the rows of streamer.removal tell: txid, schema, table, and the key as a JSON object."""
    return (
        f"SELECT txid, key[1], key[2], key[3] FROM ({_deltas(batch)}) AS x "
        f"WHERE relation = {relation} AND dropped = 0 AND {_visible(batch)} ORDER BY moment, last, id"
    )


def rows(batch: Batch, table: DeltaTable, after: int | None, deltas: int, *, masters: bool) -> tuple[str, str]:
    """Return settings and the query for a table's rows: the txid of who wrote it last, the kind, and a value for each column, of
    which only those of the key count in a delete.

    The kind is i, u, d, or r for a row that was deleted and is there again. `masters`: several nodes write. Then what was written
    again after the batch is left out, and the writer there copes with rows that are missing; keys that were inserted and deleted
    count as deleted, because another node may have inserted them too. Else the batch must leave each row there that its end had: as
    it is now; where keys may meet, a row may be there though the last delta is a delete, of one that had its key before. Deltas
    with ids up to `after` are passed over. `deltas` is how many there are.
    """
    keys, groups = grouped(table)
    chosen = f"relation = ANY ({oids(table.oids)}) AND kind <> 't'" + ("" if after is None else f" AND id > {after}")
    newest = (
        f"SELECT {keys}, max(ARRAY[id, txid, moment, last, dropped, CASE kind WHEN 'd' THEN 1 ELSE 0 END]) AS {_NEWEST}, "
        f"sum(CASE WHEN dropped = 1 THEN 0 WHEN kind = 'i' THEN 1 WHEN kind = 'd' THEN -1 ELSE 0 END) AS {_GAINED}, "
        f"bool_or(kind = 'd') AS {_LEFT} FROM ({_deltas(batch, table.oids)}) AS x "
        f"WHERE {chosen}{'' if masters else f' AND {_visible(batch)}'} GROUP BY {groups}"
    )
    ours = f"SELECT * FROM ({newest}) AS n WHERE {_NEWEST}[5] = 0 AND {_visible(batch, f'{_NEWEST}[2]')} OFFSET 0"
    gone = "t.tableoid IS NULL" if masters else f"d.{_NEWEST}[6] = 1{'' if table.enforced else ' AND t.tableoid IS NULL'}"
    again = "false" if masters else f"d.{_LEFT}"
    kind = f"CASE WHEN {gone} THEN 'd' WHEN d.{_GAINED} > 0 THEN 'i' WHEN {again} THEN 'r' ELSE 'u' END"
    wanted = "" if masters else f" WHERE CASE WHEN {gone} THEN d.{_GAINED} < 0 ELSE t.tableoid IS NOT NULL END"
    return joins(table, deltas), (
        f"SELECT {_NEWEST}[2], {_KIND}, {', '.join(table.values)} FROM ("
        f"SELECT d.{_NEWEST}, {kind} AS {_KIND}, {_columns(table)} FROM ({ours}) AS d "
        f"LEFT JOIN {place(table)} AS t ON {found(table)}{wanted}) AS r "
        f"ORDER BY {f'{_NEWEST}[3], ' if masters else ''}{_NEWEST}[4], {_KIND} = 'i', {_KIND} = 'u', {_KIND} = 'r'"
    )


def _columns(table: DeltaTable) -> str:
    """The columns of a row, or of a key without one."""
    keyed = {name for name, _ in table.key}
    names = [(name, column_name(name)) for name in table.relation.names]
    return ", ".join(f"coalesce(t.{c}, d.{c}) AS {c}" if name in keyed else f"t.{c} AS {c}" for name, c in names)


_KIND: Final = '"streamer kind"'
_NEWEST: Final = '"streamer newest"'
_GAINED: Final = '"streamer gained"'
_LEFT: Final = '"streamer left"'


def _deltas(batch: Batch, relations: Collection[int] = ()) -> str:
    """The query for all deltas since the batch before, each with the last id and the time of its transaction, and whether that is
    one that nobody wants; of transactions only that have touched one of the `relations`, if any are named. They are looked up one
    by one, for a batch may touch a hundred tables, and all of it would be read a hundred times."""
    pairs = ", ".join(f"({literal(origin)}, {literal(source)})" for origin, source in sorted(batch.carried))
    carried = f" OR (g.origin, g.source) IN ({pairs})" if pairs else ""
    moment = f"CASE WHEN g.txid IS NULL THEN coalesce({batch.commit_time}, max(d.time) OVER same) ELSE max(d.time) OVER same END"
    of = f"SELECT DISTINCT txid FROM streamer.delta WHERE {window(batch.lower)} AND relation = ANY ({oids(relations)})"
    touching, joined = (f"({of}) AS o JOIN ", "ON d.txid = o.txid ") if relations else ("", "")
    return (
        "SELECT d.id, d.txid, d.relation, d.kind, d.key, max(d.id) OVER same AS last, "
        f"round(extract(epoch FROM {moment}) * 1000000)::bigint AS moment, "
        f"CASE WHEN g.txid IS NULL{carried} THEN 0 ELSE 1 END::bigint AS dropped "
        f"FROM {touching}streamer.delta AS d {joined}LEFT JOIN streamer.delta_tag AS g ON g.txid = d.txid "
        f"WHERE {window(batch.lower, 'd.txid')} WINDOW same AS (PARTITION BY d.txid)"
    )


def _ours(batch: Batch) -> str:
    return f"{window(batch.lower, 'g.txid')} AND {_visible(batch, 'g.txid')}"


def _visible(batch: Batch, txid: str = "txid") -> str:
    return f"pg_catalog.txid_visible_in_snapshot({txid}, {literal(batch.upper)}::pg_catalog.txid_snapshot)"
