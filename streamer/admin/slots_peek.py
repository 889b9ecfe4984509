"""`streamer slots peek`: the next changes of a slot, decoded, from a copy of it, so that nothing is consumed.

A slot of ours is read as its stream reads it. What another's plugin says is shown as it comes, where it is text.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC
from itertools import islice
from typing import Any, Final

from streamer.admin.nodes import session
from streamer.admin.slots import find_slot, require_node
from streamer.capture.assemble import Interest
from streamer.capture.diagnose import Diagnosis
from streamer.capture.slot_peek import OPTIONS, PeekSource, end_of_wal, require_copies, start_on_copy, texts
from streamer.config import Config
from streamer.errors import UsageError
from streamer.model import LSN, UNCHANGED, Change, Idle, Kind, Piece, Row, Transaction
from streamer.ports import Place
from streamer.report import SlotReport

WAIT_SECONDS: Final = 0.2

Record = Mapping[str, Any]
"""A change: position, commit time and origin of its transaction, kind, table, old and new row; or the text of a plugin."""


def peek(config: Config, node: str, slot: str, limit: int) -> list[Record]:
    """Return the next changes of a slot of ours, or what another's plugin says, `limit` at most. Raises StreamerError."""
    require_node(config, node)
    with session(config, node) as connection:
        found = find_slot(config, node, slot, connection)
        require_copies(connection, node)
        end = end_of_wal(connection)
    with closing(records(config, found, end)) as coming:
        return list(islice(coming, limit))


def records(config: Config, slot: SlotReport, end: LSN) -> Generator[Record, None, None]:
    """Give what the slot holds of all that was committed before `end`. Raises StreamerError."""
    if not slot.sync:
        yield from ({"text": text} for text in _texts(config, slot, end))
        return
    for piece in _pieces(config, slot, end):
        yield from (_record(piece.transaction, change) for change in piece.changes)


def _pieces(config: Config, slot: SlotReport, end: LSN) -> Iterator[Piece]:
    sync = config.syncs[slot.sync]
    interest = Interest(sync.selects, whole=sync.copies_whole, keys=sync.key_for)
    source = PeekSource(slot.node, config.nodes[slot.node], slot.sync, slot.slot, interest)
    with source.read_from([Place(LSN(0))]) as reader:
        reached = LSN(0)
        while reached < end:
            for item in reader.read(WAIT_SECONDS):
                if isinstance(item, Idle):
                    reached = item.position
                else:
                    reached = item.end or reached
                    yield item
            reader.confirm(LSN(0))


def _texts(config: Config, slot: SlotReport, end: LSN) -> Iterator[str]:
    if slot.plugin not in OPTIONS:
        raise UsageError(
            f'slot "{slot.slot}" on "{slot.node}" is none of this config, and its plugin {slot.plugin} cannot be read without '
            "knowing for what",
            f"only those of {' and '.join(OPTIONS)} can; or use the config that the slot belongs to",
        )
    url, diagnosis = config.nodes[slot.node].url, Diagnosis(slot.node, slot.sync, slot.slot)
    stream = start_on_copy(slot.node, url, slot.slot, LSN(0), OPTIONS[slot.plugin], diagnosis)
    try:
        yield from texts(stream, end, WAIT_SECONDS)
    finally:
        stream.finish(lambda: None)


def _record(transaction: Transaction, change: Change) -> Record:
    kind, relation, old, new = change
    origin = transaction.origin
    return {
        "position": str(transaction.position),
        "commit_time": origin.commit_time.astimezone(UTC).isoformat(),
        "origin": origin.node,
        "kind": kind.value,
        "table": str(relation.table),
        "old": _row(relation.names, old),
        "new": _row(relation.names, new),
    }


def _row(names: Iterable[str], row: Row | None) -> dict[str, str | None] | None:
    """The values that travel; a long one that did not change is not among them."""
    if row is None:
        return None
    return {name: value for name, value in zip(names, row, strict=True) if value is not UNCHANGED}


def print_records(found: Iterable[Record], *, as_json: bool) -> None:
    """Print changes below the transactions that they belong to, or texts line by line."""
    if as_json:
        print(json.dumps({"changes": list(found)}, indent=2, ensure_ascii=False))
        return
    found, transaction = list(found), ""
    if not found:
        print("the slot holds no changes")
    for record in found:
        if "text" in record:
            print(record["text"])
            continue
        if record["position"] != transaction:
            transaction = record["position"]
            print(f"transaction {transaction}, committed {record['commit_time']} on {record['origin']}")
        print(f"  {record['kind']} {record['table']}{_told(record)}")


def _told(record: Record) -> str:
    if record["kind"] == Kind.TRUNCATE:
        return ""
    old, new = record["old"], record["new"]
    rows = [f" {_pairs(row)}" for row in (old, new) if row is not None]
    return " ->".join(rows)


def _pairs(row: Mapping[str, str | None]) -> str:
    return "(" + ", ".join(f"{name}={value!r}" if value is not None else f"{name}=NULL" for name, value in row.items()) + ")"
