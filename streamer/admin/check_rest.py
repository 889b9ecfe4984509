"""`streamer check`, syncs that do not run all the time: what their slots cost the source while they rest. Pure.

https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-MAX-SLOT-WAL-KEEP-SIZE
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from streamer.admin.findings import Finding, ok, warning
from streamer.config import Sync, slot_name

WAL_LIMIT: Final = "max_slot_wal_keep_size"  # 13, in MB
IDLE_LIMIT: Final = "idle_replication_slot_timeout"  # 18, in seconds
LIMIT_WAL: Final = (
    f"ALTER SYSTEM SET {WAL_LIMIT} = '10GB'; SELECT pg_reload_conf(), with what the disk can spare; "
    "a sync that falls behind further needs a new copy"
)


def judge_rest(sync: str, settings: Sync, source: str, server: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is to be said of the slot of a sync on `source`; `server` are the settings there."""
    if settings.continuous:
        return
    what = f'slot "{slot_name(sync, source)}" on "{source}"'
    rests = f'while the sync "{sync}" rests (run = "{settings.run}")'
    limit = server.get(WAL_LIMIT)
    if limit is None:
        yield warning(what, f"keeps all WAL {rests}, and this version knows no limit", "run the sync before the disk is full")
    elif int(limit) < 0:
        yield warning(what, f"keeps all WAL {rests}, until the disk is full", LIMIT_WAL)
    else:
        yield ok(what, f"keeps up to {limit} MB of WAL {rests}; past that a new copy is needed ({WAL_LIMIT})")
    idle = int(server.get(IDLE_LIMIT, "0"))
    if idle and (settings.interval is None or settings.interval >= idle):
        remedy = f"ALTER SYSTEM SET {IDLE_LIMIT} = 0; SELECT pg_reload_conf()"
        yield warning(what, f"is invalidated after {idle} s without a reader ({IDLE_LIMIT}), which may come {rests}", remedy)
