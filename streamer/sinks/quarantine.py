"""Quarantine: the changes that a target does not get, because it refused them, or because they follow one that it refused. Pure.

A group that is refused is tried in halves, and these in halves, until one change is left: that one is held back. Every later change
of the same row is held with it, whatever the target would say of it, so that all of them can be applied in order one day; an update
that changes the key makes the row's new key follow as well. A truncate ends it: what was held of the table has no row any more.

A row is told by its key, or where there is none by all its values, as a digest of the text. The trap: whether a change follows
depends on what was held before it, so changes pass in source order only, and what a refused attempt has held is forgotten with it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

from streamer.errors import StreamerError
from streamer.model import UNCHANGED, Change, EdgeName, Group, Kind, Relation, Row, TableName, Value
from streamer.ports import Written
from streamer.sinks.net import KeyOf, Unfoldable

LOOK_SECONDS: Final = 1.0
"""How often at most a target is asked how many changes it holds back."""

OnError: TypeAlias = Callable[[TableName], bool]
"""Whether changes of a table, by its name on the target, may be held back; else a refused one stops the edge."""


def stops(table: TableName) -> bool:
    """Return False: every refused change stops the edge."""
    return False


@dataclass(frozen=True, slots=True)
class Held:
    """A change that is held back."""

    change: Change
    #: the row's key, by column
    key: dict[str, str | None]
    #: what tells its row from all others, before the change and after it
    before: str
    after: str
    #: why it was refused; None if it follows another one
    error: str | None


class RowIds:
    """Tells the rows of an edge's tables apart. Made for one group: it remembers what it was asked."""

    def __init__(self, edge: EdgeName, key_of: KeyOf) -> None:
        self._edge = (edge.sync, edge.source, edge.target)
        self._key_of = key_of
        #: with the change, whose id is its own only as long as it is there
        self._known: dict[int, tuple[str, str, Change]] = {}

    def of(self, change: Change) -> tuple[str, str]:
        """Return what tells the row that is changed, not truncated, before and after the change."""
        if (found := self._known.get(id(change))) is None:
            _, relation, old, new = change
            before, after = old or new or (), new or old or ()
            found = self._known[id(change)] = (
                self._digest(relation, self._picked(relation, before, after)),
                self._digest(relation, self._picked(relation, after, before)),
                change,
            )
        return found[:2]

    def key(self, change: Change) -> dict[str, str | None]:
        """Return the key of the changed row, for people; all that is known of it where there is none."""
        _, relation, old, new = change
        return self._picked(relation, old or new or (), new or old or ())

    def _picked(self, relation: Relation, row: Row, other: Row) -> dict[str, str | None]:
        """The key's values; what the row leaves unchanged is in the other one."""
        key = self._key_of(relation)
        columns: Iterable[int] = range(len(row)) if key is None else key
        values: dict[str, Value] = {relation.names[i]: other[i] if row[i] is UNCHANGED else row[i] for i in columns}
        return {name: value for name, value in values.items() if value is not UNCHANGED}

    def _digest(self, relation: Relation, key: dict[str, str | None]) -> str:
        told = [*self._edge, relation.table.schema, relation.table.name, sorted(key.items())]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


class Hold:
    """What of a run of changes is held back. Of rows that are `known`, and of those that an earlier run holds, it was before."""

    def __init__(self, rows: RowIds, known: Collection[str] = (), earlier: Hold | None = None) -> None:
        self.rows = rows
        self.kept: list[Held] = []
        #: tables that were truncated: what was held of them before is void
        self.emptied: set[TableName] = set()
        self._known = known
        self._earlier = earlier
        self._own: dict[TableName, set[str]] = {}

    def holds(self, table: TableName, row: str) -> bool:
        """Return whether changes of this row are held back."""
        if row in self._own.get(table, ()):
            return True
        return table not in self.emptied and (row in self._known if self._earlier is None else self._earlier.holds(table, row))

    def _may_hold(self, table: TableName) -> bool:
        """Whether changes of any row of the table may be held back: what tells rows apart takes a while to make."""
        if self._own.get(table):
            return True
        return table not in self.emptied and (bool(self._known) if self._earlier is None else self._earlier._may_hold(table))

    def follows(self, change: Change) -> bool:
        """Let the next change pass; return whether it is held back, because its row is."""
        table = change[1].table
        if change[0] is Kind.TRUNCATE:
            self.empty(table)
            return False
        if self._may_hold(table) and any(self.holds(table, row) for row in self.rows.of(change)):
            self.keep(change, None)
            return True
        return False

    def keep(self, change: Change, error: str | None) -> None:
        """Hold a change back."""
        self._add(Held(change, self.rows.key(change), *self.rows.of(change), error))

    def empty(self, table: TableName) -> None:
        """Forget what is held of a table."""
        self.emptied.add(table)
        if self._own.pop(table, None):
            self.kept = [held for held in self.kept if held.change[1].table != table]

    def take(self, later: Hold) -> None:
        """Add what became of changes that came after these."""
        for table in later.emptied:
            self.empty(table)
        for held in later.kept:
            self._add(held)

    def _add(self, held: Held) -> None:
        self.kept.append(held)
        self._own.setdefault(held.change[1].table, set()).update((held.before, held.after))


class Care:
    """Writes changes in spite of those that are refused.

    `attempt` writes changes at once: all of them, or it raises, having undone them. `reason` tells why a row was refused, if an
    error says that; `complain` makes of it the error that stops the edge, unless `on` says that the table has a quarantine.
    """

    def __init__(
        self,
        hold: Hold,
        attempt: Callable[[Sequence[Change]], None],
        reason: Callable[[Exception], str | None],
        complain: Callable[[Change, Exception], StreamerError],
        on: OnError,
    ) -> None:
        self.hold = hold
        self._attempt = attempt
        self._reason = reason
        self._complain = complain
        self._on = on

    def write(self, changes: Sequence[Change]) -> None:
        """Write the changes, but those that `hold` has then. Raises what `complain` makes, and what is no matter of a row."""
        passing = Hold(self.hold.rows, earlier=self.hold)
        rest = [change for change in changes if not passing.follows(change)]
        problem = self._tried(rest)
        if problem is None:
            self.hold.take(passing)
        elif cut := _middle(changes):
            self.write(changes[:cut])
            self.write(changes[cut:])
        else:
            self._refuse(changes[0], problem)

    def _tried(self, changes: Sequence[Change]) -> Exception | None:
        """Write the changes at once; return why they were refused, if they were."""
        try:
            if changes:
                self._attempt(changes)
        except Unfoldable as error:
            return error
        except Exception as error:
            if self._reason(error) is None:
                raise
            return error
        return None

    def _refuse(self, change: Change, error: Exception) -> None:
        if change[0] is Kind.TRUNCATE or not self._on(change[1].table):
            raise self._complain(change, error) from error
        self.hold.keep(change, self._reason(error))

    def write_whole(self, transactions: Sequence[Sequence[Change]], together: Callable[[Callable[[], None]], None]) -> None:
        """The same for whole transactions, which may be refused only at their end: then all of their changes are held.

        `together` does the work that it is given and all that a commit would look at, or raises, having undone it.
        """
        before, self.hold = self.hold, Hold(self.hold.rows, earlier=self.hold)
        changes = [change for transaction in transactions for change in transaction]
        problem: Exception | None = None
        try:
            together(lambda: self.write(changes))
            before.take(self.hold)
        except Exception as error:
            if self._reason(error) is None:
                raise
            problem = error
        finally:
            self.hold = before
        if problem is None:
            return
        if half := len(transactions) // 2:
            self.write_whole(transactions[:half], together)
            self.write_whole(transactions[half:], together)
            return
        for change in changes:
            self._refuse(change, problem)


def _middle(changes: Sequence[Change]) -> int:
    """Where to divide changes in two; 0 if they cannot be: foreign keys may join tables that are truncated together."""
    middle = len(changes) // 2
    places = sorted(range(1, len(changes)), key=lambda place: abs(place - middle)) if _joined(changes, middle) else [middle]
    return next((place for place in places if not _joined(changes, place)), 0)


def _joined(changes: Sequence[Change], place: int) -> bool:
    return 0 < place < len(changes) and changes[place - 1][0] is changes[place][0] is Kind.TRUNCATE


class Ledger(Protocol):
    """Where a target keeps what it has not got of an edge; all of it happens in the transaction that is open, if one is."""

    def count(self) -> int:
        """Return how many changes there are."""

    def known(self, rows: Collection[str]) -> set[str]:
        """Return those of the rows of which changes are held."""

    def empty(self, table: TableName) -> int:
        """Forget the changes of a table; return how many there were."""

    def keep(self, held: Sequence[Held], group: Group) -> None:
        """Add changes of a group, in order."""


class Quarantine:
    """The quarantine of an edge for the sink that writes it. While nothing is held it costs nothing; else every group asks the
    target for its own rows: commands take changes out meanwhile, and memory need not hold them all."""

    def __init__(self, edge: EdgeName, ledger: Ledger, on: OnError) -> None:
        self.on = on
        self._edge = edge
        self._ledger = ledger
        self._number = ledger.count()
        self._look_at = 0.0

    @property
    def holding(self) -> bool:
        """Whether changes may be held, so that a group must be looked through."""
        return self._number > 0

    def takes(self, group: Group) -> bool:
        """Return whether a group that is refused is to be written with care: something of it may be held back."""
        return self.holding or any(map(self.on, {relation.table for _, relation, _, _ in group.changes}))

    def held(self) -> int:
        """Return how many changes are held, as of a moment ago."""
        if self._number and time.monotonic() >= self._look_at:
            self._recount()
        return self._number

    def _recount(self) -> None:
        self._number = self._ledger.count()
        self._look_at = time.monotonic() + LOOK_SECONDS

    def undone(self) -> None:
        """The open transaction was rolled back: what is held must be asked again."""
        self._number, self._look_at = max(self._number, 1), 0.0

    def hold(self, changes: Sequence[Change], key_of: KeyOf) -> Hold:
        """Return what is held of the rows of a group that comes now, in its transaction."""
        rows = RowIds(self._edge, key_of)
        if not self.holding:
            return Hold(rows)
        touched = {row for change in changes if change[0] is not Kind.TRUNCATE for row in rows.of(change)}
        return Hold(rows, self._ledger.known(touched))

    def keep(self, hold: Hold, group: Group, written: Written) -> Written:
        """Store what is held of the group, in its transaction; return what was written, and this."""
        voided = sum(self._ledger.empty(table) for table in hold.emptied) if self.holding else 0
        if hold.kept:
            self._ledger.keep(hold.kept, group)
            self._number += len(hold.kept)
        if voided:
            self._recount()
        refused = next((held for held in hold.kept if held.error is not None), None)
        return replace(written, quarantined=len(hold.kept), voided=voided, refusal="" if refused is None else _told(refused))


def _told(held: Held) -> str:
    kind, relation, _, _ = held.change
    key = ", ".join(f"{column}={_shortened(value)}" for column, value in list(held.key.items())[:4])
    return f"{kind} of {relation} {key}: {held.error}"


def _shortened(value: str | None) -> str:
    text = "NULL" if value is None else value
    return text if len(text) <= 40 else f"{text[:39]}…"
