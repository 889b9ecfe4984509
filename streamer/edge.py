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

from streamer import logs
from streamer.complaints import Complaints, blocked
from streamer.copying import InitialCopy, prepare, verify
from streamer.errors import ApplyError, InternalError, StreamerError
from streamer.grouping import groups, idle_group
from streamer.key_ranges import CopyAnew
from streamer.model import LSN, NOTHING_SEEN, POSTGRES_EPOCH, EdgeName, Group, Idle, Origin, Piece, Seen, SlotIdentity, TableName
from streamer.ports import IDLE_BYTES, Place, Progress, Sink, SlotState, Source
from streamer.queue import PieceQueue
from streamer.report import Counters, EdgeReport, Problem, State
from streamer.retry import Backoff
from streamer.router import Route, Starts
from streamer.sequences import SequenceKeeper

QUEUE_BYTES: Final = 32 << 20
"""How much of the stream may wait for one target; together with the group in hand it bounds memory."""
GROUP_BYTES: Final = 8 << 20
"""How much one group gathers."""
SETTLE_SECONDS: Final = 3.0
"""How long a stopping edge waits for its last group to be durable."""
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
        sequences: SequenceKeeper | None = None,
    ) -> None:
        self.name = name
        self._source = source
        self._make_sink = make_sink
        self._route = route
        self._copy = copy
        self._rejoin = rejoin
        self.sequences = sequences or SequenceKeeper(name)
        self._sink: Sink | None = None
        self._queue = PieceQueue(QUEUE_BYTES)
        self._thread = threading.Thread(target=self._run, name=f"edge {name}", daemon=True)
        self._stop = threading.Event()
        self._cut = threading.Event()
        self._log = structlog.get_logger().bind(sync=name.sync, source=name.source, target=name.target)
        self._state = State.STARTING
        self._problem: Problem | None = None
        self._counters = Counters()
        self._delay = self._skew = 0.0
        #: the last transaction that was applied; before the first, one that says nothing
        self._last = Origin(name.source, LSN(0), POSTGRES_EPOCH)
        self._complaints = Complaints(self._log)
        #: changes that the target holds in quarantine
        self._quarantined = 0
        #: no source transaction is half written
        self._whole = True
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
        self._starts, self._batches, self._idle_bytes = Starts({}, LSN(0)), False, IDLE_BYTES

    # -- the reader's side -------------------------------------------------------------------------------------------------------

    def board(self) -> Place | None:
        """Take part in the session that now begins, if the target is ready; return from where on the edge needs it.

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
                self._starts.begin_session()
                self._aboard.set()
            return Place(self._intake.next, self._intake.seen, self._starts.positions)

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
        try:
            chosen = [ours for item in items if (ours := self._choose(item, intake)) is not None]
        except CopyAnew as wanted:
            self.copy_again(wanted.table, wanted.reason)
            self.let_go()
            return True
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
        changes = self._starts.changes(item) if self._route.accepts(item.transaction) else []
        if not changes and not intake.unfinished and not item.awaited:
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
        wanted = item.urgent or self._starts.settle_between(last, item.position)
        if item.position - last < (1 if wanted else self._idle_bytes):
            return None
        intake.idle = item.position
        return item

    def verify(self, state: SlotState) -> None:
        """Make sure that the session that has just been opened gives all that this edge lacks. Raises SlotError."""
        self._batches, self._idle_bytes = state.batches, state.idle_bytes
        if self._slot is not None and self._aboard.is_set() and not verify(self.name, self._slot, self._intake.next, state):
            self.let_go()  # it comes back when the new timeline is recorded

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
        """Start the thread: a run begins."""
        self._copy.full.begin_run()
        self._thread.start()

    def copy_again(self, table: TableName, reason: str) -> None:
        """Leave the stream to copy a table once more; called by any thread."""
        self._copy.copy_again(table, reason)
        self._queue.wake()

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
                self._stop.wait(backoff.after(error))
            except Exception as error:  # a bug must not end the thread in silence
                self._log.exception("edge_broken")
                self._failed(InternalError(f"edge {self.name}: unexpected {type(error).__name__}: {error}"))
                return
        self._state = State.STOPPED

    def _serve(self, backoff: Backoff) -> None:
        """Bring the target to the point where the stream can go on, and write until told otherwise."""
        self._cut.clear()
        self._whole = True
        self._state = self._state if self._problem else State.STARTING
        self._sink = sink = self._make_sink()
        try:
            progress = prepare(self.name, self._source, sink, self._copy, self._stop.is_set)
            self._get_ready(progress, sink)
            self._write(sink, backoff)
        finally:
            self._leave()
            self._queue.drop()
            self._sink = None
            sink.close()
            self.sequences.close()

    def _get_ready(self, progress: Progress, sink: Sink) -> None:
        self._position, self._seen = progress.position, progress.seen
        self._durable, self._slot = sink.durable(), progress.slot
        self._quarantined = sink.quarantined()
        self._starts = Starts(progress.copied, progress.position, progress.ranges)
        self._counters.copied = self._copy.jobs.copied_rows
        self._counters.connects += 1
        self._log.info("edge_took_over" if self._state is State.STANDBY else "edge_ready", position=str(progress.position))
        self._ready = True
        self._rejoin()

    def _write(self, sink: Sink, backoff: Backoff) -> None:
        looked = time.monotonic()
        while not self._aboard.wait(LOOK_SECONDS):
            if self._interrupted():
                return
        if self._problem is None:
            self._state = State.STREAMING
        while not self._interrupted() and not (self._whole and self._copy.wanted(self._position)):
            undurable = self._durable != self._position
            items = self._queue.take(GROUP_BYTES, LOOK_SECONDS if undurable else 1.0)
            self._write_items(sink, items)
            self._queue.done()
            self._quarantined = sink.quarantined()
            self.sequences.keep()
            if items:
                backoff.reset()
            if items or not undurable:  # it wrote, or waited a while for something to write
                self._problem = None
                self._state = State.STREAMING
            if undurable and (not items or time.monotonic() - looked > LOOK_SECONDS):
                self._durable = sink.durable()
                looked = time.monotonic()
        self._settle(sink)

    def _write_items(self, sink: Sink, items: list[Piece | Idle]) -> None:
        if batch := list(groups((item for item in items if isinstance(item, Piece)), sink.sharing)):
            self._write_groups(sink, batch)
        last = items[-1] if items and not self._interrupted() else None  # what an interruption leaves out lies before it
        if isinstance(last, Idle) and self._position is not None and last.position > self._position:
            self._write_groups(sink, [idle_group(self._last, last)])

    def _write_groups(self, sink: Sink, batch: Sequence[Group]) -> None:
        counters, began = self._counters, time.monotonic()
        try:
            done = sink.write(batch, self._interrupted)
        except ApplyError as error:
            for table in self._starts.contradicted(batch, self._position):
                self._copy.copy_again(table, error.message)
            raise
        counters.apply.add(time.monotonic() - began, len(done))
        for group, written in zip(batch, done, strict=False):  # fewer if interrupted
            counters.add(written, group.transactions)
            self._skew, self._whole = written.skew, group.complete
            if group.complete:
                self._position, self._seen = group.position, group.seen
            if group.complete and group.transactions:
                self._last = group.origin
                self._delay = (datetime.now(UTC) - group.origin.commit_time).total_seconds()
        self._complaints.look(done, counters.missing, self._position)

    def _interrupted(self) -> bool:
        return self._stop.is_set() or self._cut.is_set()

    def _settle(self, sink: Sink) -> None:
        """Before leaving: give the target a moment to make the last group durable, so that it need not be read again."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._durable != self._position and time.monotonic() < deadline:
            self._durable = sink.durable()
            threading.Event().wait(0.02)
        self.sequences.keep(at_once=True)

    def _failed(self, error: StreamerError) -> None:
        self._state = State.after(error)
        self._counters.retries += self._state is not State.STANDBY
        first = self._problem is None or self._problem.message != error.message
        self._problem = Problem.of(error, datetime.now(UTC))
        if first:
            logs.failure(self._log, "edge", error)

    def _shown_state(self) -> State:
        """The state for people: an edge that tries again has not recovered before something went well."""
        return self._copy.state or (State.RETRYING if self._problem and self._state is State.STREAMING else self._state)

    def report(self) -> EdgeReport:
        """Return what the edge is doing now."""
        position, applied = self._position, self._last.commit_time
        behind = max(0, self._intake.sent - position) if position and (self._problem or not self._queue.empty) else 0
        now, oldest = datetime.now(UTC), self._queue.oldest
        return EdgeReport(
            sync=self.name.sync,
            source=self.name.source,
            target=self.name.target,
            state=self._shown_state(),
            position="" if self._durable is None else str(self._durable),
            lag_bytes=self._queue.size if self._batches else behind,  # the distance of two batches is no number of bytes
            lag_seconds=max(0.0, (now - oldest).total_seconds()) if oldest else 0.0,
            delay_seconds=self._delay,
            skew_seconds=self._skew,
            queue_bytes=self._queue.size,
            counters=self._counters,
            problem=self._problem or blocked(self.name, self._queue.held_seconds, now),
            copy=self._copy.jobs.reports(),
            obstacle=self._copy.obstacle or "",
            copy_totals=self._copy.jobs.totals(),
            consistent_from="" if position is None else self._starts.consistent_from(position),
            connected=self._ready or self._copy.state is not None,
            last_applied=applied if applied > POSTGRES_EPOCH else None,
            full_copies=self._copy.full.reports(),
            sequences=self.sequences.report(),
            quarantined=self._quarantined,
            post_data=self._copy.post_data.report(),
        )
