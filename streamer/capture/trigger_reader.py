"""The reading end of the capture by triggers: batches as they are recorded, each as one transaction for every place in need of it.

Two connections: one records and confirms (batches.py), the other reads under the snapshot of a batch (nonblocking.py). All is a
generator that stops wherever it must wait; `read` drives it for as long as it may. Edges may stand at different positions: the
first batch of a session gives each of them the net effect since its own, from one snapshot, and then they all stand at its end.

The trap: a reader that goes to sleep says so first, and looks once more; whoever changes a row in between has not woken it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeAlias, TypeVar

import psycopg
from psycopg import errors

from streamer.capture import trigger_query as query
from streamer.capture.assemble import CHANGE_BYTES, PIECE_BYTES
from streamer.capture.batches import PURGE_ROWS, Batches, number_in_batch, number_of, position_of
from streamer.capture.nonblocking import Statements
from streamer.capture.trigger_changes import Pieces, deletes_of, row_bytes, rows_of
from streamer.capture.trigger_order import Batch
from streamer.capture.trigger_query import DeltaTable
from streamer.capture.trigger_tables import Touched, TriggerTables, by_table, touched_of
from streamer.capture.trigger_transactions import Share, TransactionReader
from streamer.errors import SlotError, start_over
from streamer.model import (
    LSN,
    NOTHING_SEEN,
    POSTGRES_EPOCH,
    Change,
    Idle,
    Kind,
    Origin,
    Piece,
    Relation,
    Seen,
    TableName,
    Transaction,
    all_seen,
)
from streamer.ports import Place
from streamer.session import cells, reported

T = TypeVar("T")

POLL_SECONDS: Final = (0.01, 0.5)
"""How long a reader sleeps that nobody wakes: soon after a batch, and at most. Who changed a row while we were awake and commits
now does not wake us."""
DEAF_POLL_SECONDS: Final = 0.05
"""And where nobody ever does: see the fragment wake in sql/postgres/delta.sql."""
REST_SECONDS: Final = (0.01, 0.1)
"""How long it rests between two batches, at least and at most: as long as the last one took, so that it takes the source half the
time at most."""
IDLE_SECONDS: Final = 60.0
"""How often positions move while only tables of others change; what they have written cannot be purged before."""
CONFIRM_SECONDS: Final = 1.0
"""How often the source is told what every target has."""
LOOK_SECONDS: Final = 5.0
"""How often it is looked whether all tables still have their triggers."""
READ_BYTES: Final = 1 << 20
"""What one read gives, about."""

Step: TypeAlias = Piece | Idle | float
"""Something for the edges, or how many seconds to wait for the server at most."""


class TriggerReader:
    """Implements ports.Reader for the sync `sync` on the node named `node`, from these places on; a `deaf` one is not woken."""

    obstacle = None

    def __init__(
        self,
        node: str,
        sync: str,
        statements: Statements,
        batches: Batches,
        tables: TriggerTables,
        places: Sequence[Place],
        transactions: TransactionReader,
        *,
        deaf: bool = False,
    ) -> None:
        self._node = node
        self._sync = sync
        self._statements = statements
        self._batches = batches
        self._tables = tables
        self._places = list(places)
        self._transactions = transactions
        self._deaf = deaf
        #: what the node is known to have applied of others, where the edges stand that are still ahead, and in the end
        self._known = deque((number_of(place.position), place.seen) for place in places)
        self._seen: Seen = NOTHING_SEEN
        self._snapshots: dict[int, str] = {}
        #: relations that have deltas and are none of ours
        self._others: set[int] = set()
        self._recording = False
        #: tables may be locked
        self._in_batch = False
        #: it has given something, or told that there is nothing
        self._answered = False
        self._confirmed = self._told = 0
        self._confirm_at = self._look_at = 0.0
        self._purging = False
        self._idle_at = time.monotonic() + IDLE_SECONDS
        self._steps = self._run()

    def read(self, timeout: float) -> list[Piece | Idle]:
        """Return what is there, waiting up to `timeout` seconds if nothing is."""
        deadline = time.monotonic() + timeout
        items: list[Piece | Idle] = []
        size = 0
        with reported(self._node):
            for step in self._steps:
                if isinstance(step, float):
                    left = deadline - time.monotonic()
                    if items or left <= 0:
                        break
                    self._statements.wait(min(step, left))
                    continue
                items.append(step)
                size += step.size if isinstance(step, Piece) else 0
                if size >= READ_BYTES:
                    break
        return items

    def confirm(self, position: LSN) -> None:
        """Note what every target has, purge what nobody needs any more, and look now and then whether everything is captured."""
        self._confirmed = max(self._confirmed, number_of(position))
        if self._recording:
            return  # the connection is in the middle of a transaction
        now = time.monotonic()
        with reported(self._node):
            if self._purging or (self._confirmed > self._told and now >= self._confirm_at):
                self._confirm()
                self._confirm_at = now + CONFIRM_SECONDS
            # the look waits behind a TRUNCATE, which waits for the batch, which would wait for us
            if now >= self._look_at and not self._in_batch:
                self._look_at = now + LOOK_SECONDS
                self._tables.refresh()

    def finish(self) -> None:
        """Confirm what has not been yet. Never raises psycopg.Error: what the source has not heard it will send again."""
        if self._confirmed > self._told and not self._recording:
            with suppress(psycopg.Error):
                self._batches.confirm(self._confirmed)

    def _confirm(self) -> None:
        if self._confirmed > self._told:
            self._batches.confirm(self._confirmed)
            self._told = self._confirmed
        self._purging = self._batches.purge() >= PURGE_ROWS

    # -- what there is to do -----------------------------------------------------------------------------------------------------

    def _run(self) -> Generator[Step, None, None]:
        """One batch after the other, for ever."""
        while True:
            yield from self._wait_for_changes()
            began = time.monotonic()
            self._in_batch = True
            held = yield from self._batch()
            yield from _waiting(self._statements.run("ROLLBACK"))
            self._in_batch = False
            if not held:
                self._tables.refresh()
            took = time.monotonic() - began
            yield from self._pause(min(max(took, REST_SECONDS[0]), REST_SECONDS[1]))

    def _wait_for_changes(self) -> Generator[Step, None, None]:
        """Return when there are deltas for us, or positions are to move."""
        poll, longest = POLL_SECONDS
        longest = DEAF_POLL_SECONDS if self._deaf else longest
        while not (yield from self._look("")):
            if (yield from self._look(query.GOING_TO_SLEEP)):
                return
            if not self._answered:  # whoever waits for a sign that all is well again need not wait for a change
                self._answered = True
                place = self._places[0].position
                yield Idle(place, urgent=False, seen=self._learn(number_of(place)))
            if time.monotonic() >= self._idle_at:
                self._idle_at = time.monotonic() + IDLE_SECONDS
                self._others.clear()  # what they have written is taken for new, so that positions move
            yield from self._sleep(poll)
            poll = min(2 * poll, longest)

    def _look(self, first: str) -> Generator[Step, None, bool]:
        """Return whether there are deltas for us; if not, edges that stand before the last recorded batch hear that it has none."""
        lowest = self._places[0].position
        text = first + query.pending(self._batches.stream, self._snapshot(lowest), self._others)
        results = yield from _waiting(self._statements.run(text))
        ((number, pending),) = cells(results[-1])
        if number is None:
            raise self._lost(lowest)
        if pending == "t" or (self._transactions.always and int(number) > number_of(lowest)):
            return True
        if int(number) > number_of(lowest):
            self._stand_at(int(number))
            yield Idle(position_of(int(number)), urgent=False, seen=self._learn(int(number)))
        return False

    def _sleep(self, seconds: float) -> Iterator[Step]:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            yield left
            if self._statements.take_in():
                return

    def _pause(self, seconds: float) -> Iterator[Step]:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            yield left

    # -- a batch -----------------------------------------------------------------------------------------------------------------

    def _batch(self) -> Generator[Step, None, bool]:
        """Record a batch and give what is in it, in a transaction that stays open. Return whether tables are as we know them: if
        one has been altered under our hands, nothing is given, and the next batch has it all."""
        if (yield from self._goes_by_transaction()):
            return (yield from self._by_transaction())
        plans = self._plans()
        number, touched = yield from self._record({since for plan in plans.values() for since in plan})
        if not (yield from self._hold(touched)):
            return False
        for position, plan in plans.items():
            yield from self._transaction(position, position_of(number), plan, touched)
        self._stand_at(number)
        return True

    def _goes_by_transaction(self) -> Generator[Step, None, bool]:
        """Whether the transactions of the next batch come one by one: always, or because some of them were not made here."""
        if self._transactions.always or any(number_in_batch(place.position) for place in self._places):
            return True
        (result,) = yield from _waiting(self._statements.run(query.tagged(self._snapshot(self._places[0].position))))
        return list(cells(result)) == [["t"]]

    def _by_transaction(self) -> Generator[Step, None, bool]:
        """As `_batch`, of what follows the lowest place: the batch that was recorded next, or one that is recorded now."""
        place = self._places[0]
        number = number_of(place.position)
        since = position_of(number)
        following = self._batches.after(number)
        if late := following is not None:
            _, result = (yield from _waiting(self._statements.run(f"{query.BEGIN}; {query.relations(self._snapshot(since))}")))[-2:]
            touched = {since: touched_of(result)}
        else:
            recorded, touched = yield from self._record({since})
            following = self._batches.after(number)
            late = following != (recorded, self._snapshots[recorded])
        skip = number_in_batch(place.position)
        if skip and following is not None and following[0] != number + 1:
            raise self._lost(place.position)
        if following is None:
            return True
        if not (yield from self._hold(touched)):
            return False
        end, upper = following
        everything = {table.table for oid in touched[since] if (table := self._tables.of(oid)) is not None}
        shares = [Share(table, of.deltas, of.truncated) for table, of in by_table(touched[since], self._tables, everything)]
        batch = Batch(number, end, self._snapshot(since), upper, self._transactions.commit_time)
        steps = self._transactions.read(batch, shares, self._learn(number), skip, late=late)
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                self._seen = done.value
                break
            yield math.inf if step is None else step
        self._stand_at(end)
        return True

    def _learn(self, number: int) -> Seen:
        """What the node had applied of others by the end of a batch."""
        while self._known and self._known[0][0] <= number:
            self._seen = all_seen(self._seen, self._known.popleft()[1])
        return self._seen

    def _plans(self) -> dict[LSN, dict[LSN, set[TableName]]]:
        """For each position at which edges stand, lowest first, since when they want changes of which tables."""
        plans: dict[LSN, dict[LSN, set[TableName]]] = {}
        for place in self._places:
            plan = plans.setdefault(place.position, defaultdict(set))
            for table, starts in place.starts.items():
                for start in starts:
                    plan[max(start, place.position)].add(table)
        return plans

    def _record(self, sinces: set[LSN]) -> Generator[Step, None, tuple[int, dict[LSN, dict[int, Touched]]]]:
        """Record a batch; return its number and what has deltas since each position, as its snapshot sees it, which stays open."""
        sinces = sinces | {self._places[0].position}
        ordered = sorted(sinces)
        text = "; ".join([query.BEGIN, *(query.relations(self._snapshot(since)) for since in ordered)])
        number = self._batches.begin()
        self._recording = True
        try:
            _, snapshot, *results = yield from _waiting(self._statements.run(text))
            touched = {since: touched_of(result) for since, result in zip(ordered, results, strict=True)}
            ((seen,),) = cells(snapshot)
            self._snapshots[number] = str(seen)
            first = min((t.first for found in touched.values() for t in found.values()), default=0)
            self._batches.record(number, str(seen), first)
        finally:
            self._recording = False
        return number, touched

    def _hold(self, touched: Mapping[LSN, Mapping[int, Touched]]) -> Generator[Step, None, bool]:
        """Lock the tables that have deltas; return whether they are as the snapshot and we know them."""
        relations = {oid: of for found in touched.values() for oid, of in found.items()}
        unknown = [oid for oid in relations if oid not in self._others and not self._tables.matters(oid)]
        if unknown:
            self._tables.refresh()
            self._others.update(oid for oid in unknown if not self._tables.matters(oid))
        ours = {oid: of.file for oid, of in relations.items() if self._tables.of(oid) is not None}
        tables = list({table.table: table for oid in ours if (table := self._tables.of(oid)) is not None}.values())
        if not tables:
            return True
        try:
            yield from _waiting(self._statements.run(query.lock(tables)))
        except (errors.UndefinedTable, errors.InvalidSchemaName):
            return False  # dropped or renamed
        return self._tables.are(ours | {table.oids[0]: 0 for table in tables if table.partitioned})

    def _transaction(
        self, position: LSN, end: LSN, plan: Mapping[LSN, set[TableName]], touched: Mapping[LSN, Mapping[int, Touched]]
    ) -> Generator[Step, None, None]:
        """Give the net effect from `position` to `end` as one transaction; tables that go on later, from there."""
        times = [of.last_time for since in plan for of in touched[since].values()]
        seen = self._learn(number_of(position))
        origin = Origin(self._node, end, max(times, default=POSTGRES_EPOCH), seen)
        pieces = Pieces(Transaction(position, origin, self._node), end, seen)
        work = [(since, *of) for since, wanted in plan.items() for of in by_table(touched[since], self._tables, wanted)]
        for since, table, of in work:
            if of.truncated is not None:
                yield from pieces.add(since, [(Kind.TRUNCATE, table.relation, None, None)], CHANGE_BYTES)
        # first all that goes: another row may have taken its place in a unique index
        for since, table, of in work:
            if of.deletes:
                text = query.deletes(table, self._snapshot(since), of.truncated, of.deltas)
                yield from self._copy(pieces, since, table, text, deletes_of)
        for since, table, of in work:
            text = query.rows(table, self._snapshot(since), of.truncated, of.deltas)
            yield from self._copy(pieces, since, table, text, rows_of)
        yield pieces.last()

    def _copy(
        self, pieces: Pieces, since: LSN, table: DeltaTable, text: str, read: Callable[[Relation, bytes], list[Change]]
    ) -> Iterator[Step]:
        """Give the changes that a COPY tells."""
        row = row_bytes(table.relation)
        for block in self._statements.copy(text, PIECE_BYTES, row):
            if block is None:
                yield math.inf
                continue
            changes = read(table.relation, block)
            yield from pieces.add(since, changes, len(block) + row * len(changes))

    # -- where the edges stand ---------------------------------------------------------------------------------------------------

    def _stand_at(self, number: int) -> None:
        """Note that every edge has been given all up to this batch, at least."""
        end = position_of(number)
        self._places = [replace(place, position=max(place.position, end)) for place in self._places]
        self._idle_at = time.monotonic() + IDLE_SECONDS
        known = self._snapshots.get(number)
        self._snapshots = {} if known is None else {number: known}

    def _snapshot(self, position: LSN) -> str:
        """The snapshot of the batch that ends at a position. Raises SlotError if it has been confirmed long ago."""
        number = number_of(position)
        if number not in self._snapshots:
            found = self._batches.snapshot(number)
            if found is None:
                raise self._lost(position)
            self._snapshots[number] = found
        return self._snapshots[number]

    def _lost(self, position: LSN) -> SlotError:
        stream = f'stream "{self._batches.stream}" on "{self._node}"'
        return SlotError(f"batch {number_of(position)} of {stream} is gone, and what came after it with it", start_over(self._sync))


def _waiting(statements: Generator[None, None, T]) -> Generator[Step, None, T]:
    """Run statements to their end, waiting for the server wherever they do."""
    while True:
        try:
            next(statements)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield math.inf
