"""What a transaction from another node does to the rows that are here: conflicts found and resolved, row by row. Pure.

The writer loads what the transaction touches (`Table.rows`), the Resolver goes through its changes in order and says which
plain inserts, updates and deletes remain (`effects`), what it had to decide (`conflicts`), and which rows must go because a
unique key cannot have two holders (`removals`). A key that changes is a delete of the old key and an insert of the new one.

Versions are compared by (commit time, node). What the origin had seen is no conflict; a change from the origin that wrote the
stored version never is.

The trap: `removals` are new local writes of this node, or the other nodes would never hear of them. If there are any, nothing
else of the transaction may be written: the writer commits the removals on their own and resolves again, with `removed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

from streamer.model import Change, Kind, Origin, Relation, Version
from streamer.sinks.policy import (
    Answer,
    Conflict,
    ConflictKind,
    Dispute,
    Handler,
    HandlerError,
    Key,
    Rules,
    Unresolved,
)
from streamer.sinks.resolving import Effect, Premature, Removal, Resolution, Resolving
from streamer.sinks.touched import Plan, Stored, Table, Touched

__all__ = [
    "Answer",
    "Conflict",
    "ConflictKind",
    "Dispute",
    "Effect",
    "Handler",
    "HandlerError",
    "Key",
    "Premature",
    "Removal",
    "Resolution",
    "Resolver",
    "Rules",
    "Stored",
    "Table",
    "Unresolved",
    "Version",
]


class Resolver:
    """Resolves the transactions that arrive at one node. `handler_of` gives the function of a `python:` policy."""

    def __init__(self, node: str, handler_of: Callable[[str], Handler]) -> None:
        self.node = node
        self.handler_of = handler_of
        self._plans: dict[Relation, Plan] = {}

    def resolve(
        self,
        changes: Sequence[Change],
        origin: Origin,
        tables: Mapping[Relation, Table],
        removed: Set[tuple[Relation, Key]] = frozenset(),
        patient: bool = False,
    ) -> Resolution:
        """Return what a transaction of `origin` does; `tables` are brought up to date, `removed` is what was removed for it.

        Raises Unresolved where the policy is to stop. With `patient`, raises Premature where it is better to wait for what the
        origin had seen of the others; pass it while something of that is missing here, or waiting is in vain.
        """
        run = Resolving(self.handler_of, origin, patient)
        opened: dict[Relation, Touched] = {}
        for kind, relation, old, new in changes:
            at = opened.get(relation)
            if at is None:
                table = tables[relation]
                at = opened[relation] = Touched(table, self._plan(table), [key for other, key in removed if other is relation])
                if patient and table.rules.policy != "latest":
                    raise run.premature(at, at.plan.key_of(new or old or ()), "all that it rests on")
            if kind is Kind.UPDATE:
                assert new is not None
                run.update(at, old, new)
            elif kind is Kind.INSERT:
                assert new is not None
                run.insert(at, at.plan.key_of(new), new, kind)
            else:
                assert old is not None
                run.delete(at, at.key_of_old(old), old)
        return run.end()

    def _plan(self, table: Table) -> Plan:
        plan = self._plans.get(table.relation)
        if plan is None or (plan.rules, plan.key, plan.uniques) != (table.rules, table.key, table.uniques):
            plan = self._plans[table.relation] = Plan(table)
        return plan
