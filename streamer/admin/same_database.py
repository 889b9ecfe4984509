"""Two nodes of a sync that are one database, because a url was copied and not corrected: each change would be written over what is
there already, which may be newer. `check` tells of it, and `setup` refuses it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from itertools import combinations
from typing import Final

from streamer.admin.foreign import target_of
from streamer.admin.nodes import session
from streamer.config import Config
from streamer.errors import UsageError
from streamer.session import Connection

_SERVER: Final = "SELECT pg_postmaster_start_time()::text, oid::text FROM pg_database WHERE datname = current_database()"


def identity(connection: Connection) -> tuple[str, str]:
    """Return what tells a PostgreSQL database from others, whatever address it is reached under."""
    ((started, oid),) = connection.execute(_SERVER)
    return started, oid


def same(places: Mapping[str, Hashable]) -> Iterator[UsageError]:
    """Yield an error for any two nodes that are one database. Pure."""
    for one, other in combinations(places, 2):
        if places[one] == places[other]:
            yield UsageError(f'nodes "{one}" and "{other}" are the same database', f"correct nodes.{one}.url or nodes.{other}.url")


def refuse_same(config: Config, sync: str) -> None:
    """Refuse a sync that would replicate a database onto itself. Raises UsageError; StreamerError if a node does not answer."""
    settings = config.syncs[sync]
    places: dict[str, Hashable] = {}
    for node in (*settings.sources, *settings.targets):
        if (foreign := target_of(config, node)) is not None:
            places[node] = foreign.identity()
            continue
        with session(config, node) as connection:
            places[node] = identity(connection)
    for told in same(places):
        raise UsageError(f'sync "{sync}": {told.message}', told.hint)
