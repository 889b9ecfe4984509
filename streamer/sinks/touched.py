"""The part of a table that a transaction touches: its rows, their versions, and who holds its unique values. Pure.

What is the same for all rows is worked out once per relation (`Plan`); `Touched` is the table while one transaction is resolved.

The trap: unique values are compared as text, but some types take different texts for equal (citext, numeric without a scale, ranges
of it). So the server says which of the values that are asked for are `alike` those that its rows have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeAlias

from streamer.errors import SchemaError
from streamer.model import UNCHANGED, Identity, Relation, Row, Version, newest
from streamer.sinks.merge import Merge, merge_of
from streamer.sinks.policy import Key, Rules

Unique: TypeAlias = tuple[int, ...]
"""The columns of a unique key, by their index in the relation."""
Values: TypeAlias = tuple[str | None, ...]
"""What a row has in them."""

_UNKNOWN: Any = UNCHANGED  # keys and unique values hold it where a row is not known whole


@dataclass(slots=True)
class Stored:
    """What is at a key: a row with its version, or no row with the version of its tombstone (None: there is none).

    For a table with merge columns `deleted` is the version of the tombstone that lies under a row which was inserted again.
    """

    row: Row | None
    version: Version | None
    deleted: Version | None = None


@dataclass(slots=True)
class Table:
    """The part of a table that a transaction touches: each key that it names, each row that holds a unique value it wants.

    `key` and `uniques` (the other unique keys) are columns of `relation`, by index. A key that is not in `rows` is not there.
    """

    relation: Relation
    key: tuple[int, ...]
    uniques: tuple[Unique, ...]
    rules: Rules
    rows: dict[Key, Stored]
    #: unique keys in which a NULL is like another one (NULLS NOT DISTINCT)
    nulls_alike: Set[Unique] = frozenset()
    #: for unique keys: values that a row equals, though it has other texts, and these
    alike: Mapping[Unique, Mapping[Values, Values]] = field(default_factory=dict)
    #: all that is known of the deletion of keys, of which `rows` has what counts
    deletions: Mapping[Key, Sequence[Version]] = field(default_factory=dict)


class Plan:
    """What is the same for every row of a relation."""

    def __init__(self, table: Table) -> None:
        columns = table.relation.columns
        self.relation = table.relation
        self.rules, self.key, self.uniques = table.rules, table.key, table.uniques
        self.key_of: Callable[[Row], Key] = _picker(table.key)
        self.unique_of = tuple(_picker(unique) for unique in table.uniques)
        self.full = table.relation.identity is Identity.FULL
        self.merges = tuple(
            (i, _merge(table.relation, i, how), "0" if how == "delta" else None)
            for how in ("delta", "max", "min")
            for i, column in enumerate(columns)
            if column.name in getattr(table.rules, how)
        )
        merged = {i for i, _, _ in self.merges}
        self.ordinary = tuple(i for i in range(len(columns)) if i not in merged)

    def differ(self, one: Row, other: Row) -> bool:
        """Whether ordinary columns that both rows know are different."""
        return any(one[i] != other[i] and one[i] is not UNCHANGED and other[i] is not UNCHANGED for i in self.ordinary)

    def mere(self, old: Row, new: Row) -> bool:
        """Whether an update touched merge columns only. Raises SchemaError if the old row is not known whole."""
        if UNCHANGED in old:
            raise _not_full(self.relation)
        return not any(old[i] != new[i] for i in self.ordinary)

    def merged(self, into: Row, stored: Row | None, old: Row | None, new: Row) -> Row:
        """Return `into` with its merge columns made of what is stored and what the writer changed."""
        row = list(into)
        for i, merge, nothing in self.merges:
            here = nothing if stored is None else stored[i]
            before, after = None if old is None else old[i], new[i]
            if here is UNCHANGED or before is UNCHANGED or after is UNCHANGED:
                raise _not_full(self.relation)
            row[i] = merge(here, before, after)
        return tuple(row)


def _picker(columns: Unique) -> Callable[[Row], Any]:
    if len(columns) == 1:
        (only,) = columns
        return lambda row: (row[only],)
    return itemgetter(*columns)


def _merge(relation: Relation, column: int, how: str) -> Merge:
    described = relation.columns[column]
    merge = merge_of(how, described.type_oid)
    if merge is None:
        raise SchemaError(
            f'column "{described.name}" of {relation} has a type that cannot be merged by {how}',
            "delta takes integers and numeric; max and min floats, date and timestamps as well",
        )
    return merge


def _not_full(relation: Relation) -> SchemaError:
    return SchemaError(
        f"the replica identity of {relation} lacks values that conflicts are resolved by",
        f"ALTER TABLE {relation.table} REPLICA IDENTITY FULL",
    )


def filled(new: Row, old: Row | None) -> Row:
    """Return `new` with what it left unchanged taken from `old`, as far as that is known."""
    return new if old is None else newest(old, new)


class Touched:
    """A table while a transaction is resolved: who holds its unique values, and which of its rows the database has."""

    def __init__(self, table: Table, plan: Plan, removed: Iterable[Key]) -> None:
        self.table, self.plan = table, plan
        self.existed: dict[Key, bool] = {}
        #: what was removed before for this transaction
        self.earlier = frozenset(removed)
        #: keys at which nothing of the transaction counts: a local write took them, and wins
        self.removed = set(removed) if plan.rules.policy == "latest" else set()
        self._held: list[dict[Values, Key]] = [{} for _ in plan.unique_of]
        self._nulls_alike = [unique in table.nulls_alike for unique in plan.uniques]
        self._alike = [table.alike.get(unique, {}) for unique in plan.uniques]
        for key, stored in table.rows.items() if plan.unique_of else ():
            self._hold(key, stored.row)

    def key_of_old(self, row: Row) -> Key:
        """Return the key of an old row. Raises SchemaError if the replica identity lacks it."""
        key = self.plan.key_of(row)
        if _UNKNOWN in key:
            raise _not_full(self.table.relation)
        return key

    def at(self, key: Key) -> Stored:
        """Return what is at the key now."""
        return self.table.rows.get(key) or Stored(None, None)

    def put(self, key: Key, stored: Stored) -> None:
        """Change what is at the key."""
        before = self.at(key)
        self.existed.setdefault(key, before.row is not None)
        if self._held:
            self._release(key, before.row)
            self._hold(key, stored.row)
        self.table.rows[key] = stored

    def holders(self, row: Row, but: Key) -> tuple[list[Key], int]:
        """Return which keys other than `but` hold unique values of the row, and of how many unique keys."""
        found = [held.get(values) for held, values in zip(self._held, self._values(row), strict=True)]
        others = [key for key in found if key is not None and key != but]
        return list(dict.fromkeys(others)), len(others)

    def _hold(self, key: Key, row: Row | None) -> None:
        if row is not None:
            for held, values, nulls_alike in zip(self._held, self._values(row), self._nulls_alike, strict=True):
                if (nulls_alike or None not in values) and _UNKNOWN not in values:
                    held[values] = key

    def _release(self, key: Key, row: Row | None) -> None:
        if row is not None:
            for held, values in zip(self._held, self._values(row), strict=True):
                if held.get(values) == key:
                    del held[values]

    def _values(self, row: Row) -> list[Values]:
        """What the row has in each unique key, in the texts of the row that is equal, if one is."""
        found = [value_of(row) for value_of in self.plan.unique_of]
        return [alike.get(values, values) for alike, values in zip(self._alike, found, strict=True)] if any(self._alike) else found
