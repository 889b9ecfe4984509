"""Writing groups one after the other, for sinks that wait for the answer to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamer.model import Group
from streamer.ports import Written


def write_in_order(groups: Sequence[Group], interrupted: Callable[[], bool], write: Callable[[Group], Written]) -> list[Written]:
    """Have `write` apply the groups, and return what it said of each, as ports.Sink.write promises."""
    written: list[Written] = []
    for group in groups:
        if written and interrupted():
            break
        written.append(write(group))
    return written
