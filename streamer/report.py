"""What streams and edges tell about themselves: plain values, for `status`, metrics and the demo. Taken whenever somebody asks."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from streamer.errors import StreamerError
from streamer.ports import Written


class State(enum.StrEnum):
    """What a stream or an edge is doing."""

    STARTING = "starting"
    COPYING = "copying"
    STREAMING = "streaming"
    #: failed; tries again by itself
    RETRYING = "retrying"
    #: failed; a person must act
    FAILED = "failed"
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
    #: resolved, by kind
    conflicts: Counter[str] = field(default_factory=Counter)

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
