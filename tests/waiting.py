"""Waiting for a condition, the only way in which a test here may let time pass.

A test names what it waits for, and a failure says so and what was seen last. No test sleeps for a guessed time: the
pauses between two looks are short, and the deadline is only there so that a broken program does not hang the run.
The trap: a condition that raises is not retried, so it must not raise for what is merely not there yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 120.0  # seconds; generous, since it only ends a test that has failed already
PAUSES = (0.005, 0.1)  # seconds between two looks: the first, and the longest that it grows to


def wait_for(condition: Callable[[], T | None], what: str, deadline: float = DEADLINE) -> T:
    """Look at `condition` until it is truthy and return its value; after `deadline` seconds fail, naming `what`."""
    end = time.monotonic() + deadline
    pause, longest = PAUSES
    while True:
        seen = condition()
        if seen:
            return seen
        if time.monotonic() >= end:
            raise AssertionError(f"waited {deadline:g} s for {what}; seen last: {seen!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, longest)


def wait_for_equal(look: Callable[[], T], expected: T, what: str, deadline: float = DEADLINE) -> None:
    """Look until `look()` gives `expected`; after `deadline` seconds fail with both values."""
    seen: list[T] = []

    def equal() -> bool:
        seen[:] = [look()]
        return seen[0] == expected

    try:
        wait_for(equal, what, deadline)
    except AssertionError:
        raise AssertionError(f"waited {deadline:g} s for {what}: expected {expected!r}, seen last {seen[0]!r}") from None
