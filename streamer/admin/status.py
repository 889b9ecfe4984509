"""`streamer status`: how every edge stands, and how much WAL the slots hold back. Asked of the running daemon; of the nodes
themselves where no daemon answers.

Everything that is found has a severity, and the exit code is the worst of them, as monitoring plugins have it. The trap: a daemon
that does not run is critical, because then nothing is replicated and the slots keep WAL; a standby is as it should be.

https://www.monitoring-plugins.org/doc/guidelines.html#AEN78
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from streamer import __version__
from streamer.admin import installation, slots
from streamer.admin.daemon_client import ask_status
from streamer.admin.foreign import target_of
from streamer.admin.nodes import session
from streamer.capture.batches import Batches, installed
from streamer.capture.delta_list import read_deltas
from streamer.config import Config, slot_name
from streamer.errors import StreamerError, UsageError, start_over
from streamer.model import LSN, EdgeName
from streamer.node_config import choose_capture
from streamer.report import CONTINUOUS, GuardLevel, State
from streamer.session import Connection, version
from streamer.sinks.postgres_care import quarantine_table
from streamer.wal_guard import Guard, size

NOT_RUNNING: Final = "not running"
RELOAD: Final = "systemctl reload streamer, or pkill -HUP -f 'bin/[s]treamer run'"
"""pidof knows no scripts; and a shell whose own command line holds this does not match it."""


class Severity(enum.IntEnum):
    """How bad something is; the exit code of `status`."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


SEVERITIES: Final[Mapping[str, Severity]] = {
    State.STREAMING: Severity.OK,
    State.RESTING: Severity.OK,
    State.STANDBY: Severity.OK,
    State.STARTING: Severity.WARNING,
    State.COPYING: Severity.WARNING,
    State.INDEXING: Severity.WARNING,
    State.RETRYING: Severity.WARNING,
    State.PAUSED: Severity.WARNING,
    State.STOPPED: Severity.WARNING,
    State.FAILED: Severity.CRITICAL,
    NOT_RUNNING: Severity.CRITICAL,
}
"""What the state of an edge means."""
_LEVELS: Final = {GuardLevel.HALF: Severity.WARNING, GuardLevel.EXCEEDED: Severity.CRITICAL}
_IN_DANGER: Final = ("unreserved", "lost")


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
    #: the last copy of each table that is copied whole: table, rows, at
    full_copies: Sequence[Mapping[str, Any]] = ()
    #: rows by kind; truncated counts tables
    inserted: int | None = None
    updated: int | None = None
    deleted: int | None = None
    truncated: int | None = None
    #: commit time of the last applied transaction, as an ISO time
    last_applied: str | None = None
    #: why a run that is due does not begin
    held: str | None = None
    #: those that are kept in step: number, moved, at, problem; None if none are
    sequences: Mapping[str, Any] | None = None
    #: changes that the target holds in quarantine
    quarantined: int | None = None
    #: the position from which on the copied tables are of one time; None if it is reached
    consistent_from: str | None = None
    #: tables that are being copied: table, rows, total, done, ranges, bytes, rate, remaining, total_ranges, total_bytes
    copy: Sequence[Mapping[str, Any]] = ()
    #: what the comparison without end has found: tables, rows, different, since, problem and more; None if there is none
    proof: Mapping[str, Any] | None = None
    #: indexes and constraints that its tables do not have yet: waiting, building (what, since), refused (what, reason, statement)
    post_data: Mapping[str, Any] | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        lagging = self.sequences is not None and self.sequences["problem"] is not None
        differs = self.proof is not None and (self.proof["different"] or self.proof["problem"] is not None)
        refused = self.post_data is not None and bool(self.post_data["refused"])
        blocked = self.state == State.STREAMING and self.remedy is not None
        amiss = lagging or differs or refused or blocked or self.quarantined
        return max(SEVERITIES[self.state], Severity.WARNING if amiss else Severity.OK)


@dataclass(frozen=True, slots=True)
class NodeFinding:
    """What is wrong with the slots of a source, or with looking at them."""

    node: str
    severity: Severity
    finding: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Status:
    """All edges of a config, and what is wrong with its sources."""

    edges: list[Line]
    nodes: list[NodeFinding]
    #: whether a daemon answers
    running: bool
    #: what triggers have captured and not every target holds yet: sync, source, table, rows, more
    deltas: Sequence[Mapping[str, Any]] = ()

    @property
    def severity(self) -> Severity:
        """The worst of everything."""
        return max([*(line.severity for line in self.edges), *(found.severity for found in self.nodes)], default=Severity.OK)


def status(config: Config) -> Status:
    """Return how everything stands. Raises UsageError if something else than this streamer answers, or the token is wrong."""
    answer = ask_status(config)
    if answer is None:
        edges = [_whole(config, None, EdgeName(*edge)) for edge in config.edges()]
        return Status(edges, _seen(config), running=False, deltas=_counted(config))
    told, nodes, deltas = _read_answer(answer)
    edges = [_known(_whole(config, told.get(edge), EdgeName(*edge))) for edge in config.edges()]
    return Status(edges, nodes, running=True, deltas=deltas)


def _read_answer(answer: Mapping[str, Any]) -> tuple[dict[tuple[str, str, str], Line], list[NodeFinding], list[Any]]:
    """The edges, what is wrong on sources, and the deltas that the daemon tells of."""
    try:
        told = {(line.sync, line.source, line.target): line for stream in answer["streams"] for line in _lines(stream)}
        nodes = [found for node in answer["nodes"] for found in _told(node)]
        return told, nodes, [delta for node in answer["nodes"] for delta in node["deltas"]]
    except KeyError as missing:
        raise UsageError(
            f"the daemon that runs is of another version ({answer.get('version', 'unknown')}, this is {__version__}): "
            f"it does not tell {missing}",
            "restart it: systemctl restart streamer",
        ) from None


def _whole(config: Config, line: Line | None, edge: EdgeName) -> Line:
    """What the daemon has told, if it has, and what only the nodes know: what has been committed since an edge rests."""
    if line is not None and line.state not in (State.RESTING, State.PAUSED):
        return line
    read = _read(config, edge)
    if line is None:
        return read
    error, remedy = (line.error, line.remedy) if line.error else (read.error, read.remedy)
    position = read.position or line.position
    told = replace(line, position=position, lag_bytes=read.lag_bytes, lag_seconds=None, error=error, remedy=remedy)
    return replace(told, quarantined=told.quarantined if read.quarantined is None else read.quarantined)


def _known(line: Line) -> Line:
    """Add what to do if the daemon that answers has another config than we."""
    if line.state != NOT_RUNNING or line.error is not None:
        return line
    error = f"the daemon that answers does not run the edge to {line.target}"
    return replace(line, error=error, remedy=f"if it should, have it read the config again: {RELOAD}")


# -- edges -----------------------------------------------------------------------------------------------------------------------


def _lines(stream: Mapping[str, Any]) -> list[Line]:
    return [_line(stream, edge) for edge in stream["edges"]]


def _line(stream: Mapping[str, Any], edge: Mapping[str, Any]) -> Line:
    """One edge of a stream; trouble of the stream is trouble of all its edges."""
    problem = edge["problem"] or stream["problem"] or {}
    worst = [state for state in (State.FAILED, State.RETRYING, State.STANDBY) if state in (stream["state"], edge["state"])]
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
        problem.get("message") or edge["obstacle"] or stream["held"] or None,
        problem.get("hint"),
        stream["schedule"],
        stream["kicks"]["run"],
        stream["kicks"]["next"],
        counters["replaced"],
        edge["full_copies"],
        counters["inserted"],
        counters["updated"],
        counters["deleted"],
        counters["truncated"],
        edge["last_applied"],
        stream["held"] or None,
        edge["sequences"],
        edge["quarantined"],
        edge["consistent_from"] or None,
        [copy for copy in edge["copy"] if not copy["done"]],
        edge["proof"],
        edge["post_data"],
    )


def _read(config: Config, edge: EdgeName) -> Line:
    """An edge that no daemon runs: its progress from the target, the rest from the source."""
    position = lag = held = None
    error: StreamerError | None = None
    try:
        position, held = _read_progress(config, edge)
        with session(config, edge.source) as connection:
            lag = _lag(config, connection, edge, position)
    except StreamerError as problem:
        error = problem
    message, remedy = (error.message, error.hint) if error else (None, None)
    schedule = config.syncs[edge.sync].run
    line = Line(edge.sync, edge.source, edge.target, NOT_RUNNING, position, lag, None, None, None, message, remedy, schedule)
    return replace(line, quarantined=held)


def _read_progress(config: Config, edge: EdgeName) -> tuple[str | None, int | None]:
    """What the target says: the edge's position, and how many changes it holds in quarantine."""
    if (foreign := target_of(config, edge.target)) is not None:
        return foreign.position(edge), foreign.quarantined(edge)
    key = [edge.sync, edge.source, edge.target]
    with session(config, edge.target) as connection:
        if not installation.is_there(connection):
            return None, None
        query = "SELECT position FROM streamer.progress WHERE sync = %s AND source = %s AND target = %s"
        found = connection.execute(query, key).fetchone()
        held = quarantine_table(edge, connection).count() if installation.has_table(connection, "quarantine") else None
        return found[0] if found else None, held


def _lag(config: Config, connection: Connection, edge: EdgeName, position: str | None) -> int | None:
    """WAL between the source's end and the position; None where triggers capture. Raises StreamerError if nothing is set up."""
    slot, setup = slot_name(edge.sync, edge.source), f"run: streamer setup --sync {edge.sync}"
    if choose_capture(config.nodes[edge.source].capture, version(connection))[0] == "trigger":
        if not installed(connection) or Batches(connection, edge.source, slot).standing() is None:
            raise StreamerError(f'sync "{edge.sync}" has no delta reader on "{edge.source}"', setup)
        return None
    function = "pg_current_wal_lsn" if version(connection) >= 100000 else "pg_current_xlog_location"
    row = connection.execute(
        f"SELECT {function}()::text FROM pg_replication_slots WHERE slot_name = %s".encode(), [slot]
    ).fetchone()
    if row is None:
        raise StreamerError(f'sync "{edge.sync}" has no slot on "{edge.source}"', setup)
    return None if position is None else max(0, LSN.parse(row[0]) - LSN.parse(position))


# -- sources ---------------------------------------------------------------------------------------------------------------------


def _told(node: Mapping[str, Any]) -> list[NodeFinding]:
    """What the daemon has found on a source."""
    ours = [slot for slot in node["slots"] if slot["sync"]]
    found = [_finding(slot["sync"], node["node"], slot["slot"], slot["wal_status"], slot["retained_bytes"]) for slot in ours]
    limit = node["max_retained_bytes"]
    if (severity := _LEVELS.get(node["level"])) is not None:
        worst = max(ours, key=lambda slot: slot["retained_bytes"] or 0)
        held = f'slot "{worst["slot"]}" holds back {size(worst["retained_bytes"])} of WAL (max_retained_wal is {size(limit)})'
        found.append(NodeFinding(node["node"], severity, held, _REMEDY))
    if problem := node["problem"]:
        found.append(
            NodeFinding(node["node"], Severity.WARNING, f"its slots cannot be seen: {problem['message']}", problem["hint"])
        )
    return [finding for finding in found if finding is not None]


_REMEDY: Final = (
    "bring the target back, end what is open for long on the source (pg_stat_activity.xact_start), or take the target out of the "
    "sync; see: streamer slots list"
)


def _seen(config: Config) -> list[NodeFinding]:
    """The same, by looking: no daemon has. A source that does not answer is told with its edges."""
    found = []
    sources = list(dict.fromkeys(source for _, source, _ in config.edges()))
    slots_there = slots.find(config, sources).slots
    for name in sources:
        node = config.nodes[name]
        ours = [slot for slot in slots_there if (slot.node, slot.source) == (name, name)]
        found += [_finding(slot.sync, name, slot.slot, slot.wal_status, slot.retained_bytes) for slot in ours]
        guard = Guard(name, node.max_retained_bytes, node.wal_guard)
        guard.look(ours)
        if (severity := _LEVELS.get(guard.level)) is not None:
            found.append(NodeFinding(name, severity, guard.finding, "start it: streamer run; see: streamer slots list"))
    return [finding for finding in found if finding is not None]


def _counted(config: Config) -> list[Mapping[str, Any]]:
    """The deltas that wait, by looking."""
    found: list[Mapping[str, Any]] = []
    for name in dict.fromkeys(source for _, source, _ in config.edges()):
        syncs = {slot_name(key, name): (key, sync.captures) for key, sync in config.syncs.items() if name in sync.sources}
        with suppress(StreamerError), session(config, name) as connection:
            found += map(asdict, read_deltas(connection, name, syncs))
    return found


def _finding(sync: str, node: str, slot: str, wal_status: str | None, retained: int | None) -> NodeFinding | None:
    """What the server says of a slot that is in danger, or beyond help."""
    if wal_status not in _IN_DANGER:
        return None
    held = "" if retained is None else f" with {size(retained)} of WAL"
    remedy = f"changes are lost; {start_over(sync, node)}" if wal_status == "lost" else _REMEDY
    return NodeFinding(node, Severity.CRITICAL, f'slot "{slot}" is {wal_status}{held}', remedy)
