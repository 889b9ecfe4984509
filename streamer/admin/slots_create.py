"""`streamer slots create`: what setup does for the slot of a stream and nothing else; as a failover slot if that is asked for.

A failover slot is kept on standbys too, which synchronize slots (17+), so that the stream goes on after a failover.

https://www.postgresql.org/docs/current/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS-SYNCHRONIZATION
"""

from __future__ import annotations

from typing import Final

from streamer.admin import installation
from streamer.admin.nodes import APPLICATION, Say, chosen_syncs, session
from streamer.admin.setup import StreamSetup
from streamer.admin.slots import find_slot
from streamer.config import Config, slot_name
from streamer.errors import SourceError, UsageError
from streamer.session import Connection, connect, reported, version

FAILOVER: Final = 170000


def create(config: Config, sync: str, source: str | None, say: Say, *, failover: bool) -> None:
    """Make the slots of a sync that are missing, on all its sources or one. Raises StreamerError."""
    chosen_syncs(config, sync)
    sources = config.syncs[sync].sources
    if source is not None and source not in sources:
        raise UsageError(f'node "{source}" is no source of sync "{sync}"', f"its sources are {', '.join(sources)}")
    for node in sources if source is None else (source,):
        with session(config, node) as connection:
            if failover:
                _require_failover(connection, node)
            if not installation.is_there(connection):
                raise SourceError(f'node "{node}" is not set up for sync "{sync}"', f"run: streamer setup --sync {sync}; then this")
            StreamSetup(connection, config, sync, node, say, failover=failover).prepare()
            slot = slot_name(sync, node)
            if failover and not find_slot(config, node, slot, connection).failover:
                _make_failover(config, connection, node, slot)
                say(f'{node}: slot "{slot}" is a failover slot now')


def _require_failover(connection: Connection, node: str) -> None:
    if version(connection) < FAILOVER:
        raise SourceError(
            f'node "{node}" is PostgreSQL {version(connection) // 10000}, which has no failover slots; 17 and later have',
            "leave out --failover",
        )


def _make_failover(config: Config, connection: Connection, node: str, slot: str) -> None:
    """Alter a slot that was there: only a walsender can do that, and nobody may read the slot meanwhile."""
    found = find_slot(config, node, slot, connection)
    if found.active:
        raise UsageError(
            f'slot "{slot}" on "{node}" is being read by process {found.active_pid}', "stop streamer run, and repeat this"
        )
    with reported(node), connect(node, config.nodes[node].url, application=APPLICATION, replication=True) as replication:
        replication.execute(f'ALTER_REPLICATION_SLOT "{slot}" (FAILOVER true)'.encode())
