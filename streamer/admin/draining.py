"""Bringing one edge to the end of what is committed on its source, with the running daemon: for `cutover`.

A position past everything that is visible on the source is read from there, the daemon is kicked, and its report is looked at until
the target durably holds all before that position. What the edge has written by then is counted: an edge that is drained twice, and
has written in between, has a source that somebody still writes.

The traps: of a source with trigger capture the first position may name a batch that is older than a change which is visible
already; the one after it is not, so such a source is asked twice. And counters begin anew with every daemon.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from streamer.admin.daemon_client import ask_status, tell
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.model import LSN, EdgeName
from streamer.report import State
from streamer.verify.passing import EdgePosition

POLL_SECONDS: Final = 0.1
START: Final = "start it: streamer run"


@dataclass(frozen=True, slots=True)
class EdgeNow:
    """An edge as the daemon has it."""

    #: when the daemon was started
    started: str
    state: str
    #: durable on the target; None if not known
    position: LSN | None
    #: source transactions written to the target since the daemon started
    transactions: int
    quarantined: int
    #: what edge or stream complain of
    problem: StreamerError | None
    #: what was proven of its rows, as the daemon's report has it; None if nothing was
    proof: Mapping[str, Any] | None
    #: indexes and constraints that its tables lack yet: waiting, building and refused, as the daemon's report has it
    post_data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drained:
    """How far an edge was brought."""

    position: LSN
    #: whether the position is the number of a batch
    batches: bool
    started: str
    transactions: int

    def __str__(self) -> str:
        return f"batch {self.position >> 32}" if self.batches else str(self.position)


def look(config: Config, edge: EdgeName) -> EdgeNow:
    """Return how an edge is. Raises UsageError if no daemon answers, or it does not run this edge."""
    answer = ask_status(config)
    if answer is None:
        raise UsageError(f"the daemon on {config.http.url} does not answer: none runs with this config", START)
    for stream in answer["streams"]:
        for found in stream["edges"]:
            if EdgeName(stream["sync"], stream["source"], found["target"]) == edge:
                return _edge(str(answer["started"]), stream, found)
    raise UsageError(f"the daemon does not run edge {edge}", "reload its config: systemctl reload streamer, or start it anew")


def _edge(started: str, stream: Mapping[str, Any], edge: Mapping[str, Any]) -> EdgeNow:
    problem = edge["problem"] or stream["problem"]
    failed = State.FAILED in (stream["state"], edge["state"])
    return EdgeNow(
        started,
        State.FAILED if failed else edge["state"],
        LSN.parse(edge["position"]) if edge["position"] else None,
        edge["counters"]["transactions"],
        edge["quarantined"],
        StreamerError(problem["message"], problem["hint"]) if problem else None,
        edge["proof"],
        edge["post_data"],
    )


def drain(config: Config, edge: EdgeName, seconds: float) -> Drained:
    """Wait until the target holds all that is committed on the source by now, durably.

    Raises StreamerError if the edge fails, or stands still for so many seconds; UsageError, ConnectError.
    """
    with closing(EdgePosition(config, edge)) as position:
        for _ in range(2 if position.batches else 1):
            goal = position.now()
            tell(config, edge.sync, "kick")
            now = _wait(config, edge, goal, seconds)
        return Drained(goal, position.batches, now.started, now.transactions)


def _wait(config: Config, edge: EdgeName, goal: LSN, seconds: float) -> EdgeNow:
    best, deadline = LSN(0), time.monotonic() + seconds
    while True:
        now = look(config, edge)
        if now.position is not None and now.position >= goal:
            return now
        if now.state == State.FAILED:
            raise now.problem or StreamerError(f"edge {edge} has failed", "see: streamer status")
        if now.position is not None and now.position > best:
            best, deadline = now.position, time.monotonic() + seconds
        elif time.monotonic() > deadline:
            why = f": {now.problem.message}" if now.problem else ""
            raise StreamerError(
                f"edge {edge} has stood at {best}, before {goal}, for {seconds:g} s{why}",
                (now.problem and now.problem.hint) or "see: streamer status; --wait gives it more time",
            )
        time.sleep(POLL_SECONDS)
