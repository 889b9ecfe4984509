"""The tables of an edge, compared one after another: what is to be compared, and what came of it.

A table that cannot be compared is told with the reason, and the others go on. The trap: rows that differ because the stream is
behind are no differences, and no proof of equality either; such a table is "behind".
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.model import EdgeName, TableName
from streamer.verify.candidates import Difference
from streamer.verify.comparison import Behind, Outcome, Progress, compare
from streamer.verify.pairs import Compared, opened
from streamer.verify.passing import Passing

SHOWN: Final = 20
"""Differing keys that are told of each table, unless asked otherwise."""


class Verdict(enum.StrEnum):
    """What is to be said of a table."""

    EQUAL = "equal"
    DIFFERENT = "different"
    REPAIRED = "repaired"
    BEHIND = "behind"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Verified:
    """One table of an edge."""

    sync: str
    source: str
    target: str
    table: str
    verdict: Verdict
    #: when its reading began, by the clock of who compared
    began: datetime
    #: on the source
    rows: int = 0
    #: ranges of the key, or buckets
    ranges: int = 0
    #: rows that differ, and some of them: key (column to value) and kind
    different: int = 0
    keys: list[dict[str, Any]] = field(default_factory=list)
    #: rows that were mended; the others of them have changed meanwhile
    repaired: int = 0
    #: ranges that differ, and were not looked into
    unexplored: int = 0
    #: rows that are written too often to be compared
    undecided: int = 0
    #: why it could not be compared
    problem: str = ""
    remedy: str = ""

    @property
    def left(self) -> int:
        """How many rows differ still."""
        return self.different - self.repaired


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be compared. Empty: everything."""

    sync: str
    tables: tuple[TableName, ...] = ()
    target: str | None = None
    #: differing keys to tell of each table
    limit: int = SHOWN
    #: seconds for which an edge may stand still
    wait: float = 60.0

    def selects(self, table: TableName) -> bool:
        """Whether a table is to be compared."""
        return not self.tables or table in self.tables


Repair: TypeAlias = Callable[[EdgeName, Compared, Sequence[Difference]], int]
"""Mends the rows of a table that differ, and returns how many."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How tables are compared. `hurry` has the daemon make the progress of a sync durable."""

    hurry: Callable[[str], object]
    progress: Progress = lambda rows: None
    #: rows of a range; None: as many as are read fastest
    part_rows: int | None = None
    #: what mends differences, if they are to be
    mend: Repair | None = None
    #: why an edge does not get on, if somebody knows; empty if it does
    trouble: Callable[[EdgeName], str] = lambda edge: ""


def edges_of(config: Config, what: Wanted) -> list[EdgeName]:
    """Return those from the first source of the sync: each of its other nodes has one. Raises UsageError."""
    source = config.syncs[what.sync].sources[0]
    there = config.targets(what.sync, source)
    if what.target is not None and what.target not in there:
        raise UsageError(f'sync "{what.sync}" has no target "{what.target}" that "{source}" feeds', f"it has {', '.join(there)}")
    comparable = [node for node in there if config.nodes[node].kind != "jsonl"]
    return [EdgeName(what.sync, source, node) for node in ([what.target] if what.target else comparable or there)]


def compare_edge(config: Config, edge: EdgeName, what: Wanted, manner: Manner) -> Iterator[Verified]:
    """Compare the tables of an edge, and give each when it is done.

    Raises StreamerError if an end cannot be reached at all, and what the progress raises.
    """
    nodes = (edge.source, edge.target)
    with (
        opened(config, edge, what.selects) as tables,
        closing(Passing(config, edge.sync, nodes, what.wait, manner.hurry, manner.trouble, lambda: manner.progress(0))) as passing,
    ):
        for table, prepare in tables:
            yield _verified(edge, table, prepare, passing, what, manner)


def _verified(
    edge: EdgeName, table: TableName, prepare: Callable[[], Compared], passing: Passing, what: Wanted, manner: Manner
) -> Verified:
    began = datetime.now(UTC)

    def told(verdict: Verdict, **more: Any) -> Verified:  # noqa: ANN401  # the fields of Verified
        return Verified(edge.sync, edge.source, edge.target, str(table), verdict, began, **more)

    try:
        compared = prepare()
        outcome = compare(compared.pair, passing.until_passed, manner.progress, manner.part_rows)
        outcome.different = _in_order(outcome.different)
        repaired = manner.mend(edge, compared, outcome.different) if manner.mend is not None and outcome.different else 0
    except Behind as problem:
        return told(Verdict.BEHIND, problem=problem.message, remedy=problem.hint)
    except StreamerError as problem:
        return told(Verdict.FAILED, problem=problem.message, remedy=problem.hint)
    return told(
        _verdict(outcome, repaired),
        rows=outcome.rows,
        ranges=outcome.parts,
        different=len(outcome.different),
        keys=[told_row(compared, difference) for difference in outcome.different[: what.limit]],
        repaired=repaired,
        unexplored=outcome.unexplored,
        undecided=len(outcome.undecided),
    )


def _verdict(outcome: Outcome, repaired: int) -> Verdict:
    if outcome.unexplored or repaired < len(outcome.different):
        return Verdict.DIFFERENT
    return Verdict.REPAIRED if repaired else Verdict.EQUAL


def _in_order(differences: Sequence[Difference]) -> list[Difference]:
    """By key, numbers as numbers."""
    return sorted(differences, key=lambda difference: [(len(value or ""), value or "") for value in difference.key])


def told_row(compared: Compared, difference: Difference) -> dict[str, Any]:
    """Return a differing row for people: its key; of a table without one, the hash of the row."""
    names = compared.key or ("hash of the row",)
    return {"key": dict(zip(names, difference.key, strict=True)), "kind": difference.kind}


def equal(found: Sequence[Verified]) -> bool:
    """Whether all tables are, now."""
    return all(one.verdict in (Verdict.EQUAL, Verdict.REPAIRED) for one in found)
