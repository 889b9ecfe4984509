"""Compares one table: first the sums of its parts, then the rows of those parts that differ, until each row is decided.

Both sides are asked at once, each in a thread of its own. Where sums differ, the rows of the part are looked at, and again after
the stream has passed the moment of that look (candidates.py). The trap: a table of which everything differs would be looked at row
by row without end; so after a number of differences the rest is only told by the number of parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, Self, TypeAlias, TypeVar

from streamer.errors import StreamerError
from streamer.verify.candidates import Candidates, Difference
from streamer.verify.parts import Digests, Key, Part, Rows, Side, SourceSide

PART_ROWS: Final = 500_000
"""Rows of a range: enough for a server to put several processes to work on it."""
FINE_ROWS: Final = 20_000
"""Rows of the ranges that one which differs is cut into, before single rows are looked at."""
AHEAD: Final = 2
"""Ranges that one side may be ahead of the other, besides the one in hand."""
ROWS_AT_ONCE: Final = 200_000
"""Rows that are held in memory at once, on each side."""
BEAT_SECONDS: Final = 0.2
"""How often somebody who waits for a side is heard."""
PROVEN: Final = 10_000
"""Differences of a table after which no more rows are looked at."""

Pass: TypeAlias = Callable[[], None]
"""Waits until the stream has passed the moment of the call. Raises Behind, StreamerError."""
Progress: TypeAlias = Callable[[int], None]
"""Told how many rows were summed up, and again and again with 0 while a side is waited for. May wait, to keep a rate; what it
raises breaks off the comparison."""
P = ParamSpec("P")
T = TypeVar("T")


class Behind(StreamerError):
    """The stream did not pass in time: whether rows differ, or are only on their way, cannot be told."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A table on both sides; with `ranges` it is cut into these, else it is one part."""

    source: SourceSide
    target: Side
    whole: Part
    ranges: bool


@dataclass(slots=True)
class Outcome:
    """What came of a comparison."""

    #: on the source
    rows: int = 0
    #: ranges or buckets
    parts: int = 0
    different: list[Difference] = field(default_factory=list)
    #: rows that were written too often to be compared
    undecided: list[Key] = field(default_factory=list)
    #: parts that differ, and were not looked into: too much does already
    unexplored: int = 0


_Sums: TypeAlias = tuple[Part, Digests, Digests]


def compare(pair: Pair, until_passed: Pass, progress: Progress = lambda rows: None, part_rows: int | None = None) -> Outcome:
    """Compare the table, in ranges of `part_rows`. Raises StreamerError; Behind if rows differ, and the stream does not get on; and
    what `progress` raises.
    """
    outcome = Outcome()
    coarse: list[_Sums] = []
    with _Sides(pair, progress) as sides:
        for part, source, target in sides.sums(part_rows or PART_ROWS, pair.whole):
            rows = sum(digest.rows for digest in source.values())
            outcome.rows += rows
            outcome.parts += max(len(source.keys() | target.keys()), 1)
            if source != target:
                coarse.append((part, source, target))
            progress(rows)
        suspects = [suspect for sums in coarse for suspect in _suspects(sides, sums)]
        for chosen in _groups(suspects):
            if len(outcome.different) >= PROVEN:
                outcome.unexplored += len(chosen)
            else:
                _look_into(sides, chosen, until_passed, outcome)
    return outcome


def _suspects(sides: _Sides, sums: _Sums) -> Iterator[tuple[Part, int, int]]:
    """Give the buckets of a part that differ, with their rows; a range is cut into small ones first."""
    for part, source, target in sides.sums(FINE_ROWS, sums[0]) if sides.pair.ranges else [sums]:
        for bucket in sorted(source.keys() | target.keys()):
            if source.get(bucket) != target.get(bucket):
                yield part, bucket, max(side[bucket].rows for side in (source, target) if bucket in side)


class _Sides:
    """Both sides of a pair, each with a thread, because it has one connection. If the context ends with an error, what they have
    under way is broken off."""

    def __init__(self, pair: Pair, progress: Progress) -> None:
        self.pair = pair
        self._progress = progress
        self._here, self._there = ThreadPoolExecutor(1, "verify source"), ThreadPoolExecutor(1, "verify target")
        self._asked: list[tuple[Side, Future[Any]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for side, asked in self._asked:
            while not asked.cancel() and not asked.done():
                side.cancel()
                wait([asked], BEAT_SECONDS)
        for thread in (self._here, self._there):
            thread.shutdown()

    def sums(self, rows: int, within: Part) -> Iterator[_Sums]:
        """Give what both sides have of each part, in order, and ask for a few parts ahead."""
        waiting: deque[tuple[Part, Future[Digests], Future[Digests]]] = deque()
        for part in self._parts(rows, within):
            waiting.append((part, self._of_source(self.pair.source.digests, part), self._of_target(self.pair.target.digests, part)))
            if len(waiting) > AHEAD:
                yield self._taken(*waiting.popleft())
        while waiting:
            yield self._taken(*waiting.popleft())

    def rows(self, part: Part, buckets: Collection[int]) -> tuple[Rows, Rows]:
        """Return what both sides have of some buckets of a part."""
        here = self._of_source(self.pair.source.rows, part, buckets)
        there = self._of_target(self.pair.target.rows, part, buckets)
        return self._answer(here), self._answer(there)

    def _parts(self, rows: int, within: Part) -> Iterator[Part]:
        if not self.pair.ranges:
            yield within
            return
        parts = self.pair.source.parts(rows, within)
        while (part := self._answer(self._of_source(next, parts, None))) is not None:
            yield part

    def _taken(self, part: Part, source: Future[Digests], target: Future[Digests]) -> _Sums:
        return part, self._answer(source), self._answer(target)

    def _of_source(self, question: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> Future[T]:
        return self._noted(self.pair.source, self._here.submit(question, *arguments, **more))

    def _of_target(self, question: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> Future[T]:
        return self._noted(self.pair.target, self._there.submit(question, *arguments, **more))

    def _noted(self, side: Side, asked: Future[T]) -> Future[T]:
        self._asked = [(other, future) for other, future in self._asked if not future.done() or future.exception()]
        self._asked.append((side, asked))
        return asked

    def _answer(self, asked: Future[T]) -> T:
        while not wait([asked], BEAT_SECONDS).done:
            for failed in (future for _, future in self._asked if future.done() and future.exception()):
                failed.result()
            self._progress(0)
        return asked.result()


def _groups(suspects: Sequence[tuple[Part, int, int]]) -> Iterator[list[tuple[Part, int]]]:
    """Give suspicious buckets, as many at once as memory allows."""
    group: list[tuple[Part, int]] = []
    held = 0
    for part, bucket, rows in suspects:
        if group and held + rows > ROWS_AT_ONCE:
            yield group
            group, held = [], 0
        group.append((part, bucket))
        held += rows
    if group:
        yield group


def _look_into(sides: _Sides, chosen: Sequence[tuple[Part, int]], until_passed: Pass, outcome: Outcome) -> None:
    """Decide the rows of some buckets, all together: the stream passes once for all of them."""
    buckets: dict[Part, set[int]] = {}
    for part, bucket in chosen:
        buckets.setdefault(part, set()).add(bucket)
    open_ = {part: Candidates(*sides.rows(part, b)) for part, b in buckets.items()}
    while open_ := {part: candidates for part, candidates in open_.items() if candidates.open}:
        until_passed()
        for part, candidates in open_.items():
            candidates.look(*sides.rows(part, buckets[part]))
            if not candidates.open:
                outcome.different += candidates.different
                outcome.undecided += candidates.undecided
