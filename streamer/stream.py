"""The loop of one stream: one sync read from one source. Start reading here.

    capture ──pieces──> Stream ──> Edge (queue, writer thread) ──groups──> Sink ──> target
       ^                                   │
       └────────── confirm(position) <── durable

`source.read_from(position)` opens a reader, which gives pieces of committed transactions in commit order
(capture/slot_reader.py). Every piece is offered to every edge; an edge takes what its route lets through and what its target
does not hold yet (edge.py), groups it (grouping.py) and writes it with its progress in one target transaction (sinks/). The
only thing that comes back is the position up to which each target is durable; the lowest of them is confirmed to the source
(progress.py), and nothing else ever is.

An edge that fails leaves the stream and the others go on. When it is ready again the stream is read anew from the lowest progress,
and the others recognise what they have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Final

import structlog

from streamer import logs
from streamer.edge import Edge
from streamer.errors import InternalError, StreamerError
from streamer.model import LSN, Idle, Piece, TableName
from streamer.ports import Place, Reader, Source
from streamer.progress import Confirmation
from streamer.report import EdgeReport, Problem, Sessions, State, StreamReport
from streamer.retry import Backoff

WAIT_SECONDS: Final = 0.2
"""How long a read, an offer or a wait takes at most before confirmations and stop are looked at."""
PATIENCE_SECONDS: Final = 10.0
"""How long a full queue that does not move may hold up the other edges."""

STOP_SECONDS: Final = 5.0
"""How long edges may take to finish the group in hand; what takes longer is broken off."""
BREAK_OFF_SECONDS: Final = 1.5
"""How long that may take."""


class Stream:
    """Reads `source` and hands it to the edges that `make_edges` builds. With `until_caught_up` it ends by itself, when all that
    was committed when it began is durable; with `one_try` also with the first error."""

    def __init__(
        self,
        sync: str,
        node: str,
        source: Source,
        make_edges: Callable[[Callable[[], None]], Sequence[Edge]],
        *,
        until_caught_up: bool,
        one_try: bool = False,
    ) -> None:
        self.name = f"{sync}: {node}"
        self._sync = sync
        self._node = node
        self._source = source
        self._rejoin = threading.Event()
        self._stop = threading.Event()
        self._edges = make_edges(self._rejoin.set)
        self._edges_stopped = False
        self._until_caught_up = until_caught_up
        self._one_try = one_try
        #: what somebody waits for
        self._goal: LSN | None = None
        #: the last that was read, if nothing has followed it yet
        self._idle: list[Idle] = []
        self._confirmation = Confirmation(LSN(0))
        self._state = State.STARTING
        self._problem: Problem | None = None
        self._sessions = Sessions()
        self._reading = False
        self._log = structlog.get_logger().bind(sync=sync, source=node)

    def run(self) -> None:
        """Stream until stopped, caught up, or broken for good. Errors are kept for `report`."""
        for edge in self._edges:
            edge.start()
        backoff = Backoff()
        try:
            while not self._stop.is_set() and not self._finished():
                try:
                    self._session(backoff)
                except StreamerError as error:
                    self._failed(error)
                    if error.permanent or self._one_try:
                        return
                    self._stop.wait(backoff.after(error))
        except Exception as error:  # a bug must not end the thread in silence
            self._log.exception("stream_broken")
            self._failed(InternalError(f"stream {self.name}: unexpected {type(error).__name__}: {error}"))
        finally:
            self._stop_edges()
            failed = self._state is State.FAILED or any(edge.failed for edge in self._edges)
            self._state = State.FAILED if failed else State.STOPPED

    def stop(self) -> None:
        """Ask the stream to end."""
        self._stop.set()
        self._rejoin.set()

    def end_of_wal(self) -> LSN:
        """Ask the source where its WAL ends; called by other threads too. Raises ConnectError, SourceError."""
        return self._source.state().current

    def copy_again(self, table: TableName, reason: str) -> None:
        """Have every target of it copy a table once more; called by other threads too."""
        for edge in self._edges:
            edge.copy_again(table, reason)

    def reach(self, goal: LSN) -> None:
        """Don't wait for more before what was committed before `goal` is made durable; `has_reached` tells when it is."""
        self._goal = goal if self._goal is None else max(goal, self._goal)
        for edge in self._edges:
            edge.sequences.hurry()

    def has_reached(self, goal: LSN) -> bool:
        """Whether every target durably holds what was committed before `goal`, and sequences have followed."""
        return all(edge.durable is not None and edge.durable >= goal and not edge.sequences.pending for edge in self._edges)

    @property
    def caught_up(self) -> bool:
        """Whether there is nothing left to do for a stream that ends by itself."""
        return self._until_caught_up and self._goal is not None and self.has_reached(self._goal)

    def _session(self, backoff: Backoff) -> None:
        """Read from the lowest progress of the edges aboard, until one more wants to come, or we are told to stop."""
        places = self._wait_for_edges()
        if not places:
            return
        start = places[0].position
        with self._source.read_from(places) as reader:
            self._check_slot()
            self._log.info("stream_took_over" if self._state is State.STANDBY else "stream_reading", position=str(start))
            self._state = State.STREAMING
            self._sessions += Sessions(opened=1)
            self._reading = True
            self._idle = []
            try:
                while not (self._stop.is_set() or self._finished() or any(edge.waiting for edge in self._edges)):
                    if items := reader.read(WAIT_SECONDS):
                        backoff.reset()
                        self._idle = [item for item in items[-1:] if isinstance(item, Idle)]
                    self._note(reader.obstacle, something_came=bool(items))
                    if items := self._hastened(items):
                        self._dispatch(items, reader)
                    reader.confirm(self._confirmable())
            finally:
                self._reading = False
                for edge in self._edges:
                    edge.end_session()
                if self._stop.is_set() or self._finished():
                    self._stop_edges()
            reader.confirm(self._confirmable())

    def _check_slot(self) -> None:
        """Look at the slot once it is ours: before, somebody may have advanced it or made it anew, and the server would begin there
        without a word."""
        state = self._source.state()
        for edge in self._edges:
            edge.verify(state)
        self._confirmation.advance([state.confirmed])  # a server that hears of nothing confirmed does not wait for us to have it
        if self._until_caught_up and self._goal is None:
            self._goal = state.current

    def _wait_for_edges(self) -> list[Place]:
        """Return where the edges are, in order, once one is aboard; nothing if there is no point in waiting."""
        while not self._stop.is_set() and not self._finished():
            self._rejoin.clear()
            if aboard := [p for edge in self._edges if (p := edge.board()) is not None]:
                return sorted(aboard, key=attrgetter("position"))
            self._rejoin.wait(WAIT_SECONDS)
        return []

    def _dispatch(self, items: Sequence[Piece | Idle], reader: Reader) -> None:
        for edge in self._edges:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not edge.offer(items, WAIT_SECONDS):
                reader.confirm(self._confirmable())
                if self._stop.is_set():
                    return
                if len(self._edges) > 1 and time.monotonic() > deadline:
                    edge.let_go()

    def _hastened(self, items: Sequence[Piece | Idle]) -> Sequence[Piece | Idle]:
        """With a goal, a position past it is to be made durable at once: it is what we wait for. It may have come before the
        goal was set, and a source that is quiet does not tell it again."""
        goal = self._goal
        if goal is None or not any(
            edge.problem is None and edge.durable is not None and edge.durable < goal for edge in self._edges
        ):
            return items
        return [replace(i, urgent=True) if isinstance(i, Idle) and i.position >= goal else i for i in items or self._idle]

    def _confirmable(self) -> LSN:
        return self._confirmation.advance(edge.durable for edge in self._edges)

    def _finished(self) -> bool:
        """Whether every edge has failed for good, or holds what was there when a run that ends by itself began."""
        if all(edge.failed for edge in self._edges):
            return True
        if not self._until_caught_up:
            return False
        return all(self._is_through(edge) for edge in self._edges)

    def _is_through(self, edge: Edge) -> bool:
        if edge.failed or (self._one_try and edge.problem is not None):
            return True
        return self._goal is not None and edge.durable is not None and edge.durable >= self._goal

    def _stop_edges(self) -> None:
        if self._edges_stopped:
            return
        self._edges_stopped = True
        for edge in self._edges:
            edge.stop()
        self._join_edges(STOP_SECONDS)
        for edge in self._edges:
            edge.cancel()
        self._join_edges(BREAK_OFF_SECONDS)

    def _join_edges(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for edge in self._edges:
            edge.join(timeout=max(0.0, deadline - time.monotonic()))

    def _failed(self, error: StreamerError) -> None:
        first = self._problem is None or self._problem.message != error.message
        self._state = State.after(error)
        self._problem = Problem.of(error, datetime.now(UTC))
        self._sessions += Sessions(failed=int(self._state is not State.STANDBY))
        if first:
            logs.failure(self._log, "stream", error)

    def _note(self, obstacle: StreamerError | None, *, something_came: bool) -> None:
        """Tell what keeps the source from sending, and forget what was wrong once something comes."""
        if obstacle is None:
            self._problem = None if something_came else self._problem
        elif self._problem is None or self._problem.message != obstacle.message:
            self._problem = Problem.of(obstacle, datetime.now(UTC))
            self._log.warning("stream_held_back", reason=obstacle.message, remedy=obstacle.hint)

    def report(self) -> StreamReport:
        """Return what the stream and its edges are doing now."""
        edges = [edge.report() for edge in self._edges]
        confirmed = self._confirmable()
        return StreamReport(
            self._sync,
            self._node,
            _before_reading(edges) if self._state is State.STARTING else self._state,
            str(confirmed) if confirmed else "",
            self._problem,
            edges,
            sessions=self._sessions,
            connected=self._reading,
        )


def _before_reading(edges: Sequence[EdgeReport]) -> State:
    """What a stream does of which no edge is aboard yet: its work may be another daemon's, or begin with a copy."""
    if all(edge.state is State.STANDBY for edge in edges):
        return State.STANDBY
    copying = any(edge.state in (State.COPYING, State.INDEXING) or edge.obstacle for edge in edges)
    return State.COPYING if copying else State.STARTING
