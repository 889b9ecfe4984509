"""`streamer slots advance`: let a slot pass over changes for good, after telling which.

For a slot of ours the progress of its edges is moved along, else they would refuse to go on with what looks like a gap, as they
should. The trap: the edges first, the slot last; broken off in between, the targets have skipped what the slot still holds, and the
command is repeated.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, closing
from typing import Final

from streamer.admin.nodes import Say, session
from streamer.admin.printing import counted
from streamer.admin.slots import Confirm, find_slot, require_node
from streamer.admin.slots_peek import records
from streamer.assembly import make_sink
from streamer.capture.slot_peek import COPIES
from streamer.config import Config
from streamer.errors import SourceError, TargetError, UsageError
from streamer.grouping import idle_group
from streamer.model import LSN, POSTGRES_EPOCH, EdgeName, Idle, Origin
from streamer.ports import Progress, Sink
from streamer.report import SlotReport
from streamer.session import Connection, version

ADVANCES: Final = 110000
COUNTED: Final = 10_000
"""How many skipped changes are counted."""
DURABLE_SECONDS: Final = 30.0


def advance(config: Config, node: str, slot: str, position: str, *, confirm: Confirm, say: Say) -> bool:
    """Move a slot, and with one of ours the edges that are behind, to a position or `now`. Return whether it was. Raises
    StreamerError."""
    require_node(config, node)
    with session(config, node) as connection, ExitStack() as opened:
        found = find_slot(config, node, slot, connection)
        to = _destination(connection, found, position)
        edges = [EdgeName(found.sync, node, target) for target in config.targets(found.sync, node)] if found.sync else []
        behind = [(edge, *entered) for edge in edges if (entered := _enter(config, edge, to, opened)) is not None]
        if not confirm([*_skipped(config, connection, found, to), *(f"edge {edge} will never have it" for edge, *_ in behind)]):
            say("nothing was changed")
            return False
        for edge, sink, progress in behind:
            _move(edge, sink, progress, to)
            say(f"{edge.target}: moved the progress of edge {edge} from {progress.position} to {to}")
        connection.execute("SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", [slot, str(to)])
        say(f'{node}: advanced slot "{slot}" to {to}')
    return True


def _destination(connection: Connection, slot: SlotReport, position: str) -> LSN:
    where = f'slot "{slot.slot}" on "{slot.node}"'
    if version(connection) < ADVANCES:
        raise SourceError(
            f'node "{slot.node}" cannot advance a slot; PostgreSQL 11 and later can', "drop the slot and set it up anew"
        )
    if slot.active:
        raise UsageError(
            f"{where} is being read by process {slot.active_pid}", "pause its sync or stop streamer run, and repeat this"
        )
    end = LSN.parse((connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("0/0",))[0])
    try:
        to = end if position == "now" else LSN.parse(position)
    except ValueError:
        raise UsageError(f'"{position}" is no position', "write now, or an LSN like 16/B374D848") from None
    if to > end:
        raise UsageError(f'position {to} lies behind the end of the WAL of "{slot.node}", {end}', "name an earlier one, or now")
    if slot.confirmed is not None and to < LSN.parse(slot.confirmed):
        raise UsageError(f"{where} is at {slot.confirmed} already, and cannot go back to {to}", "name a later position, or now")
    return to


def _enter(config: Config, edge: EdgeName, to: LSN, opened: ExitStack) -> tuple[Sink, Progress] | None:
    """The sink of an edge that is behind, which nobody else writes meanwhile, and its progress."""
    sink = make_sink(config, edge)
    opened.callback(sink.close)
    progress = sink.open()
    return (sink, progress) if progress is not None and progress.position < to else None


def _skipped(config: Config, connection: Connection, slot: SlotReport, to: LSN) -> list[str]:
    passed = f'slot "{slot.slot}" on "{slot.node}" goes from {slot.confirmed or "where it is"} to {to}'
    if not slot.sync or version(connection) < COPIES:
        return [f"{passed}; whatever was committed between them is skipped for good"]
    tables: Counter[str] = Counter()
    transactions: set[str] = set()
    unread: list[str] = []
    try:
        with closing(records(config, slot, to)) as coming:
            for record in coming:
                if LSN.parse(record["position"]) >= to or tables.total() >= COUNTED:
                    break
                tables[record["table"]] += 1
                transactions.add(record["position"])
    except SourceError as error:  # to pass over what cannot be read is what a slot is advanced for
        unread = [f"the rest cannot be read, and is not counted: {error.message}"]
    if not tables:
        return [f"{passed}; no change of the sync is skipped"] if not unread else [passed, *unread]
    least = "at least " if tables.total() >= COUNTED or unread else ""
    told = ", ".join(f"{number} of {table}" for table, number in tables.most_common())
    return [f"{passed}; skipped for good: {least}{counted(len(transactions), 'transaction')} with {told}", *unread]


def _move(edge: EdgeName, sink: Sink, progress: Progress, to: LSN) -> None:
    nothing = Origin(edge.source, LSN(0), POSTGRES_EPOCH)
    sink.write([idle_group(nothing, Idle(to, urgent=False, seen=progress.seen))], lambda: False)
    deadline = time.monotonic() + DURABLE_SECONDS
    while sink.durable() < to:
        if time.monotonic() > deadline:
            raise TargetError(f'node "{edge.target}" has not made the new progress of edge {edge} durable', "repeat this")
        time.sleep(0.02)
