"""The jsonl sink: every change as a line of JSON, in files or on standard output; progress in a file beside them.

A transaction counts once the progress file says where it ends: first the events are flushed, then that is recorded. What stands
behind the recorded place is cut off when the sink is opened, so in files every event is there exactly once. From standard output
nothing can be taken back: what was not recorded comes again.

The trap: after a failed attempt to record, nobody knows which of two places the progress file holds. So nothing is cut off before
it has been read again.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from threading import RLock

from streamer.copytext import parse
from streamer.errors import ConnectError, StreamerError, TargetError
from streamer.model import LSN, EdgeName, Group, Kind, Origin, Sharing, SlotIdentity, TableName
from streamer.node_config import Node
from streamer.ports import CopyTable, Progress, RangeLoader, Start, Written
from streamer.post_data import Builder
from streamer.sinks.in_order import write_in_order
from streamer.sinks.jsonl_events import READ, Event, Lines, relation_of
from streamer.sinks.jsonl_output import FileOutput, Output, StandardOutput
from streamer.sinks.jsonl_progress import Place, ProgressFile, Record


class JsonlSink:
    """Implements ports.Sink for lines of JSON that go to `output`."""

    parallel_loads = False
    sharing = Sharing.NONE

    def __init__(self, edge: EdgeName, output: Output, progress: ProgressFile) -> None:
        self._edge = edge
        self._output = output
        self._progress = progress
        #: a copy that was broken off may still be writing when the edge closes the sink
        self._lock = RLock()
        self._is_open = False
        #: what the progress file says; None before `begin`, and while that is not known
        self._recorded: Record | None = None
        self._lines: Lines | None = None
        #: where the last whole transaction ends: in the source's WAL, and here
        self._position = LSN(0)
        self._place: Place | None = None

    @classmethod
    def of_node(cls, edge: EdgeName, node: Node) -> JsonlSink:
        """Return the sink of an edge whose target the config describes as `node`."""
        name = edge.target
        output = StandardOutput(name) if node.standard_output else FileOutput(name, node.path, node.rotate_bytes)
        return cls(edge, output, ProgressFile(edge, node.progress_file(name)))

    def open(self) -> Progress | None:
        """Lock the progress file, and cut off what it does not count."""
        record = self._progress.open()
        if record is not None and record.edge != self._edge:
            raise TargetError(
                f'node "{self._edge.target}": its progress file belongs to edge {record.edge}, not to {self._edge}',
                "give every sync a jsonl node and a file of its own; or take the other sync out of it: streamer teardown",
            )
        self._place = self._output.open(record.place if record else None)
        self._is_open = True
        if record is None:
            return None
        self._position, self._recorded = record.position, record
        if self._place != record.place:
            self._record()
        return _progress(record)

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Record the first position, and that the events begin behind what is there."""
        with self._lock:
            self._require_open()
            if self._recorded is not None:
                raise TargetError(f"edge {self._edge} has begun already", "let one daemon only write this edge")
            self._position = position
            self._output.sync()
            self._store(Record(self._edge, slot, position, {}, self._place))

    def follow(self, slot: SlotIdentity) -> None:
        """Record another timeline."""
        with self._lock:
            self._store(dataclasses.replace(self._known(), slot=slot))

    def has(self, table: TableName) -> bool:
        """Return True: events of any table can be written."""
        return True

    def is_empty(self, table: TableName) -> bool:
        """Return True: what was not copied yet is not here."""
        return True

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Write the rows as events, the last of which ends the copy; before them a truncate if they replace others."""
        relation = relation_of(table)
        origin = Origin(self._edge.source, start.position, start.time)
        lines = Lines(self._edge, f"{start.position} {table.table}", start.position, origin)
        count = 0
        try:
            with self._lock:
                self._require_open()
                self._output.check()
                self._output.begin()
            self._append(lines.add([(Kind.TRUNCATE, relation, None, None)] if start.replace else (), end=False))
            for block in blocks:
                rows: list[Event] = [(READ, relation, None, row) for row in parse(block)]
                count += len(rows)
                self._append(lines.add(rows, end=False))
            with self._lock:
                self._append(lines.add((), end=True))
                self._place = self._output.place
                self._record(copied={table.table: start.position})
        except BaseException:
            with self._lock, suppress(StreamerError):
                self._undo()
            raise
        return count

    def _append(self, data: bytes) -> None:
        with self._lock:
            self._require_open()
            self._output.write(data)

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy."""
        with self._lock:
            self._require_open()
            self._record(copied={table: position})

    @property
    def ranges(self) -> RangeLoader | None:
        """Return None: tables are copied whole."""
        return None

    @property
    def post_data(self) -> Builder | None:
        """Return None: a file has no indexes."""
        return None

    def leave(self, table: TableName) -> None:
        """Forget the table."""
        with self._lock:
            self._require_open()
            known = self._known()
            self._store(dataclasses.replace(known, copied={t: at for t, at in known.copied.items() if t != table}))

    def progress_by_source(self) -> Mapping[str, Progress]:
        """Return the edge's own progress: there is no other."""
        return {} if self._recorded is None else {self._edge.source: _progress(self._recorded)}

    def try_lock(self, name: str) -> bool:
        """Return True: there is no other edge."""
        return True

    def unlock(self, name: str) -> None:
        """Do nothing."""

    # -- streaming -----------------------------------------------------------------------------------------------------------------

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Append the groups' events, flush them once, and record the end of the last whole transaction."""
        with self._lock:
            self._require_open()
            self._output.check()
            written = write_in_order(groups, interrupted, self._write)
            recorded = self._known()
            if (self._position, self._place) != (recorded.position, recorded.place):
                self._record()
            return written

    def _write(self, group: Group) -> Written:
        if self._lines is None:
            if group.changes:
                self._output.begin()
            self._lines = Lines(self._edge, str(group.commit), group.commit, group.origin)
        self._output.write(self._lines.add(group.changes, end=group.complete))
        if group.complete:
            self._lines = None
            self._position, self._place = group.position, self._output.place
        done = Counter(kind for kind, _, _, _ in group.changes)
        return Written(done[Kind.INSERT], done[Kind.UPDATE], done[Kind.DELETE], done[Kind.TRUNCATE])

    def _record(self, copied: Mapping[TableName, LSN] | None = None) -> None:
        """Make the events durable, and then say so, with tables that are copied now."""
        known = self._known()
        self._output.sync()
        copied = {**known.copied, **(copied or {})}
        self._store(dataclasses.replace(known, position=self._position, place=self._place, copied=copied))

    def _store(self, record: Record) -> None:
        self._recorded = None  # until it is certain
        self._progress.store(record)
        self._recorded = record

    def _known(self) -> Record:
        if self._recorded is None:
            raise ConnectError(f"edge {self._edge}: it is not known what its progress file says")
        return self._recorded

    def _require_open(self) -> None:
        if not self._is_open:
            raise ConnectError(f'node "{self._edge.target}": its output is not open')

    def durable(self) -> LSN:
        """Return the recorded position."""
        return self._recorded.position if self._recorded else LSN(0)

    def quarantined(self) -> int:
        """Return 0: every row can be written as an event."""
        return 0

    def cancel(self) -> None:
        """Break off a write to standard output that nobody reads."""
        self._output.cancel()

    def close(self) -> None:
        """Cut off an open transaction, and give up the lock."""
        self._output.cancel()  # a copy that waits for a reader holds our lock
        with self._lock:
            with suppress(StreamerError):
                self._undo()
            self._is_open = False
            self._output.close()
            self._progress.close()

    def _undo(self) -> None:
        if self._is_open and self._recorded is not None and self._output.place != self._recorded.place:
            self._output.open(self._recorded.place)


def _progress(record: Record) -> Progress:
    return Progress(record.slot, record.position, dict(record.copied))
