"""One edge: the queue that the reader fills, and the thread that writes it to the target and says what is durable there.

The thread goes round: open the sink, copy what must be copied, be ready, let the reader take it aboard the next session of the
stream, write groups; after an error, wait and begin again from what the target itself says it holds. Memory is only a cache of
the target.

The trap: what the reader hands over may be there already (the stream starts at the lowest progress of all its edges), so
everything committed before `_Intake.next` is passed over; strictly before, because a commit record may begin exactly where the
last position ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import structlog

from streamer.copying import InitialCopy, prepare, verify
from streamer.errors import InternalError, StreamerError
from streamer.grouping import groups, idle_group
from streamer.model import (
    LSN,
    NOTHING_SEEN,
    POSTGRES_EPOCH,
    Change,
    EdgeName,
    Group,
    Idle,
    Origin,
    Piece,
    Relation,
    Seen,
    SlotIdentity,
    TableName,
)
from streamer.ports import Progress, Sink, SlotState, Source
from streamer.queue import PieceQueue
from streamer.report import Counters, EdgeReport, Problem, State
from streamer.retry import Backoff
from streamer.router import Route

QUEUE_BYTES: Final = 32 << 20
"""How much of the stream may wait for one target; together with the group in hand it bounds memory."""
GROUP_BYTES: Final = 8 << 20
"""How much one group gathers."""
IDLE_BYTES: Final = 1 << 20
"""WAL without anything for this edge that may pass before progress is moved for its own sake."""
SETTLE_SECONDS: Final = 3.0
"""How long a stopping edge waits for its last group to be durable."""
COMPLAIN_SECONDS: Final = 10.0
"""How often at most the log says that updates and deletes found no row."""
LOOK_SECONDS: Final = 0.1
"""How often durability is asked for while something is not durable yet."""


@dataclass(slots=True)
class _Intake:
    """How far the reader has come with an edge."""

    #: everything committed before it is in the queue or the target
    next: LSN
    #: what the source had applied of others by `next`
    seen: Seen
    #: what the source has sent of it, for the lag
    sent: LSN
    #: the last position that was queued for its own sake
    idle: LSN
    #: the last transaction in the queue is not whole
    unfinished: bool = False


class Edge:
    """Writes one stream to one target. `rejoin` asks for a new session of the stream, because the edge is ready."""

    def __init__(
        self,
        name: EdgeName,
        source: Source,
        make_sink: Callable[[], Sink],
        route: Route,
        copy: InitialCopy,
        rejoin: Callable[[], None],
    ) -> None:
        self.name = name
        self._source = source
        self._make_sink = make_sink
        self._route = route
        self._copy = copy
        self._rejoin = rejoin
        self._sink: Sink | None = None
        self._queue = PieceQueue(QUEUE_BYTES)
        self._thread = threading.Thread(target=self._run, name=f"edge {name}", daemon=True)
        self._stop = threading.Event()
        self._cut = threading.Event()
        self._log = structlog.get_logger().bind(sync=name.sync, source=name.source, target=name.target)
        self._state = State.STARTING
        self._problem: Problem | None = None
        self._counters = Counters()
        self._delay = 0.0
        self._skew = 0.0
        #: the last transaction that was applied; before the first, one that says nothing
        self._last = Origin(name.source, LSN(0), POSTGRES_EPOCH)
        self._writing = False
        self._complain_at = 0.0
        #: what the target holds, and what of it survives a crash; None until the target has said so
        self._position: LSN | None = None
        self._durable: LSN | None = None
        #: what the source had applied of others by the position
        self._seen: Seen = NOTHING_SEEN
        # the reader's side; the lock guards coming and going, so that neither side acts on what the other has just left behind
        self._lock = threading.Lock()
        self._ready = False
        self._aboard = threading.Event()
        self._slot: SlotIdentity | None = None
        self._intake = _Intake(LSN(0), NOTHING_SEEN, LSN(0), LSN(0))
        self._starts: dict[TableName, LSN] = {}
        self._joined: set[Relation] = set()
        self._settled_from = LSN(0)

    # -- the reader's side -------------------------------------------------------------------------------------------------------

    def board(self) -> tuple[LSN, Seen] | None:
        """Take part in the session that now begins, if the target is ready; return the position that the edge needs it from, and
        what the source had applied of others by then.

        Only the reader lets an edge aboard, and only between sessions: what it offered before belongs to a session that began
        elsewhere, and is let go of here.
        """
        with self._lock:
            if not self._ready:
                return None
            if not self._aboard.is_set():
                self._queue.clear()
                position = self._position or LSN(0)
                self._intake = _Intake(position, self._seen, position, position)
                self._joined.clear()
                self._aboard.set()
            return self._intake.next, self._intake.seen

    @property
    def waiting(self) -> bool:
        """Whether the target is ready, and the edge waits for a new session to take it aboard."""
        return self._ready and not self._aboard.is_set()

    @property
    def durable(self) -> LSN | None:
        """The position up to which the target will not forget; None if it has not said yet."""
        return self._durable

    @property
    def failed(self) -> bool:
        """Whether the edge has given up until somebody acts."""
        return self._state is State.FAILED

    @property
    def problem(self) -> Problem | None:
        """The last error, while it lasts."""
        return self._problem

    def offer(self, items: Sequence[Piece | Idle], timeout: float) -> bool:
        """Take over what of the items is for this edge; False, and nothing taken, if the queue stayed full for `timeout` seconds.

        They come by the handful, because waking the writer for every small transaction would cost more than writing it.
        """
        if not self._aboard.is_set():
            return True
        intake = replace(self._intake)
        chosen = [ours for item in items if (ours := self._choose(item, intake)) is not None]
        if chosen and not self._queue.put(chosen, timeout):
            return False
        self._intake = intake
        return True

    def _choose(self, item: Piece | Idle, intake: _Intake) -> Piece | Idle | None:
        """The item as the edge wants it, noted in `intake`; None if it is not for us, or here already."""
        if isinstance(item, Idle):
            return self._choose_idle(item, intake)
        position = item.transaction.position
        if position < intake.next:
            return None
        intake.sent = max(intake.sent, position)
        changes = self._changes_for_us(item)
        if not changes and not intake.unfinished:
            return None if item.end is None else self._choose_idle(Idle(item.end, urgent=False, seen=item.seen), intake)
        intake.unfinished = item.end is None
        if item.end is not None:
            intake.next = intake.sent = item.end
            intake.seen = item.seen
        return item if changes is item.changes else replace(item, changes=changes)

    def _choose_idle(self, item: Idle, intake: _Intake) -> Idle | None:
        """Move progress without changes: only now and then, because it is a write on the target, and may echo in a mesh."""
        intake.sent = max(intake.sent, item.position)
        # else a new session would ask for what has been confirmed since, and the slot would look as if it had lost it
        if item.position >= intake.next:
            intake.next, intake.seen = item.position, item.seen
        last = max(intake.idle, self._position or LSN(0))
        if item.position - last < (1 if item.urgent else IDLE_BYTES):
            return None
        intake.idle = item.position
        return item

    def _changes_for_us(self, piece: Piece) -> list[Change]:
        transaction = piece.transaction
        if not self._route.accepts(transaction):
            return []
        position, starts = transaction.position, self._starts
        relations = {c[1] for c in piece.changes}
        if not relations <= self._joined:  # relations compare by identity, which is much cheaper than by name
            self._joined.update(r for r in relations if r.table in starts)
        # a table that has joined the stream since the edge began is copied first, with the next start
        if position >= self._settled_from and relations <= self._joined:
            return piece.changes
        return [c for c in piece.changes if (start := starts.get(c[1].table)) is not None and position >= start]

    def verify(self, state: SlotState) -> None:
        """Make sure that the session that has just been opened gives all that this edge lacks. Raises SlotError."""
        if self._slot is not None and self._aboard.is_set():
            verify(self.name, self._slot, self._intake.next, state)

    def end_session(self) -> None:
        """The stream begins anew: a transaction that is only half here will come again from its beginning."""
        if self._aboard.is_set() and self._intake.unfinished:
            self.let_go()

    def let_go(self) -> None:
        """Leave the stream, and come back from the target's own progress once the group in hand is done."""
        self._cut.set()
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._ready = False
            self._aboard.clear()
            self._queue.clear()

    # -- the writer's side -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to finish the group in hand and end."""
        self._stop.set()
        self._queue.wake()

    def cancel(self) -> None:
        """Break off what the target is doing; its transaction is undone."""
        sink = self._sink
        if sink is not None and self._thread.is_alive():
            self._log.warning("group_broken_off", reason="the target is blocked, or takes too long")
            sink.cancel()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                self._serve(backoff)
            except StreamerError as error:
                if self._stop.is_set():
                    break  # what we broke off ourselves is no failure
                self._failed(error)
                if error.permanent:
                    return
                self._stop.wait(backoff.wait())
            except Exception as error:  # a bug must not end the thread in silence
                self._log.exception("edge_broken")
                self._failed(InternalError(f"edge {self.name}: unexpected {type(error).__name__}: {error}"))
                return
        self._state = State.STOPPED

    def _serve(self, backoff: Backoff) -> None:
        """Bring the target to the point where the stream can go on, and write until told otherwise."""
        self._cut.clear()
        self._state = State.RETRYING if self._problem else State.STARTING
        self._sink = sink = self._make_sink()
        try:
            progress = prepare(self.name, self._source, sink, self._copy, self._stop.is_set)
            self._get_ready(progress, sink.durable())
            self._write(sink, backoff)
        finally:
            self._leave()
            self._sink = None
            sink.close()

    def _get_ready(self, progress: Progress, durable: LSN) -> None:
        self._position = progress.position
        self._seen = progress.seen
        self._durable = durable
        self._slot = progress.slot
        self._starts = progress.copied
        self._settled_from = max(progress.copied.values(), default=progress.position)
        self._counters.copied = self._copy.copied_rows
        self._log.info("edge_ready", position=str(progress.position))
        self._ready = True
        self._rejoin()

    def _write(self, sink: Sink, backoff: Backoff) -> None:
        looked = time.monotonic()
        while not self._aboard.wait(LOOK_SECONDS):
            if self._stop.is_set() or self._cut.is_set():
                return
        if self._problem is None:
            self._state = State.STREAMING
        while not self._stop.is_set() and not self._cut.is_set():
            undurable = self._durable != self._position
            items = self._queue.take(GROUP_BYTES, LOOK_SECONDS if undurable else 1.0)
            self._writing = bool(items)
            self._write_items(sink, items)
            self._writing = False
            if items:
                backoff.reset()
            if items or not undurable:
                # it wrote, or waited a while for something to write
                self._problem = None
                self._state = State.STREAMING
            if undurable and (not items or time.monotonic() - looked > LOOK_SECONDS):
                self._durable = sink.durable()
                looked = time.monotonic()
        self._settle(sink)

    def _write_items(self, sink: Sink, items: list[Piece | Idle]) -> None:
        if batch := list(groups((item for item in items if isinstance(item, Piece)), merge=sink.merges)):
            self._write_groups(sink, batch)
        last = items[-1] if items and not self._interrupted() else None  # what an interruption leaves out lies before it
        if isinstance(last, Idle) and self._position is not None and last.position > self._position:
            self._write_groups(sink, [idle_group(self._last, last)])

    def _write_groups(self, sink: Sink, batch: Sequence[Group]) -> None:
        counters, missing = self._counters, self._counters.missing
        for group, written in zip(batch, sink.write(batch, self._interrupted), strict=False):  # fewer if interrupted
            counters.add(written)
            self._skew = written.skew
            counters.transactions += group.transactions
            if group.complete:
                self._position, self._seen = group.position, group.seen
            if group.complete and group.transactions:
                self._last = group.origin
                self._delay = (datetime.now(UTC) - group.origin.commit_time).total_seconds()
        if counters.missing > missing and time.monotonic() >= self._complain_at:
            self._complain_at = time.monotonic() + COMPLAIN_SECONDS
            self._log.warning("rows_missing", rows=counters.missing, position=str(self._position))

    def _interrupted(self) -> bool:
        return self._stop.is_set() or self._cut.is_set()

    def _settle(self, sink: Sink) -> None:
        """Before leaving: give the target a moment to make the last group durable, so that it need not be read again."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._durable != self._position and time.monotonic() < deadline:
            self._durable = sink.durable()
            threading.Event().wait(0.02)

    def _failed(self, error: StreamerError) -> None:
        self._counters.retries += 1
        self._state = State.FAILED if error.permanent else State.RETRYING
        first = self._problem is None or self._problem.message != error.message
        self._problem = Problem.of(error, datetime.now(UTC))
        if first:
            self._log.error("edge_failed", error=error.message, remedy=error.hint, permanent=error.permanent)

    def _shown_state(self) -> State:
        """The state for people: an edge that tries again has not recovered before something went well."""
        if self._copy.running:
            return State.COPYING
        return State.RETRYING if self._problem and self._state is State.STREAMING else self._state

    def report(self) -> EdgeReport:
        """Return what the edge is doing now."""
        position = self._position
        behind = max(0, self._intake.sent - position) if position is not None and (self._writing or self._queue.size) else 0
        applied = self._last.commit_time
        since = (datetime.now(UTC) - applied).total_seconds() if behind and applied > POSTGRES_EPOCH else 0.0
        return EdgeReport(
            sync=self.name.sync,
            source=self.name.source,
            target=self.name.target,
            state=self._shown_state(),
            position="" if self._durable is None else str(self._durable),
            lag_bytes=behind,
            lag_seconds=since,
            delay_seconds=self._delay,
            skew_seconds=self._skew,
            queue_bytes=self._queue.size,
            counters=self._counters,
            problem=self._problem,
            copy=self._copy.reports(),
            obstacle=self._copy.obstacle or "",
        )
