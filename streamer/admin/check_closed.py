"""`streamer check`: no database of a sync lets clients write. A cutover that is killed between two steps may leave them so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from streamer.admin import writers
from streamer.admin.findings import Finding, warning
from streamer.session import Connection


def judge_closed(sync: str, connections: Mapping[str, Connection]) -> Iterator[Finding]:
    """Yield a finding for each of the sync's databases, given by node, if all of two or more are read-only for clients."""
    if len(connections) > 1 and all(writers.setting(connection) == "on" for connection in connections.values()):
        for node, connection in connections.items():
            yield warning(
                f'node "{node}"',
                f'is read-only for clients, as all databases of sync "{sync}" are',
                f"if no cutover is at work, run it again; or let clients write here: {writers.opening(connection)}",
            )
