"""`streamer check`, what was left behind: slots of ours that no sync of the config reads, for which a server keeps WAL until its
disk is full. Another config may read them, so that is a warning.

https://www.postgresql.org/docs/current/view-pg-replication-slots.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from streamer.admin.findings import Finding, warning
from streamer.capture.snapshot import COPY_SLOT, abandoned_slots
from streamer.config import Config, slot_name
from streamer.node_config import LOGICAL_DECODING
from streamer.session import Connection, version

_UNREAD: Final = (
    "SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE NOT active AND database = current_database() "
    rf"AND slot_name LIKE 'streamer\_%' AND slot_name !~ '{COPY_SLOT}$' ORDER BY 1"
)


def judge_slots_left(config: Config, node: str, connection: Connection) -> Iterator[Finding]:
    """Yield the slots of ours that this config does not know, and nobody reads. Raises psycopg.Error."""
    if version(connection) < LOGICAL_DECODING:
        return
    known = {slot_name(sync, node) for sync, settings in config.syncs.items() if node in settings.sources}
    found = [slot for (slot,) in connection.execute(_UNREAD.encode())]
    for slot in [*found, *abandoned_slots(connection)]:  # before version 10 a copy has a slot that looks as if nobody read it
        if slot not in known:
            yield warning(
                f'slot "{slot}" on "{node}"',
                "is not in the config, and nobody reads it: WAL is kept for it until the disk is full",
                f"if it is not coming back: streamer slots drop {node} {slot}",
            )
