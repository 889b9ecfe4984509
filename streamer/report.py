"""What streams and edges tell about themselves: plain values, for `status`, metrics and the demo. Taken whenever somebody asks."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Final

from streamer.errors import StreamerError
from streamer.ports import Written

CONTINUOUS: Final = "continuous"
"""The schedule of a stream that never rests, as the config has it."""


class State(enum.StrEnum):
    """What a stream or an edge is doing."""

    STARTING = "starting"
    COPYING = "copying"
    STREAMING = "streaming"
    #: failed; tries again by itself
    RETRYING = "retrying"
    #: failed; a person must act
    FAILED = "failed"
    #: waits for its next run
    RESTING = "resting"
    #: told to stop until it is told to go on
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Problem:
    """The last error: what, and the remedy."""

    message: str
    hint: str
    at: datetime

    @classmethod
    def of(cls, error: StreamerError, now: datetime) -> Problem:
        """The problem that an error tells of."""
        return cls(error.message, error.hint, now)


@dataclass(frozen=True, slots=True)
class CopyReport:
    """One table of a running initial copy."""

    table: str
    rows: int
    #: estimated, 0 if unknown
    total: int
    done: bool


@dataclass(slots=True)
class Counters:
    """What an edge has done since the daemon started."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: int = 0
    missing: int = 0
    transactions: int = 0
    groups: int = 0
    copied: int = 0
    retries: int = 0
    #: values that the target's columns cannot hold, written as NULL or as the nearest one
    replaced: int = 0
    #: resolved, by kind
    conflicts: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Counters) -> Counters:
        """Both together; `copied` counts since the daemon started by itself."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Counters(**sums | {"copied": max(self.copied, other.copied)})

    @property
    def rows(self) -> int:
        """Rows written by changes; the initial copy not counted."""
        return self.inserted + self.updated + self.deleted

    def add(self, written: Written) -> None:
        """Count what a sink did with one group."""
        self.inserted += written.inserted
        self.updated += written.updated
        self.deleted += written.deleted
        self.truncated += written.truncated
        self.missing += written.missing
        self.replaced += written.replaced
        self.groups += 1
        self.conflicts.update(written.conflicts)


@dataclass(frozen=True, slots=True)
class EdgeReport:
    """An edge at one moment."""

    sync: str
    source: str
    target: str
    state: State
    #: durable on the target, as PostgreSQL writes an LSN; empty if not known
    position: str
    #: WAL between what the source has sent and what the target holds
    lag_bytes: int
    #: age of the last applied transaction while more is waiting; 0 when caught up
    lag_seconds: float
    #: from commit on the source to commit on the target, for the last group
    delay_seconds: float
    #: how far the last commit time lay ahead of the target's clock when it came
    skew_seconds: float
    queue_bytes: int
    counters: Counters
    problem: Problem | None
    copy: list[CopyReport] = field(default_factory=list)
    #: what the initial copy waits for; empty if it does not
    obstacle: str = ""


class Result(enum.StrEnum):
    """How a run ended."""

    #: the targets hold what was there when it began
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a stream that rests between its runs."""

    number: int
    started: datetime
    #: None while it lasts, and the result too
    ended: datetime | None
    result: Result | None
    #: written by changes and copied, on all targets together
    rows: int


@dataclass(frozen=True, slots=True)
class Kicks:
    """What was asked of a stream. Kicks are numbered from 1 since the daemon started; a run answers all that came before it."""

    #: the newest run that was asked for
    asked: int = 0
    #: the newest that was done, and the newest that has ended, done or not
    done: int = 0
    ended: int = 0
    #: how many runs were done, and how many have failed
    runs_done: int = 0
    runs_failed: int = 0
    #: the run that is under way, else the last one; always None for a continuous sync
    run: Run | None = None
    #: when the next begins by itself
    next: datetime | None = None
    #: when the last that was done has ended
    last_done: datetime | None = None


@dataclass(frozen=True, slots=True)
class StreamReport:
    """A stream and its edges at one moment."""

    sync: str
    source: str
    state: State
    #: confirmed to the source
    confirmed: str
    problem: Problem | None
    edges: list[EdgeReport]
    #: when it runs, as the config has it
    schedule: str = CONTINUOUS
    paused: bool = False
    kicks: Kicks = Kicks()
