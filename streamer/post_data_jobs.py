"""Indexes and constraints of an edge's tables, made when the rows are there and before the edge streams: several at once.

What rows of different times may contradict waits until the stream has passed the last of them; the edge then leaves the stream for
as long as it takes. What the target refuses does not stop the edge: it is logged, and told by `status` until somebody has made or
discarded it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from streamer.model import LSN, EdgeName, TableName
from streamer.ports import Progress, Sink
from streamer.post_data import REMEDY, Builder, PostData, PostDataReport, Refusal, Task, begins, rounds
from streamer.workers import Workers

CANCEL_SECONDS: Final = 2.0
"""How long a target may take to break off what it is making."""


class PostDataJobs:
    """Makes what is recorded on the target of an edge, up to `jobs` at once."""

    def __init__(self, edge: EdgeName, jobs: int) -> None:
        self._jobs = jobs
        self._log = structlog.get_logger().bind(sync=edge.sync, source=edge.source, target=edge.target)
        self._waiting: list[PostData] = []
        self._refused: dict[int, PostData] = {}
        #: since when each is being made
        self._building: dict[int, tuple[PostData, datetime]] = {}
        self._due: LSN | None = None
        self._told: set[int] = set()

    @property
    def running(self) -> bool:
        """Whether something is being made now."""
        return bool(self._building)

    def due(self, position: LSN | None) -> bool:
        """Whether something that waits for a position can be made now."""
        return position is not None and self._due is not None and position >= self._due

    def report(self) -> PostDataReport:
        """How far it is."""
        building = list(self._building.values())
        waiting = len(self._waiting) - len(building)
        return PostDataReport(
            max(0, waiting),
            [Task(one.what, since) for one, since in building],
            [Refusal(one.what, one.refused, one.statement) for one in list(self._refused.values())],
        )

    def run(self, sink: Sink, progress: Progress, whole: Collection[TableName], stopped: Callable[[], bool]) -> None:
        """Make what can be made by now; `whole` are the tables that are copied whole. Raises BrokenOff if `stopped` says so, and
        what the target raises."""
        builder = sink.post_data
        if builder is None:
            return
        listed = builder.listed()
        self._waiting = [one for one in listed if not one.refused]
        self._refused = {one.number: one for one in listed if one.refused}
        for one in self._refused.values():
            self._tell_refused(one)
        starts = {one.number: begins(one, progress.copied, progress.ranges, whole) for one in self._waiting}
        ready = [one for one in self._waiting if (at := starts[one.number]) is not None and at <= progress.position]
        later = [at for one in self._waiting if (at := starts[one.number]) is not None and one not in ready]
        self._due = min(later, default=None)
        if ready:
            self._log.info("post_data_started", objects=len(ready), waiting=len(self._waiting) - len(ready))
        for objects in rounds(ready):
            self._make(sink, builder, objects, stopped)

    def _make(self, sink: Sink, builder: Builder, objects: Sequence[PostData], stopped: Callable[[], bool]) -> None:
        line = deque(objects)

        def following() -> Callable[[], None] | None:
            try:
                return partial(self._build, builder, line.popleft())
            except IndexError:  # another thread may have taken the last
                return None

        workers = Workers(following, stopped)
        try:
            workers.run(min(self._jobs, len(objects)), "index")
        finally:
            if stopped():
                sink.cancel()  # else a server would go on with what nobody waits for
                workers.join(CANCEL_SECONDS)

    def _build(self, builder: Builder, one: PostData) -> None:
        began = time.monotonic()
        self._building[one.number] = one, datetime.now(UTC)
        try:
            reason = builder.build(one)
        finally:
            del self._building[one.number]
        self._waiting.remove(one)
        if reason:
            self._refused[one.number] = refused = replace(one, refused=reason)
            self._tell_refused(refused)
        else:
            self._log.info("post_data_built", what=one.what, seconds=round(time.monotonic() - began, 1))

    def _tell_refused(self, one: PostData) -> None:
        if one.number not in self._told:
            self._told.add(one.number)
            self._log.warning("post_data_refused", what=one.what, reason=one.refused, remedy=REMEDY.format(statement=one.statement))
