"""Every logical slot of a cluster, as pg_replication_slots tells on any version since 9.4; what a version does not tell is None.

https://www.postgresql.org/docs/current/view-pg-replication-slots.html
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import psycopg

from streamer.report import SlotReport
from streamer.session import Connection, version

FIRST: Final = 90400
READERS: Final = 90500  # pg_replication_slots.active_pid
CONFIRMED: Final = 90600
RENAMED: Final = 100000  # xlog became wal; slots may be temporary
SAFE_SIZE: Final = 130000
INACTIVE_SINCE: Final = 170000

READER_SECONDS: Final = 10.0
"""How long a reader that was told to end may take."""

Streams = Mapping[str, tuple[str, str]]
"""The streams of the config, sync and source, by the names of their slots."""


def read_slots(connection: Connection, node: str, streams: Streams) -> list[SlotReport]:
    """Return the logical slots of the cluster, in the order of their names, as those of `node`. Raises psycopg.Error."""
    server = version(connection)
    if server < FIRST:
        return []
    return [_slot(row, node, streams) for row in connection.execute(_query(server).encode())]


def _query(server: int) -> str:
    old = {"pg_last_wal_replay_lsn": "pg_last_xlog_replay_location", "pg_current_wal_lsn": "pg_current_xlog_location"}
    replayed, current = old if server >= RENAMED else old.values()
    end = f"(SELECT CASE WHEN pg_is_in_recovery() THEN {replayed}() ELSE {current}() END AS lsn) AS wal"
    distance = "pg_wal_lsn_diff" if server >= RENAMED else "pg_xlog_location_diff"

    def since(first: int, expression: str) -> str:
        return expression if server >= first else "NULL"

    columns = (
        "slot_name, database, plugin, active",
        since(READERS, "active_pid"),
        f"{distance}(wal.lsn, restart_lsn)::bigint",
        since(SAFE_SIZE, "safe_wal_size"),
        since(SAFE_SIZE, "wal_status"),
        since(CONFIRMED, "confirmed_flush_lsn::text"),
        since(CONFIRMED, f"{distance}(wal.lsn, confirmed_flush_lsn)::bigint"),
        since(INACTIVE_SINCE, "inactive_since"),
        since(INACTIVE_SINCE, "failover"),
        "temporary" if server >= RENAMED else "false",
        since(INACTIVE_SINCE, "invalidation_reason"),
    )
    return f"SELECT {', '.join(columns)} FROM pg_replication_slots, {end} WHERE slot_type = 'logical' ORDER BY slot_name"


def _slot(row: tuple[Any, ...], node: str, streams: Streams) -> SlotReport:
    sync, source = streams.get(row[0], ("", ""))
    return replace(SlotReport(node, *row), sync=sync, source=source)


def drop_slot(connection: Connection, slot: str) -> None:
    """Drop a slot, and end whoever reads it, as often as it comes back. Raises psycopg.Error."""
    deadline = time.monotonic() + READER_SECONDS
    while True:
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
            return
        except psycopg.errors.UndefinedObject:  # it was still being made, and went with the session that made it
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
        end_reader(connection, slot)
        time.sleep(0.05)


def end_reader(connection: Connection, slot: str) -> None:
    """End the session that reads a slot, if there is one, and the server tells which: 9.4 does not. Raises psycopg.Error."""
    if version(connection) >= READERS:
        connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [slot])
