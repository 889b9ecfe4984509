"""`streamer status`: how every edge stands. Asked of the running daemon; of the nodes themselves where no daemon answers.

https://www.postgresql.org/docs/current/view-pg-replication-slots.html
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from streamer.admin import sqlite_files
from streamer.admin.nodes import session
from streamer.admin.printing import print_table
from streamer.config import Config, slot_name
from streamer.errors import StreamerError, UsageError
from streamer.model import LSN, EdgeName
from streamer.report import State
from streamer.session import Connection, version

ANSWER_SECONDS: Final = 5.0
NOT_RUNNING: Final = "not running"


@dataclass(frozen=True, slots=True)
class Line:
    """One edge. What nobody could tell is None."""

    sync: str
    source: str
    target: str
    state: str
    position: str | None
    lag_bytes: int | None
    lag_seconds: float | None
    rows: int | None
    copied: int | None
    error: str | None
    remedy: str | None


def status(config: Config) -> list[Line]:
    """Return how all edges of the config stand. Raises UsageError if something else than streamer answers."""
    answer = _ask(config)
    told = {(line.sync, line.source, line.target): line for stream in answer for line in _lines(stream)}
    return [told.get(edge) or _read(config, EdgeName(*edge)) for edge in config.edges()]


def exit_code(lines: Sequence[Line]) -> int:
    """0 if all is streaming, 2 if an edge has failed for good, 1 for everything between."""
    states = {line.state for line in lines}
    return 0 if states <= {State.STREAMING} else 2 if State.FAILED in states else 1


def _ask(config: Config) -> list[Mapping[str, Any]]:
    """The streams of the running daemon; none if nobody listens."""
    host, port = config.http.address
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/status"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=ANSWER_SECONDS) as response:
            streams = json.load(response)["streams"]
    except (urllib.error.HTTPError, ValueError, KeyError, TypeError):
        raise UsageError(f"what answers on {url} is not streamer", "set another port in [http] listen") from None
    except OSError:
        return []
    return list(streams)


def _lines(stream: Mapping[str, Any]) -> list[Line]:
    return [_line(stream, edge) for edge in stream["edges"]]


def _line(stream: Mapping[str, Any], edge: Mapping[str, Any]) -> Line:
    """One edge of a stream; trouble of the stream is trouble of all its edges."""
    problem = edge["problem"] or stream["problem"] or {}
    worst = [state for state in (State.FAILED, State.RETRYING) if state in (stream["state"], edge["state"])]
    counters = edge["counters"]
    return Line(
        stream["sync"],
        stream["source"],
        edge["target"],
        worst[0] if worst else edge["state"],
        edge["position"] or None,
        edge["lag_bytes"],
        edge["lag_seconds"],
        counters["inserted"] + counters["updated"] + counters["deleted"],
        counters["copied"],
        problem.get("message") or edge.get("obstacle") or None,
        problem.get("hint"),
    )


def _read(config: Config, edge: EdgeName) -> Line:
    """An edge that no daemon runs: its progress from the target, the rest from the source's slot."""
    position = lag = None
    error: StreamerError | None = None
    try:
        position = _read_progress(config, edge)
        with session(config, edge.source) as connection:
            end = _end_of_wal(connection, slot_name(edge.sync, edge.source))
        if position is not None and end is not None:
            lag = max(0, end - LSN.parse(position))
        if end is None:
            error = StreamerError(f'sync "{edge.sync}" has no slot on "{edge.source}"', f"run: streamer setup --sync {edge.sync}")
    except StreamerError as problem:
        error = problem
    told = (error.message, error.hint) if error else (None, None)
    return Line(edge.sync, edge.source, edge.target, NOT_RUNNING, position, lag, None, None, None, *told)


def _read_progress(config: Config, edge: EdgeName) -> str | None:
    key = [edge.sync, edge.source, edge.target]
    if config.nodes[edge.target].kind == "sqlite":
        query = "SELECT position FROM streamer_progress WHERE sync = ? AND source = ? AND target = ?"
        rows = sqlite_files.read(config, edge.target, query, key) if sqlite_files.has_ours(config, edge.target) else []
        return rows[0][0] if rows else None
    with session(config, edge.target) as connection:
        if connection.execute("SELECT to_regclass('streamer.progress') IS NULL").fetchone() == (True,):
            return None
        query = "SELECT position FROM streamer.progress WHERE sync = %s AND source = %s AND target = %s"
        found = connection.execute(query, key).fetchone()
        return found[0] if found else None


def _end_of_wal(connection: Connection, slot: str) -> LSN | None:
    """The end of the source's WAL; None if the stream has no slot there."""
    function = "pg_current_wal_lsn" if version(connection) >= 100000 else "pg_current_xlog_location"
    row = connection.execute(
        f"SELECT {function}()::text FROM pg_replication_slots WHERE slot_name = %s".encode(), [slot]
    ).fetchone()
    return LSN.parse(row[0]) if row else None


def print_status(lines: Sequence[Line], *, as_json: bool) -> None:
    """Print the edges, and below them what is wrong."""
    if as_json:
        print(json.dumps({"edges": [asdict(line) for line in lines]}, indent=2, ensure_ascii=False))
        return
    headers = ("sync", "source", "target", "state", "position", "lag bytes", "lag s", "rows", "copied")
    print_table(headers, [_cells(line) for line in lines])
    told: set[str] = set()
    for line in lines:
        if line.error and line.error not in told:
            told.add(line.error)
            print(f"{line.sync}: {line.error}" + (f"; {line.remedy}" if line.remedy else ""))


def _cells(line: Line) -> list[str]:
    values = [line.position, line.lag_bytes, line.lag_seconds and round(line.lag_seconds, 1), line.rows, line.copied]
    return [line.sync, line.source, line.target, str(line.state), *("-" if v is None else str(v) for v in values)]
