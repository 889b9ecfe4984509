"""The runner of one stream: it begins a run when the schedule says so, and rests, is paused and is kicked between.

Each run is a new Stream, so that nothing is held while it rests: no slot, no connection. `run` is the body of the stream's thread;
the others are called by the threads that serve HTTP, and `stop` by a signal. The trap: that signal may find the main thread inside
the lock, which it may enter again (a Condition's is an RLock).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from streamer import logs
from streamer.errors import StreamerError, UsageError
from streamer.model import TableName
from streamer.report import Counters, EdgeReport, Kicks, Problem, Result, Run, Sessions, State, StreamReport
from streamer.schedule import Continuous, Resting
from streamer.stream import Stream

LOOK_SECONDS: Final = 0.2
"""How often a stream at rest looks at the clock."""


class Runner:
    """Runs what `make` makes as the schedule wants it; `shown` is the schedule for people, `held` tells why no run of a stream that
    rests between its runs may begin now."""

    def __init__(
        self,
        sync: str,
        node: str,
        make: Callable[[], Stream],
        schedule: Continuous | Resting,
        shown: str,
        clock: Callable[[], float] = time.monotonic,
        held: Callable[[], str] = lambda: "",
    ) -> None:
        self.name = f"{sync}: {node}"
        self._sync = sync
        self._make = make
        self._schedule = schedule
        self._shown = shown
        self._clock = clock
        self._held = held
        self._changed = threading.Condition()
        self._stream = make()
        self._active = False
        self._paused = False
        self._stopping = False
        #: whether the run under way was told to stop
        self._interrupted = False
        #: why it was given up from outside
        self._verdict: StreamerError | None = None
        self._verdict_at = datetime.now(UTC)
        self._run: Run | None = None
        self._ends = {Result.DONE: 0, Result.FAILED: 0}
        self._last_done: datetime | None = None
        #: what the edges did in earlier runs, by their targets
        self._before: dict[str, Counters] = {}
        self._sessions = Sessions()
        self._log = structlog.get_logger().bind(sync=sync, source=node)

    # -- the stream's thread -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run and rest until stopped."""
        while (stream := self._next()) is not None:
            stream.run()
            self._ended(stream)

    def _next(self) -> Stream | None:
        """Rest until a run is due; return its stream, None when told to stop."""
        with self._changed:
            while not self._stopping:
                if self._may_begin() and self._schedule.is_due(self._clock()):
                    return self._begin()
                self._changed.wait(LOOK_SECONDS)
            return None

    def _may_begin(self) -> bool:
        return not self._paused and self._verdict is None and not self._obstacle()

    def _obstacle(self) -> str:
        """Why no run may begin; a stream that never rests is held up by nothing."""
        return self._held() if isinstance(self._schedule, Resting) and not self._active else ""

    def _begin(self) -> Stream:
        report = self._stream.report()
        self._before = {edge.target: self._total(edge) for edge in report.edges}
        self._sessions += report.sessions
        self._stream = stream = self._make()
        self._schedule.begin()
        self._active, self._interrupted = True, False
        if isinstance(self._schedule, Resting):
            self._run = Run(self._schedule.number, datetime.now(UTC), None, None, 0)
            self._log.info("run_started", run=self._run.number)
        elif self._schedule.goal is not None:
            stream.reach(self._schedule.goal)
        return stream

    def _ended(self, stream: Stream) -> None:
        with self._changed:
            report = stream.report()
            self._active = False
            failed = report.state is State.FAILED or not (stream.caught_up or self._interrupted)
            if failed or stream.caught_up:
                self._end(report, Result.FAILED if failed else Result.DONE)
            if self._interrupted:
                self._schedule.break_off()

    def _end(self, report: StreamReport, result: Result) -> None:
        self._schedule.end(result, self._clock())
        if self._run is not None:
            self._ends[result] += 1
            now = datetime.now(UTC)
            self._last_done = now if result is Result.DONE else self._last_done
            self._run = replace(self._run, ended=now, result=result, rows=self._rows(report))
            seconds = round((now - self._run.started).total_seconds(), 3)
            self._log.info("run_ended", run=self._run.number, result=result.value, rows=self._run.rows, seconds=seconds)

    # -- what others ask ---------------------------------------------------------------------------------------------------------

    def kick(self) -> int:
        """Ask for all that is committed on the source by now; return the number by which `report` tells of it.

        Raises UsageError if the stream is paused; ConnectError, SourceError if the source of a continuous one does not answer.
        """
        with self._changed:
            self._refuse_if_stopped()
            if isinstance(self._schedule, Resting):
                number = self._schedule.kick()
                self._changed.notify_all()
                return number
            stream, schedule = self._stream, self._schedule
        goal = stream.end_of_wal()  # not with the lock: the source may take long to answer
        with self._changed:
            number = schedule.kick(goal)
            self._stream.reach(goal)
            return number

    def hasten(self) -> None:
        """Have the targets note at once how far they are, as a kick does; nobody is told. What is paused or out of reach is not
        hastened, nor what rests between its runs: a run does so by itself, and must not be made longer."""
        with self._changed:
            if self._paused or self._verdict is not None or not self._active or isinstance(self._schedule, Resting):
                return
            stream = self._stream
        with suppress(StreamerError):
            goal = stream.end_of_wal()  # not with the lock: the source may take long to answer
            with self._changed:
                stream.reach(goal)

    def _refuse_if_stopped(self) -> None:
        if self._verdict is not None:
            raise UsageError(self._verdict.message, self._verdict.hint)
        if self._paused:
            raise UsageError(f'sync "{self._sync}" is paused', f"run: streamer resume {self._sync}")

    def copy_again(self, table: TableName, reason: str) -> None:
        """Have every target copy a table once more: at once, or in the next run. Raises UsageError if the stream is paused."""
        with self._changed:
            self._refuse_if_stopped()
            self._stream.copy_again(table, reason)

    def pause(self) -> None:
        """Stop reading once the group in hand is written, and begin no run, until `resume`."""
        with self._changed:
            if self._paused:
                return
            self._paused = True
            self._log.info("stream_paused")
            if self._active:
                self._break_off()
            else:
                self._schedule.break_off()

    def resume(self) -> None:
        """Go on after a pause, with the run that it broke off if there was one. A stream that had failed begins anew."""
        with self._changed:
            if not self._paused and self._verdict is None:
                return
            self._paused, self._verdict = False, None
            self._log.info("stream_resumed")
            self._schedule.pass_over(self._clock())
            self._changed.notify_all()

    def give_up(self, error: StreamerError) -> None:
        """End the run under way and begin none, because of this error, until `resume`."""
        with self._changed:
            self._verdict, self._verdict_at = error, datetime.now(UTC)
            logs.failure(self._log, "stream", error)
            if self._active:
                self._break_off()
            else:
                self._schedule.break_off()

    def stop(self) -> None:
        """Let `run` end."""
        with self._changed:
            self._stopping = True
            self._break_off()
            self._changed.notify_all()

    def _break_off(self) -> None:
        self._interrupted = True
        self._stream.stop()

    # -- what it says of itself --------------------------------------------------------------------------------------------------

    def report(self) -> StreamReport:
        """Return what the stream is doing now; counters are those of all runs together."""
        with self._changed:
            report = self._stream.report()
            if self._active and isinstance(self._schedule, Continuous):
                failed = State.FAILED in (report.state, *(edge.state for edge in report.edges))
                self._schedule.settle(self._stream.has_reached, failed=failed)
            over = self._run is not None and self._run.result is Result.DONE  # what had gone wrong before it went well
            if over:
                report = replace(report, problem=None, edges=[replace(edge, problem=None) for edge in report.edges])
            return replace(
                report,
                state=self._state(report.state),
                edges=[replace(e, state=self._state(e.state), counters=self._total(e)) for e in report.edges],
                schedule=self._shown,
                paused=self._paused,
                kicks=self._kicks(report),
                sessions=self._sessions + report.sessions,
                held=self._obstacle(),
                problem=report.problem if self._verdict is None else Problem.of(self._verdict, self._verdict_at),
            )

    def _state(self, state: State) -> State:
        if self._verdict is not None:
            return State.FAILED
        if self._active:
            return state
        if self._paused:
            return State.PAUSED
        return State.RESTING if isinstance(self._schedule, Resting) and state is not State.FAILED else state

    def _total(self, edge: EdgeReport) -> Counters:
        """What an edge did in all runs."""
        return self._before.get(edge.target, Counters()) + edge.counters

    def _rows(self, report: StreamReport) -> int:
        """How many rows the stream has written in this run; `copied` goes on from one run to the next."""
        before = self._before
        return sum(e.counters.rows + max(0, e.counters.copied - before.get(e.target, Counters()).copied) for e in report.edges)

    def _kicks(self, report: StreamReport) -> Kicks:
        answers, now = self._schedule.answers, self._clock()
        run = self._run
        if run is not None and run.result is None:
            run = replace(run, rows=self._rows(report))
        at = None if self._paused else self._schedule.next_at(now)
        return Kicks(
            answers.asked,
            answers.done,
            answers.ended,
            self._ends[Result.DONE],
            self._ends[Result.FAILED],
            run,
            None if at is None else datetime.now(UTC) + timedelta(seconds=at - now),
            self._last_done,
        )
