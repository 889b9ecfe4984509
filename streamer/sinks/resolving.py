"""The rules, change by change: what a transaction from another node does to the rows that are here. Pure.

A key that changes is a delete of the old key and an insert of the new one, each judged by what is at its own key; where nothing is
in the way they become one update in place. In a table with merge columns a delete beats everything that had not seen it: sums
could not agree on a row that one node deleted and another one kept.

The trap: which half of a transaction's knowledge counts. What its origin had *seen* is no conflict; but a change may also be here
before something that its origin had seen (three nodes, one slow road). The commit times still order these, as nothing is applied
before its commit time has passed; only unique values and missing rows are worth waiting for (`Premature`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from streamer.errors import ApplyError
from streamer.model import UNCHANGED, Change, Kind, Origin, Relation, Row, Version
from streamer.sinks.policy import Conflict, ConflictKind, Handler, Key, Rules, decide
from streamer.sinks.touched import Stored, Touched, filled


@dataclass(frozen=True, slots=True)
class Effect:
    """A change that does to the stored rows what was resolved.

    An update has the stored row as `old` and the row as it is to be as `new`. A delete of a key that is not there leaves its
    tombstone. `merge`: the row keeps the version that it has (an inserted one: the oldest of all). `parks`: the row goes without a
    tombstone, as if it had never been here; its own last change, which is still to come, brings it back or deletes it.
    """

    change: Change
    merge: bool = False
    parks: bool = False


@dataclass(frozen=True, slots=True)
class Removal:
    """A key that loses its row because another one holds its unique value; `stored` if that row is in the database."""

    relation: Relation
    key: Key
    stored: bool


@dataclass(slots=True)
class Resolution:
    """What is left to do. With `removals`, only these and their conflicts count (see the module)."""

    effects: list[Effect] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    #: rows that must be out of the way before all is resolved again (see Effect.parks)
    parked: list[tuple[Relation, Key]] = field(default_factory=list)


class Premature(ApplyError):
    """The change rests on one of another node, which its origin had seen and which has not come here yet."""


Winner: TypeAlias = Literal["incoming", "current"] | Row

_DELETE_WINS: Final = "a delete beats what had not seen it"


class Resolving:
    """The transaction that is being resolved: what came of its changes so far."""

    def __init__(self, handler_of: Callable[[str], Handler], origin: Origin, patient: bool) -> None:
        self.handler_of = handler_of
        self.origin = origin
        self.version = Version(origin.commit_time, origin.node)
        self.patient = patient
        self.result = Resolution()
        self.collisions: list[Conflict] = []

    def end(self) -> Resolution:
        """Return what came of all changes."""
        if self.result.removals:
            return Resolution([], self.collisions, self.result.removals)
        return self.result

    def insert(self, at: Touched, key: Key, new: Row, change: Kind) -> None:
        """A row comes to be at a key: an insert, or the second half of an update that changes the key."""
        if key in at.removed:
            return
        stored, merges = at.at(key), at.plan.merges
        if merges and self.patient:
            # a delete that it rests on would take it along
            raise self.premature(at, key, "all that it rests on")
        if stored.row is None:
            if not self._buried(at, key, stored, new, change):
                self._place(at, key, stored, new, change)
            return
        if merges and self._of_deleted(at, key, change, stored, new):
            return
        disputed = self._disputed(at, stored, None) or self._is_new_to(at, stored)
        row = new
        if merges and (disputed or stored.version is None or stored.version.time is None):
            row = at.plan.merged(new, stored.row, None, new)
        if disputed:
            kind = ConflictKind.INSERT_EXISTS if change is Kind.INSERT else ConflictKind.UPDATE_EXISTS
            if at.holders(new, key)[0]:
                kind = ConflictKind.MULTIPLE_UNIQUE_CONFLICTS
            winner = self._decide(at, kind, key, change, stored, new, at.plan.rules)
            if winner == "current":
                self._merge_only(at, key, stored, at.plan.merged(stored.row, stored.row, None, new))
                return
            if isinstance(winner, tuple):
                row = at.plan.merged(winner, stored.row, None, new)
        self._place(at, key, stored, row, change, taken=disputed)

    def update(self, at: Touched, old: Row | None, new: Row) -> None:
        """A row is updated where it is, or moves to another key."""
        plan = at.plan
        if old is not None:
            new = filled(new, old)
            if (before := at.key_of_old(old)) != plan.key_of(new):
                self._move(at, before, old, new)
                return
        key = plan.key_of(new)
        if key in at.removed:
            return
        stored = at.at(key)
        if stored.row is None:
            self._update_missing(at, key, stored, old, new)
            return
        row = filled(new, stored.row)
        if plan.merges:
            old = old if old is not None else (UNCHANGED,) * len(new)
            if self._of_deleted(at, key, Kind.UPDATE, stored, new):
                return
            if plan.mere(old, new):
                self._merge_only(at, key, stored, plan.merged(stored.row, stored.row, old, new))
                return
            row = plan.merged(row, stored.row, old, new)
        if self._disputed(at, stored, old):
            winner = self._decide(at, ConflictKind.UPDATE_ORIGIN_DIFFERS, key, Kind.UPDATE, stored, new, plan.rules)
            if winner == "current":
                self._merge_only(at, key, stored, plan.merged(stored.row, stored.row, old, new))
                return
            if isinstance(winner, tuple):
                row = plan.merged(filled(winner, stored.row), stored.row, old, new)
        self._place(at, key, stored, row, Kind.UPDATE)

    def delete(self, at: Touched, key: Key, old: Row) -> None:
        """A row is deleted."""
        if key in at.removed:
            return
        stored = at.at(key)
        if stored.row is None:
            winner = self._rowless(at, ConflictKind.DELETE_MISSING, key, Kind.DELETE, stored, None, _by_word(at.plan.rules))
        elif self._disputed(at, stored, old):
            winner = self._leaves(at, ConflictKind.DELETE_ORIGIN_DIFFERS, key, Kind.DELETE, stored, None)
            if isinstance(winner, tuple):
                self._place(at, key, stored, winner, Kind.UPDATE)
                return
        else:
            winner = "incoming"
        if winner == "incoming":
            self._bury(at, key, old)

    def _move(self, at: Touched, before: Key, old: Row, new: Row) -> None:
        """An update that changes the key: the row leaves one key and comes to be at another, each judged for itself."""
        stored, mark = at.at(before), len(self.result.effects)
        if stored.row is not None:
            new = filled(new, stored.row)
        key = at.plan.key_of(new)
        winner: Winner = "current"
        if before not in at.removed:
            if stored.row is None:
                kind = self._kind_of_missing(at, before, stored)
                winner = self._rowless(at, kind, before, Kind.DELETE, stored, new, _by_word(at.plan.rules))
            elif self._disputed(at, stored, old):
                answer = self._leaves(at, ConflictKind.UPDATE_ORIGIN_DIFFERS, before, Kind.UPDATE, stored, new)
                winner = answer if isinstance(answer, str) else "incoming"
            else:
                winner = "incoming"
        if winner == "incoming":
            self._bury(at, before, old)
        if UNCHANGED in new:
            self._lose(at, ConflictKind.UPDATE_MISSING, key, at.at(key), new)
            return
        self.insert(at, key, new, Kind.UPDATE)
        made = [effect.change[0] for effect in self.result.effects[mark:]]
        if stored.row is not None and made == [Kind.DELETE, Kind.INSERT]:
            self.result.effects[mark:] = [Effect((Kind.UPDATE, at.table.relation, stored.row, new))]

    # -- a row that is not there -------------------------------------------------------------------------------------------------

    def _update_missing(self, at: Touched, key: Key, stored: Stored, old: Row | None, new: Row) -> None:
        plan, kind = at.plan, self._kind_of_missing(at, key, stored)
        if UNCHANGED in new:
            self._lose(at, kind, key, stored, new)
            return
        winner = self._rowless(at, kind, key, Kind.UPDATE, stored, new, plan.rules)
        if winner == "current":
            return
        mere, row = False, winner if isinstance(winner, tuple) else new
        if plan.merges:
            # whoever made the row adds his part when his insert comes
            mere = old is not None and plan.mere(old, new)
            row = plan.merged(row, None, old, new)
        self._place(at, key, stored, row, Kind.UPDATE, mere)

    def _kind_of_missing(self, at: Touched, key: Key, stored: Stored) -> ConflictKind:
        """Return what an update met that found no row. Raises Premature if its row is still to come, and may be waited for."""
        if self.patient and (stored.version is None or self.origin.knew(stored.version)):
            raise self.premature(at, key, "the row")
        return ConflictKind.UPDATE_MISSING if stored.version is None else ConflictKind.UPDATE_DELETED

    def _buried(self, at: Touched, key: Key, stored: Stored, new: Row, change: Kind) -> bool:
        """Whether a new row stays out because of its key's tombstone."""
        if stored.version is None or self.origin.knew(stored.version):
            return False
        rules = at.plan.rules
        if rules.policy == "latest" and not at.plan.merges and stored.version.precedes(self.version):
            return False  # a key that is used again after its deletion: nothing is lost
        return self._rowless(at, ConflictKind.UPDATE_DELETED, key, change, stored, new, _by_word(rules)) == "current"

    def _of_deleted(self, at: Touched, key: Key, change: Kind, stored: Stored, new: Row) -> bool:
        """Whether a change in a table with merge columns is of a row that was deleted before the one that is here was inserted."""
        if stored.deleted is None or self.origin.knew(stored.deleted):
            return False
        self._note(self._conflict(at, ConflictKind.UPDATE_DELETED, key, change, stored, new), "current", _DELETE_WINS)
        return True

    def _rowless(
        self, at: Touched, kind: ConflictKind, key: Key, change: Kind, stored: Stored, new: Row | None, rules: Rules
    ) -> Winner:
        """Decide between a change and a tombstone, or nothing at all."""
        if stored.version is None or self.origin.knew(stored.version):
            if at.table.relation.net:
                return "incoming"  # a row may be missing because it was parked, or was inserted and deleted between two batches
            if rules.policy == "error":
                return self._decide(at, kind, key, change, stored, new, rules)
            self._note(self._conflict(at, kind, key, change, stored, new), "incoming")
            return "incoming"
        if at.plan.merges and change is not Kind.DELETE:
            self._note(self._conflict(at, kind, key, change, stored, new), "current", _DELETE_WINS)
            return "current"
        return self._decide(at, kind, key, change, stored, new, rules)

    def _lose(self, at: Touched, kind: ConflictKind, key: Key, stored: Stored, new: Row) -> None:
        """Note that a row cannot be made for want of values that its update left unchanged."""
        missing = [name for name, value in zip(at.table.relation.names, new, strict=True) if value is UNCHANGED]
        error = f"the change does not carry {', '.join(missing)}: the replica identity must be FULL"
        self._note(self._conflict(at, kind, key, Kind.UPDATE, stored, new), "current", error=error)

    # -- deciding ----------------------------------------------------------------------------------------------------------------

    def _disputed(self, at: Touched, stored: Stored, old: Row | None) -> bool:
        """Whether the stored row was written without the change's origin knowing of it."""
        version = stored.version
        if version is None or version.node == self.version.node:
            return False
        if version.time is None:
            return at.plan.full and old is not None and stored.row is not None and at.plan.differ(old, stored.row)
        return not self.origin.knew(version)

    def _is_new_to(self, at: Touched, stored: Stored) -> bool:
        """Whether a row that an insert meets cannot have been there for the origin, whatever it has seen: that is told of all
        tables at once, and a copy may have brought another one's. A net change may leave out the delete before it."""
        version = stored.version
        if version is None or version.time is None or at.table.relation.net:
            return False
        return version.node != self.version.node

    def _leaves(self, at: Touched, kind: ConflictKind, key: Key, change: Kind, stored: Stored, new: Row | None) -> Winner:
        """Decide whether a row that was written meanwhile goes from its key."""
        if not at.plan.merges or at.plan.rules.policy != "latest":
            return self._decide(at, kind, key, change, stored, new, at.plan.rules)
        again = stored.deleted is not None and self.version.precedes(stored.deleted)
        winner: Literal["incoming", "current"] = "current" if again else "incoming"
        self._note(self._conflict(at, kind, key, change, stored, new), winner, _DELETE_WINS)
        return winner

    def _decide(
        self, at: Touched, kind: ConflictKind, key: Key, change: Kind, stored: Stored, new: Row | None, rules: Rules
    ) -> Winner:
        conflict = self._conflict(at, kind, key, change, stored, new)
        winner, decided = decide(rules, conflict, self.handler_of, at.plan.key_of)
        self.result.conflicts.append(decided)
        return winner

    def _conflict(self, at: Touched, kind: ConflictKind, key: Key, change: Kind, stored: Stored, new: Row | None) -> Conflict:
        told = (stored.row, new, stored.version, self.version)
        return Conflict(kind, at.table.relation, key, change, *told, None, at.plan.rules.name)

    def _note(
        self, conflict: Conflict, winner: Literal["incoming", "current"], rule: str | None = None, error: str | None = None
    ) -> None:
        self.result.conflicts.append(replace(conflict, winner=winner, rule=rule or conflict.rule, error=error))

    def premature(self, at: Touched, key: Key, awaited: str) -> Premature:
        return Premature(
            f'{at.table.relation}: a change of key ({", ".join(key)}) from "{self.version.node}" is here before {awaited}, '
            "which is still to come from another node",
        )

    # -- what comes of it --------------------------------------------------------------------------------------------------------

    def _place(
        self, at: Touched, key: Key, stored: Stored, row: Row, change: Kind, mere: bool = False, taken: bool = False
    ) -> None:
        """Put the incoming row at the key (which was `taken`), unless one of its unique values stays with another row."""
        if at.plan.unique_of and not self._free(at, key, row, change, taken):
            return
        relation = at.table.relation
        if stored.row is None:
            effect: Change = (Kind.INSERT, relation, None, row)
            deleted = stored.version
        else:
            effect = (Kind.UPDATE, relation, stored.row, row)
            deleted = stored.deleted
        self.result.effects.append(Effect(effect, mere))
        at.put(key, Stored(row, None if mere else self.version, deleted))

    def _merge_only(self, at: Touched, key: Key, stored: Stored, row: Row) -> None:
        """Change the merge columns of a row that stays what it is."""
        if row != stored.row:
            self.result.effects.append(Effect((Kind.UPDATE, at.table.relation, stored.row, row), merge=True))
            at.put(key, Stored(row, stored.version, stored.deleted))

    def _bury(self, at: Touched, key: Key, old: Row) -> None:
        self.result.effects.append(Effect((Kind.DELETE, at.table.relation, old, None)))
        at.put(key, Stored(None, self.version))

    def _free(self, at: Touched, key: Key, row: Row, change: Kind, taken: bool) -> bool:
        """Make the row's unique values free by removing their holders; or else remove the row's own key, and return False."""
        holders, values = at.holders(row, key)
        if not holders:
            return True
        one = ConflictKind.INSERT_EXISTS if change is Kind.INSERT else ConflictKind.UPDATE_EXISTS
        kind = one if values + taken == 1 else ConflictKind.MULTIPLE_UNIQUE_CONFLICTS
        winners = {holder: self._holder_or_row(at, kind, key, change, at.at(holder), row) for holder in holders}
        losers = [key] if "current" in winners.values() else holders
        for loser in losers:
            if winners.get(loser) == "moves":
                self._park(at, loser)
                continue
            at.removed.add(loser)
            if loser == key and key in at.earlier:
                continue  # every node has been told
            self.result.removals.append(Removal(at.table.relation, loser, at.existed.get(loser, at.at(loser).row is not None)))
            at.put(loser, Stored(None, None))
        return key not in losers

    def _park(self, at: Touched, key: Key) -> None:
        """Take a row out of the way whose unique value its origin has given to another one, in a change that is still to come."""
        self.result.effects.append(Effect((Kind.DELETE, at.table.relation, at.at(key).row, None), parks=True))
        at.put(key, Stored(None, None))

    def _holder_or_row(self, at: Touched, kind: ConflictKind, key: Key, change: Kind, holder: Stored, row: Row) -> str:
        conflict = self._conflict(at, kind, key, change, holder, row)
        if self._disputed(at, holder, None):
            winner, decided = decide(at.plan.rules, conflict, self.handler_of, None)
            self.collisions.append(decided)
            return "current" if winner == "current" else "incoming"
        if self.patient:
            raise self.premature(at, key, "the change that frees its unique value")
        if at.table.relation.net:
            return "moves"
        self.collisions.append(replace(conflict, winner="incoming"))
        return "incoming"


def _by_word(rules: Rules) -> Rules:
    """The rules where nobody needs to be asked: a key without a row can only be deleted earlier or later."""
    words = ("latest", "keep")
    return rules if isinstance(rules.policy, tuple) or rules.policy in words else replace(rules, policy="latest")
