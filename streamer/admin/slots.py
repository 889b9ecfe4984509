"""`streamer slots list` and `drop`: the logical slots on every PostgreSQL node of the config, ours and others'.

Slots belong to a cluster, in which several nodes may be databases: each slot is listed once, at the node whose database it reads if
there is one. Making, advancing and looking into a slot is in the other slots_ modules.

https://www.postgresql.org/docs/current/view-pg-replication-slots.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Final

from streamer.admin.nodes import Say, session
from streamer.admin.printing import print_table
from streamer.capture.slot_list import Streams, drop_slot, read_slots
from streamer.config import Config, slot_name
from streamer.errors import StreamerError, UsageError, start_over
from streamer.report import SlotReport
from streamer.session import Connection
from streamer.wal_guard import size

Confirm = Callable[[Sequence[str]], bool]
"""Shows a person what will happen, and asks."""

_CLUSTER: Final = "SELECT pg_postmaster_start_time()::text, current_setting('port'), current_database()"


@dataclass(frozen=True, slots=True)
class Found:
    """All slots that could be seen, and what was in the way of the others."""

    slots: list[SlotReport]
    problems: list[StreamerError]


def streams_on(config: Config, node: str) -> Streams:
    """Return the streams of the config that read this node, by the names of their slots."""
    return {slot_name(sync, node): (sync, node) for sync, settings in config.syncs.items() if node in settings.sources}


def find(config: Config, nodes: Sequence[str] | None = None) -> Found:
    """Return every logical slot on every PostgreSQL node, or on these, each once."""
    clusters: dict[tuple[str, str], dict[str, SlotReport]] = {}
    databases: dict[tuple[str, str], dict[str, str]] = {}
    problems: list[StreamerError] = []
    servers = [name for name, settings in config.nodes.items() if settings.kind == "postgresql"]
    for node in servers if nodes is None else nodes:
        try:
            with session(config, node) as connection:
                started, port, database = connection.execute(_CLUSTER).fetchone() or ("", "", "")
                cluster = (started, port)  # the same server, whatever the url calls it
                databases.setdefault(cluster, {}).setdefault(database, node)
                known = clusters.setdefault(cluster, {})
                for slot in read_slots(connection, node, streams_on(config, node)):
                    if slot.slot not in known or slot.sync:
                        known[slot.slot] = slot
        except StreamerError as error:
            problems.append(error)
    slots = [
        replace(slot, node=databases[cluster].get(slot.database, slot.node))
        for cluster, known in clusters.items()
        for slot in known.values()
    ]
    return Found(sorted(slots, key=lambda slot: (slot.node, slot.slot)), problems)


def find_slot(config: Config, node: str, slot: str, connection: Connection) -> SlotReport:
    """Return one slot of a node. Raises UsageError if there is none such."""
    slots = read_slots(connection, node, streams_on(config, node))
    for found in slots:
        if found.slot == slot:
            return found
    there = ", ".join(f'"{found.slot}"' for found in slots) or "none"
    raise UsageError(f'node "{node}" has no logical slot "{slot}"', f"it has {there}; see: streamer slots list")


def require_node(config: Config, node: str) -> None:
    """Raise UsageError unless the config has this node, and it is a PostgreSQL server."""
    if node not in config.nodes:
        raise UsageError(f'the config has no node "{node}"', f"it has {', '.join(config.nodes)}")
    if config.nodes[node].kind != "postgresql":
        raise UsageError(f'node "{node}" is {config.nodes[node].kind}, which has no slots', "name a PostgreSQL node")


def drop(config: Config, node: str, slot: str, *, force: bool, confirm: Confirm, say: Say) -> bool:
    """Drop a slot; with `force`, one that is read too, by ending its reader. Return whether it was. Raises StreamerError."""
    require_node(config, node)
    with session(config, node) as connection:
        found = find_slot(config, node, slot, connection)
        if found.active and not force:
            reader = "" if found.active_pid is None else f" by process {found.active_pid}"
            raise UsageError(
                f'slot "{slot}" on "{node}" is being read{reader}{_whose(found)}',
                "end the reader first, or have it ended with: --force",
            )
        if not confirm(_consequences(found)):
            say("nothing was changed")
            return False
        drop_slot(connection, slot)
        say(f'{node}: dropped slot "{slot}"')
    return True


def _consequences(slot: SlotReport) -> list[str]:
    held = "" if slot.retained_bytes is None else f", which holds back {size(slot.retained_bytes)} of WAL"
    lines = [f'slot "{slot.slot}" on "{slot.node}" ({slot.plugin}, database "{slot.database}"){held}']
    if slot.sync:
        way_on = start_over(slot.sync, slot.source)
        lines.append(f'the sync "{slot.sync}" reads it: what its targets do not have yet is lost for them; {way_on}')
    else:
        lines.append("no stream of this config uses it; whoever does loses what it has not read yet")
    return lines


def _whose(slot: SlotReport) -> str:
    return f' (sync "{slot.sync}")' if slot.sync else ""


def print_slots(found: Found, *, as_json: bool) -> None:
    """Print the slots."""
    if as_json:
        slots = [asdict(slot) for slot in found.slots]
        print(json.dumps({"slots": slots}, indent=2, ensure_ascii=False, default=datetime.isoformat))
        return
    headers = (
        "node",
        "slot",
        "plugin",
        "reader",
        "keeps WAL",
        "still safe",
        "status",
        "confirmed",
        "lag",
        "stream",
        "unread since",
    )
    spare = ("plugin", "unread since", "confirmed", "still safe", "lag")
    print_table(headers, [_cells(slot) for slot in found.slots], spare=spare)


def _cells(slot: SlotReport) -> list[str]:
    since = slot.inactive_since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if slot.inactive_since else "-"
    notes = [slot.wal_status or "-", slot.invalidation or "", "failover" if slot.failover else "", "temporary" * slot.temporary]
    return [
        slot.node,
        slot.slot,
        slot.plugin,
        "-" if not slot.active else f"PID {slot.active_pid}" if slot.active_pid else "active",
        _size(slot.retained_bytes),
        _size(slot.safe_wal_bytes),
        ", ".join(filter(None, notes)),
        slot.confirmed or "-",
        _size(slot.lag_bytes),
        f"{slot.sync}: {slot.source}" if slot.sync else "-",
        since,
    ]


def _size(number: int | None) -> str:
    return "-" if number is None else size(max(0, number))
