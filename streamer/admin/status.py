"""`streamer status`: how every edge stands. Asked of the running daemon; of the nodes themselves where no daemon answers.

https://www.postgresql.org/docs/current/view-pg-replication-slots.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

from streamer.admin.daemon_client import ask_status
from streamer.admin.foreign import target_of
from streamer.admin.nodes import session
from streamer.admin.printing import counted, print_table
from streamer.config import Config, slot_name
from streamer.errors import StreamerError
from streamer.model import LSN, EdgeName
from streamer.report import CONTINUOUS, State
from streamer.session import Connection, version

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
    #: when it runs, as the config has it
    schedule: str = CONTINUOUS
    #: the run that is under way, else the last one: number, started, ended, result, rows; None if there was none, or none is needed
    run: Mapping[str, Any] | None = None
    #: when the next one begins by itself, as an ISO time
    next_run: str | None = None
    #: values that the target cannot hold, written as NULL or as the nearest one
    replaced: int | None = None


def status(config: Config) -> list[Line]:
    """Return how all edges of the config stand. Raises UsageError if something else than streamer answers."""
    streams = (ask_status(config) or {"streams": []})["streams"]
    told = {(line.sync, line.source, line.target): line for stream in streams for line in _lines(stream)}
    return [_whole(config, told.get(edge), EdgeName(*edge)) for edge in config.edges()]


def _whole(config: Config, line: Line | None, edge: EdgeName) -> Line:
    """What the daemon has told, if it has, and what only the nodes know: what has been committed since an edge rests."""
    if line is not None and line.state not in (State.RESTING, State.PAUSED):
        return line
    read = _read(config, edge)
    if line is None:
        return read
    error, remedy = (line.error, line.remedy) if line.error else (read.error, read.remedy)
    position = read.position or line.position
    return replace(line, position=position, lag_bytes=read.lag_bytes, lag_seconds=None, error=error, remedy=remedy)


def exit_code(lines: Sequence[Line]) -> int:
    """0 if all is streaming, or rests as it should, 2 if an edge has failed for good, 1 for everything between."""
    states = {line.state for line in lines}
    return 0 if states <= {State.STREAMING, State.RESTING} else 2 if State.FAILED in states else 1


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
        stream["schedule"],
        stream["kicks"]["run"],
        stream["kicks"]["next"],
        counters["replaced"],
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
    message, remedy = (error.message, error.hint) if error else (None, None)
    schedule = config.syncs[edge.sync].run
    return Line(edge.sync, edge.source, edge.target, NOT_RUNNING, position, lag, None, None, None, message, remedy, schedule)


def _read_progress(config: Config, edge: EdgeName) -> str | None:
    if (foreign := target_of(config, edge.target)) is not None:
        return foreign.position(edge)
    key = [edge.sync, edge.source, edge.target]
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
    """Print the edges, and below them when those run that rest between their runs, and what is wrong."""
    if as_json:
        print(json.dumps({"edges": [asdict(line) for line in lines]}, indent=2, ensure_ascii=False))
        return
    headers = ("sync", "source", "target", "state", "position", "lag bytes", "lag s", "rows", "copied")
    print_table(headers, [_cells(line) for line in lines])
    for told_run in dict.fromkeys(_told_run(line) for line in lines if line.schedule != CONTINUOUS and line.state != NOT_RUNNING):
        print(told_run)
    told: set[str] = set()
    for line in lines:
        if line.error and line.error not in told:
            told.add(line.error)
            print(f"{line.sync}: {line.error}" + (f"; {line.remedy}" if line.remedy else ""))


def _cells(line: Line) -> list[str]:
    values = [line.position, line.lag_bytes, line.lag_seconds and round(line.lag_seconds, 1), line.rows, line.copied]
    return [line.sync, line.source, line.target, str(line.state), *("-" if v is None else str(v) for v in values)]


def _told_run(line: Line) -> str:
    """When the stream of this edge ran last, and when it will; for people."""
    parts = ["has not run yet since streamer run was started"]
    if line.run is not None:
        parts = [f"run {line.run['number']} began {_moment(line.run['started'])}", *_course(line.run, line.state)]
    if line.next_run:
        parts.append(f"the next begins {_moment(line.next_run)}")
    return f"{line.sync}: {line.source} ({line.schedule}): {', '.join(parts)}"


def _course(run: Mapping[str, Any], state: str) -> list[str]:
    rows = counted(run["rows"], "row")
    if run["ended"] is None:
        return [rows, "goes on when resumed"] if state == State.PAUSED else [f"{rows} so far"]
    seconds = (datetime.fromisoformat(run["ended"]) - datetime.fromisoformat(run["started"])).total_seconds()
    return [f"{run['result']} after {seconds:.1f} s", rows]


def _moment(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M:%S} UTC"
