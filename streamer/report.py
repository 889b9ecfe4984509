"""What streams and edges tell about themselves: plain values, for `status`, metrics and the demo. Taken whenever somebody asks."""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Final

from streamer.copy_report import NOTHING_COPIED, CopyReport, CopyTotals
from streamer.errors import StreamerError, TakenError
from streamer.ports import Written
from streamer.post_data import PostDataReport

CONTINUOUS: Final = "continuous"
"""The schedule of a stream that never rests, as the config has it."""


class State(enum.StrEnum):
    """What a stream or an edge is doing."""

    STARTING = "starting"
    COPYING = "copying"
    #: making indexes and constraints of tables that have their rows
    INDEXING = "indexing"
    STREAMING = "streaming"
    #: another daemon does this work; takes over when that ends
    STANDBY = "standby"
    #: failed; tries again by itself
    RETRYING = "retrying"
    #: failed; a person must act
    FAILED = "failed"
    #: waits for its next run
    RESTING = "resting"
    #: told to stop until it is told to go on
    PAUSED = "paused"
    STOPPED = "stopped"

    @classmethod
    def after(cls, error: StreamerError) -> State:
        """The state in which an error leaves a stream or an edge."""
        if error.permanent:
            return cls.FAILED
        return cls.STANDBY if isinstance(error, TakenError) else cls.RETRYING


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
class FullCopyReport:
    """The last copy of a table that is copied whole, again and again."""

    table: str
    rows: int
    #: when it was done
    at: datetime


@dataclass(frozen=True, slots=True)
class SequencesReport:
    """The sequences that an edge keeps in step."""

    #: how many there are, and how often one of them was set since the daemon started
    number: int
    moved: int
    #: when all were last seen to be at or ahead of the source's
    at: datetime | None
    problem: Problem | None


APPLY_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The upper bounds by which `Durations` sorts."""


@dataclass(slots=True)
class Durations:
    """How long something took each time, as a histogram: `counts` belong to APPLY_SECONDS, the last to all that took longer."""

    seconds: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(APPLY_SECONDS) + 1))

    def __add__(self, other: Durations) -> Durations:
        """Both together."""
        return Durations(self.seconds + other.seconds, [a + b for a, b in zip(self.counts, other.counts, strict=True)])

    def add(self, seconds: float, times: int) -> None:
        """Note what took so long altogether and was done so many times, each with an equal share."""
        if times:
            self.seconds += seconds
            self.counts[bisect_left(APPLY_SECONDS, seconds / times)] += times


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
    #: how often the target was connected to and then ready
    connects: int = 0
    #: seconds spent waiting until the target's clock had passed commit times
    waited: float = 0.0
    #: what the target took for a group
    apply: Durations = field(default_factory=Durations)
    #: values that the target's columns cannot hold, written as NULL or as the nearest one
    replaced: int = 0
    #: changes put into quarantine
    quarantined: int = 0
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

    def add(self, written: Written, transactions: int) -> None:
        """Count what a sink did with one group of so many transactions."""
        self.inserted += written.inserted
        self.updated += written.updated
        self.deleted += written.deleted
        self.truncated += written.truncated
        self.missing += written.missing
        self.replaced += written.replaced
        self.quarantined += written.quarantined
        self.waited += written.waited
        self.groups += 1
        self.transactions += transactions
        self.conflicts.update(written.conflicts)


@dataclass(frozen=True, slots=True)
class ProofReport:
    """What comparisons have found of an edge, those without end and commands: the present proof has the last look at each table."""

    #: whether the edge is compared all the time; else only `streamer verify` has told of it
    continuous: bool
    #: that were compared
    tables: int
    #: of the source, that the target has alike
    rows: int
    #: that differ: missing, too many, or with another value
    different: int
    #: when the oldest part of the proof was read; None until every table was compared
    since: datetime | None
    #: rows read since the daemon started
    compared: int
    #: over all tables, that were finished
    rounds: int
    #: tables or rounds that could not be compared
    failures: int
    #: why the edge is passed over now; empty if it is not
    obstacle: str
    #: why something could not be compared; None after a round without failures
    problem: Problem | None

    def age(self, now: datetime) -> float | None:
        """Seconds since the oldest part was read."""
        return None if self.since is None else (now - self.since).total_seconds()


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
    #: age of the oldest transaction that was read and the target lacks; 0 when caught up
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
    #: of all tables, those too whose turn has not come
    copy_totals: CopyTotals = NOTHING_COPIED
    #: the tables are of one time only when the position has reached this one; empty if it has
    consistent_from: str = ""
    #: whether the target is connected and ready, or takes an initial copy
    connected: bool = False
    #: commit time of the last transaction that was applied, by the clock of its origin; None if none was since the daemon started
    last_applied: datetime | None = None
    #: of tables that are copied whole
    full_copies: list[FullCopyReport] = field(default_factory=list)
    #: None if the sync does not have its sequences kept in step there
    sequences: SequencesReport | None = None
    #: changes that the target holds in quarantine now
    quarantined: int = 0
    #: None if the edge was not compared since the daemon started
    proof: ProofReport | None = None
    #: indexes and constraints that its tables do not have yet
    post_data: PostDataReport = field(default_factory=PostDataReport)


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
class Sessions:
    """How often a stream was opened on its source, and how often that or reading it has failed."""

    opened: int = 0
    failed: int = 0

    def __add__(self, other: Sessions) -> Sessions:
        """Both together."""
        return Sessions(self.opened + other.opened, self.failed + other.failed)


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
    #: since the daemon started
    sessions: Sessions = Sessions()
    #: whether the source is being read
    connected: bool = False
    #: why a run that is due does not begin; empty if nothing holds it
    held: str = ""


class GuardLevel(enum.StrEnum):
    """How much WAL the slots of ours hold back on a node, measured by its `max_retained_wal`."""

    #: less than half of it, or there is no limit
    OK = "ok"
    #: more than half of it
    HALF = "half"
    EXCEEDED = "exceeded"


@dataclass(frozen=True, slots=True)
class SlotReport:
    """A logical slot at one moment, ours or another's. What the server's version does not tell is None."""

    node: str
    slot: str
    database: str
    plugin: str
    active: bool
    active_pid: int | None
    #: WAL that the server keeps for it
    retained_bytes: int | None
    #: WAL that may still be written before the slot is in danger of being lost (13+, with max_slot_wal_keep_size)
    safe_wal_bytes: int | None
    #: reserved, extended, unreserved or lost (13+)
    wal_status: str | None
    #: everything committed before it has been confirmed (9.6+)
    confirmed: str | None
    #: WAL between that and the end
    lag_bytes: int | None
    #: 17+
    inactive_since: datetime | None = None
    failover: bool | None = None
    temporary: bool = False
    #: why it was invalidated (17+)
    invalidation: str | None = None
    #: the stream of the config that uses it; empty if none does
    sync: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class DeltaReport:
    """A table whose changes triggers have noted, and not every target of the stream holds yet."""

    sync: str
    source: str
    table: str
    #: rows of streamer.delta: a row that was changed twice counts twice
    rows: int
    #: whether there may be more: only the first 100,000 of a stream are counted
    more: bool


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What the daemon knows of a source: its slots and deltas as of the last sample."""

    node: str
    #: None before the first sample
    sampled_at: datetime | None
    #: why the last attempt to sample has failed
    problem: Problem | None
    #: `max_retained_wal` in bytes
    max_retained_bytes: int | None
    #: `wal_guard` of the config
    guard: str
    level: GuardLevel
    slots: list[SlotReport]
    #: where triggers capture
    deltas: list[DeltaReport] = field(default_factory=list)
