"""Who wins a dispute between a change that arrives and what is stored: the words for it, and the policies. Pure.

A policy is one of the words `latest`, `apply`, `keep`, `error`, the sources in order of priority, or the name of a Python
function. It is asked only where there is something to decide: the change was made without knowledge of what is stored.

The trap: of all policies only `latest` makes any number of nodes agree; a priority list makes two agree, the others none.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypeAlias

from streamer.errors import ApplyError
from streamer.model import UNCHANGED, Kind, Relation, Row, Version

Key: TypeAlias = tuple[str, ...]


class ConflictKind(enum.StrEnum):
    """What a change met, in PostgreSQL's words.

    https://www.postgresql.org/docs/current/logical-replication-conflicts.html
    """

    INSERT_EXISTS = "insert_exists"
    UPDATE_ORIGIN_DIFFERS = "update_origin_differs"
    UPDATE_EXISTS = "update_exists"
    UPDATE_MISSING = "update_missing"
    #: PostgreSQL 19 has it; the key's tombstone is there
    UPDATE_DELETED = "update_deleted"
    DELETE_ORIGIN_DIFFERS = "delete_origin_differs"
    DELETE_MISSING = "delete_missing"
    MULTIPLE_UNIQUE_CONFLICTS = "multiple_unique_conflicts"


@dataclass(frozen=True, slots=True)
class Rules:
    """How conflicts of one table are resolved; `fallback` (stop, latest, apply, keep) is for a Python function that failed."""

    policy: str | tuple[str, ...]
    delta: frozenset[str] = frozenset()
    max: frozenset[str] = frozenset()
    min: frozenset[str] = frozenset()
    fallback: str = "stop"

    @property
    def merged(self) -> frozenset[str]:
        """The columns that are merged, whoever wins."""
        return self.delta | self.max | self.min

    @property
    def name(self) -> str:
        """The policy as the config and `streamer conflicts` write it."""
        return self.policy if isinstance(self.policy, str) else ", ".join(self.policy)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A conflict and its end: `winner` is None if nobody could decide, `error` says why, or what was lost."""

    kind: ConflictKind
    relation: Relation
    key: Key
    change: Kind
    current: Row | None
    incoming: Row | None
    current_version: Version | None
    incoming_version: Version
    winner: Literal["incoming", "current", "merged"] | None
    rule: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Dispute:
    """What a Python function is given: both rows as dictionaries of PostgreSQL's text values, None where there is no row."""

    kind: str
    table: str
    key: Key
    change: str
    current: Mapping[str, str | None] | None
    incoming: Mapping[str, str | None] | None
    current_origin: str | None
    current_time: datetime | None
    incoming_origin: str
    incoming_time: datetime | None


Answer: TypeAlias = Literal["incoming", "current"] | Mapping[str, str | None]
Handler: TypeAlias = Callable[[Dispute], Answer]


class HandlerError(Exception):
    """A Python function raised, took too long, or answered what is no answer; `str()` tells."""


class Unresolved(ApplyError):
    """The policy leaves this conflict to a person; the stream stops."""

    def __init__(self, conflict: Conflict) -> None:
        self.conflict = conflict
        because = f": {conflict.error}" if conflict.error else ""
        super().__init__(
            f"{conflict.relation}: {conflict.kind} at key ({', '.join(conflict.key)}) of a change from "
            f'"{conflict.incoming_version.node}" is not resolved by "{conflict.rule}"{because}',
            "make the rows equal on both nodes, or choose another policy for the table",
        )


def as_mapping(relation: Relation, row: Row | None) -> dict[str, str | None] | None:
    """Return the known columns of a row by name."""
    if row is None:
        return None
    return {name: value for name, value in zip(relation.names, row, strict=True) if value is not UNCHANGED}


def decide(
    rules: Rules, conflict: Conflict, handler_of: Callable[[str], Handler], key_of: Callable[[Row], Key] | None
) -> tuple[Literal["incoming", "current"] | Row, Conflict]:
    """Return who wins, or the row that takes the place of both, and the conflict with its winner.

    `key_of` is None where no row could take the place of both, which have different keys. Raises Unresolved if the policy is to
    stop.
    """
    policy = rules.policy
    if not isinstance(policy, str) or not policy.startswith("python:"):
        return _by_word(policy, conflict, rules.name)
    try:
        answer = handler_of(policy)(_dispute(conflict))
        if isinstance(answer, str):
            return answer, replace(conflict, winner=answer, rule=policy)
        return _merged_row(conflict, answer, key_of), replace(conflict, winner="merged", rule=policy)
    except HandlerError as error:
        return _by_word(rules.fallback, conflict, f"{policy}, then {rules.fallback}", str(error))


def _by_word(
    policy: str | tuple[str, ...], conflict: Conflict, rule: str, error: str | None = None
) -> tuple[Literal["incoming", "current"], Conflict]:
    if policy in ("error", "stop"):
        raise Unresolved(replace(conflict, rule=rule, error=error))
    winner: Literal["incoming", "current"] = "incoming" if _incoming_wins(policy, conflict) else "current"
    return winner, replace(conflict, winner=winner, rule=rule, error=error)


def _incoming_wins(policy: str | tuple[str, ...], conflict: Conflict) -> bool:
    current = conflict.current_version
    if current is None or policy == "apply":
        return True
    if isinstance(policy, tuple):
        return rank(policy, conflict.incoming_version.node) < rank(policy, current.node)
    return policy == "latest" and current.precedes(conflict.incoming_version)


def rank(priority: tuple[str, ...], node: str) -> int:
    """The place of a node in the list; one that is not in it comes last."""
    return priority.index(node) if node in priority else len(priority)


def _dispute(c: Conflict) -> Dispute:
    current, incoming = as_mapping(c.relation, c.current), as_mapping(c.relation, c.incoming)
    version = c.current_version or Version(None, "")
    origins = (version.node or None, version.time, c.incoming_version.node, c.incoming_version.time)
    return Dispute(c.kind, str(c.relation.table), c.key, c.change, current, incoming, *origins)


def _merged_row(conflict: Conflict, answer: Mapping[str, str | None], key_of: Callable[[Row], Key] | None) -> Row:
    names = conflict.relation.names
    known = conflict.incoming or conflict.current or ()
    row = tuple(answer.get(name, value) for name, value in zip(names, known, strict=True))
    if key_of is None:
        raise HandlerError("it answered with a row, but the two rows have different keys: one of them must win")
    if key_of(row) != conflict.key:
        raise HandlerError(f"it answered with a row that has another key than ({', '.join(conflict.key)})")
    return row
