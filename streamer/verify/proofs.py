"""What is known of the rows of an edge, by table: the last look at each. Comparisons without end feed it, and whoever ran
`streamer verify`.

It lives in the daemon's memory, and is told in its report; a daemon that is started again knows nothing. The trap: a proof is as
old as its oldest part, and none before every table was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pydantic import TypeAdapter, ValidationError

from streamer.errors import UsageError
from streamer.model import EdgeName
from streamer.report import Problem, ProofReport
from streamer.verify.tables import Verdict, Verified


@dataclass(slots=True)
class Proof:
    """What is known of one edge. Noted by one thread at a time, told to any."""

    edge: EdgeName
    #: whether the daemon compares it all the time
    continuous: bool
    tables: dict[str, Verified] = field(default_factory=dict)
    #: all tables when they were last gone through
    known: frozenset[str] | None = None
    compared: int = 0
    rounds: int = 0
    failures: int = 0
    obstacle: str = ""
    problem: Problem | None = None

    def note(self, one: Verified) -> Verified | None:
        """Take over what was found of a table, and return what was there; one that could not be compared keeps its proof."""
        before = self.tables.get(one.table)
        if one.verdict not in (Verdict.BEHIND, Verdict.FAILED):
            self.tables = self.tables | {one.table: one}  # another thread may be reading the other
        return before

    def gone_through(self, seen: Iterable[str]) -> None:
        """Note that these are all tables that there are."""
        self.known = frozenset(seen)
        self.tables = {table: found for table, found in self.tables.items() if table in self.known}

    def report(self) -> ProofReport:
        """Return it as the daemon tells it."""
        tables, known = self.tables, self.known
        whole = known is not None and known <= tables.keys()
        return ProofReport(
            continuous=self.continuous,
            tables=len(tables),
            rows=sum(max(0, one.rows - one.left) for one in tables.values() if not one.unexplored),
            different=sum(one.left for one in tables.values()),
            since=min((one.began for one in tables.values()), default=None) if whole else None,
            compared=self.compared,
            rounds=self.rounds,
            failures=self.failures,
            obstacle=self.obstacle,
            problem=self.problem,
        )


@dataclass(frozen=True, slots=True)
class Told:
    """What a command has found of one edge; with `whole`, of all its tables."""

    edge: EdgeName
    whole: bool
    tables: list[Verified]


_TOLD: Final = TypeAdapter(Told)


def to_body(told: Told) -> bytes:
    """Return it as it is sent to the daemon."""
    return _TOLD.dump_json(told)


def of_body(sync: str, body: bytes) -> Told:
    """Return what was sent. Raises UsageError."""
    try:
        told = _TOLD.validate_json(body)
    except ValidationError as error:
        raise UsageError(f"this is no result of verify: {error.error_count()} faults in it", "use streamer verify") from None
    if told.edge.sync != sync:
        raise UsageError(f'this is a result of sync "{told.edge.sync}", not of "{sync}"', "use streamer verify")
    return told
