"""`streamer check`, what targets hold already: whether their sources can go on from there. `run` refuses what cannot.

The trap: a daemon may be running. What a slot has confirmed is read before the progress, and where the WAL ends after it, so that
neither can have overtaken the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from streamer.admin import installation
from streamer.admin.findings import Finding, error
from streamer.admin.foreign import target_of
from streamer.assembly import make_source
from streamer.config import Config
from streamer.copying import verify
from streamer.errors import SlotError, StreamerError
from streamer.model import LSN, EdgeName, SlotIdentity
from streamer.ports import SlotState
from streamer.session import Connection


def judge_progress(config: Config, sync: str, source: str, connections: Mapping[str, Connection]) -> Iterator[Finding]:
    """Yield an error for each edge of the stream that would be refused; `connections` are those to PostgreSQL nodes. Raises
    StreamerError if the source does not say, psycopg.Error."""
    edges = [EdgeName(sync, source, target) for target in config.targets(sync, source)]
    stream = make_source(config, sync, source, ())
    before = missing = None
    try:
        before = stream.state()
    except SlotError as problem:
        missing = problem
    held = {edge: found for edge in edges if (found := _held(config, edge, connections)) is not None}
    if not held:
        return  # before setup, or before the first run
    if before is None:
        yield from _told(f'sync "{sync}" from "{source}"', missing)
        return
    state = replace(stream.state(), confirmed=before.confirmed)
    for edge, (slot, position) in held.items():
        yield from _told(f"edge {edge}", _refusal(edge, slot or state.identity, position, state))


def _refusal(edge: EdgeName, slot: SlotIdentity, position: LSN, state: SlotState) -> SlotError | None:
    try:
        verify(edge, slot, position, state)
    except SlotError as problem:
        return problem
    return None


def _told(what: str, problem: StreamerError | None) -> Iterator[Finding]:
    if problem is not None:
        yield error(what, problem.message.removeprefix(f"{what}: "), problem.hint)


def _held(config: Config, edge: EdgeName, connections: Mapping[str, Connection]) -> tuple[SlotIdentity | None, LSN] | None:
    """What the target holds, and of which slot where it tells; None if it holds nothing, or is not there."""
    if (foreign := target_of(config, edge.target)) is not None:
        try:
            position = foreign.position(edge)
        except StreamerError:
            return None  # it is told elsewhere
        return None if position is None else (None, LSN.parse(position))
    connection = connections.get(edge.target)
    if connection is None or not installation.is_there(connection):
        return None
    row = connection.execute(_PROGRESS, [edge.sync, edge.source, edge.target]).fetchone()
    return None if row is None else (SlotIdentity(*row[:3]), LSN.parse(row[3]))


_PROGRESS = "SELECT system_identifier, database, slot, position FROM streamer.progress WHERE (sync, source, target) = (%s, %s, %s)"
