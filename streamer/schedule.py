"""When a stream runs: what was asked of it, what came of that, and what comes next. Pure: `now` is given, in monotonic seconds.

Kicks are numbered. That of a stream which rests between its runs asks for a run: one that is under way has looked at the end of
the WAL already, so a kick meanwhile asks for one more, and all kicks until that begins get the same number. A continuous stream is
asked for a position to reach.

The trap: numbers are answered in order, so whoever waits for one looks whether the newest that was done is not less, never whether
it is the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from streamer.model import LSN
from streamer.report import Result


@dataclass(slots=True)
class Answers:
    """The numbers of kicks, from 1 since the daemon started."""

    #: the newest that was given out
    asked: int = 0
    #: the newest that was done, and the newest that was answered, whether done or failed
    done: int = 0
    ended: int = 0

    def answer(self, number: int, result: Result) -> None:
        """What was asked for until `number` has ended."""
        self.ended = number
        if result is Result.DONE:
            self.done = number


class Continuous:
    """The schedule of a stream that never rests. A run ends only when nothing can be done any more."""

    def __init__(self) -> None:
        self.answers = Answers()
        self._due = True
        self._goals: deque[tuple[int, LSN]] = deque()

    def kick(self, goal: LSN) -> int:
        """Ask for all that was committed before `goal`; return the number."""
        self.answers.asked += 1
        self._goals.append((self.answers.asked, goal))
        return self.answers.asked

    @property
    def goal(self) -> LSN | None:
        """The farthest position that somebody waits for."""
        return self._goals[-1][1] if self._goals else None

    def settle(self, is_reached: Callable[[LSN], bool], *, failed: bool) -> None:
        """Answer what is reached; if the stream has failed, what is not as well."""
        while self._goals:
            number, goal = self._goals[0]
            reached = is_reached(goal)
            if not reached and not failed:
                return
            self.answers.answer(number, Result.DONE if reached else Result.FAILED)
            self._goals.popleft()

    def is_due(self, now: float) -> bool:
        """Whether it has not run yet, or was broken off."""
        return self._due

    def begin(self) -> None:
        """It runs."""
        self._due = False

    def end(self, result: Result, now: float) -> None:
        """It has failed, and waits for a person."""

    def break_off(self) -> None:
        """It goes on as soon as it may."""
        self._due = True

    def pass_over(self, now: float) -> None:
        """No time matters to it."""

    def next_at(self, now: float) -> None:
        """Nothing begins by itself."""


class Resting:
    """The schedule of a stream that rests between its runs. They begin when kicked and, if there is an `interval`, by themselves
    every so many seconds, the first at once. A time that comes amid a run or a pause is passed over."""

    def __init__(self, interval: float | None, now: float) -> None:
        self.answers = Answers()
        self._interval = interval
        self._next = now
        self._begun = 0

    def kick(self) -> int:
        """Ask for a run that begins from now on; return its number."""
        self.answers.asked = max(self.answers.asked, self._begun + 1)
        return self.answers.asked

    def is_due(self, now: float) -> bool:
        """Whether one was asked for, or its time has come."""
        if self._interval is not None and now >= self._next:
            self.pass_over(now)
            self.kick()
        return self.answers.asked > self._begun

    @property
    def number(self) -> int:
        """The number of the run that is under way, else of the last one."""
        return self._begun

    def begin(self) -> None:
        """The run answers all kicks until now."""
        self._begun = self.answers.asked

    def end(self, result: Result, now: float) -> None:
        """Answer them."""
        self.answers.answer(self._begun, result)
        self.pass_over(now)

    def break_off(self) -> None:
        """What the run was to answer is still to be answered."""
        self._begun = self.answers.ended

    def pass_over(self, now: float) -> None:
        """The next run begins by itself later than now."""
        self._next = self.next_at(now) or self._next

    def next_at(self, now: float) -> float | None:
        """The first time after `now`. They are counted from the very first, so they don't drift."""
        if self._interval is None or now < self._next:
            return None if self._interval is None else self._next
        return self._next + self._interval * (math.floor((now - self._next) / self._interval) + 1)
