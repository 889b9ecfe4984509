"""What commands do with a jsonl node: look at its files and progress, and take the progress away. Events always stay.

There are no tables to make or to compare: any table's changes can be written. The trap: a daemon that was killed may have left half
a transaction behind; once progress is gone nobody would know, so it is cut off before.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing
from typing import Final

from streamer.admin.findings import Finding, error, ok, warning
from streamer.admin.writable import judge_unwritable
from streamer.errors import TargetError
from streamer.model import EdgeName, TableDefinition, TableName
from streamer.node_config import Node
from streamer.sinks.jsonl_output import FileOutput
from streamer.sinks.jsonl_progress import Place, ProgressFile, Record, failure, read

_AT_LEAST_ONCE: Final = (
    "writes events to standard output at least once: those that were not recorded before a crash come again",
    "for exactly once, write to a file: jsonl:///path",
)


class EventFiles:
    """Implements foreign.ForeignTarget for a jsonl node."""

    def __init__(self, node: str, settings: Node) -> None:
        self._node = node
        self._settings = settings
        self._progress = settings.progress_file(node)

    @property
    def place(self) -> str:
        """The file that the url names, or standard output."""
        if self._settings.standard_output:
            return f'standard output (progress in "{self._progress}")'
        return f'file "{self._settings.path}"'

    def identity(self) -> Hashable:
        """Return the file's path without links, or that of the progress file."""
        return (self._progress if self._settings.standard_output else self._settings.path).resolve()

    def check(self, definitions: Sequence[TableDefinition]) -> list[Finding]:
        """Say what can be expected of the place, and whether it can be written."""
        found = [*self._unwritable(), *self._shared()]
        if self._settings.standard_output:
            return [*found, warning(f'node "{self._node}"', *_AT_LEAST_ONCE)]
        return found or [ok(f'node "{self._node}"', f'appends events to {self.place}, progress in "{self._progress}"')]

    def _unwritable(self) -> Iterator[Finding]:
        files = [self._progress] if self._settings.standard_output else [self._settings.path, self._progress]
        yield from judge_unwritable(self._node, files)

    def _shared(self) -> Iterator[Finding]:
        record = self._record()
        if record is not None and record.edge.target != self._node:
            yield error(
                f'node "{self._node}"',
                f'its progress file "{self._progress}" belongs to edge {record.edge}',
                f"give node {self._node} a file of its own; or, if it was renamed: rm {self._progress}, and its events begin anew",
            )

    def _record(self) -> Record | None:
        return read(self._node, self._progress)

    def create(self, definitions: Sequence[TableDefinition]) -> Iterator[str]:
        """Make the file, if it is missing."""
        if self._settings.standard_output:
            return
        path = self._settings.path
        try:
            path.open("xb").close()
        except FileExistsError:
            return
        except OSError as problem:
            raise failure(self._node, path, problem) from problem
        yield self.place

    def statements(self, definitions: Sequence[TableDefinition]) -> list[str]:
        """Return nothing: there are no tables."""
        return []

    def existing(self, tables: Sequence[TableName]) -> frozenset[TableName]:
        """Return all: there is nothing to make for them."""
        return frozenset(tables)

    def filled(self, tables: Sequence[TableName]) -> frozenset[TableName]:
        """Return none: what was not copied has no rows here."""
        return frozenset()

    def has_ours(self) -> bool:
        """Return whether there is a progress file with something in it."""
        return self._record() is not None

    def position(self, edge: EdgeName) -> str | None:
        """Return the recorded position."""
        record = self._record()
        return str(record.position) if record is not None and record.edge == edge else None

    def copied(self, edge: EdgeName) -> frozenset[TableName]:
        """Return the tables whose rows have been read, or were not to be."""
        record = self._record()
        return frozenset(record.copied) if record is not None and record.edge == edge else frozenset()

    def quarantined(self, edge: EdgeName) -> int | None:
        """Return 0: every change is taken."""
        return 0

    def forget(self, syncs: Sequence[str], source: str | None = None) -> list[str]:
        """Remove the progress file, if it is theirs. Raises TargetError if a daemon holds it."""
        record = self._record()
        if record is None or record.edge.sync not in syncs or source not in (None, record.edge.source):
            return []
        if record.edge.target != self._node:
            raise TargetError(f'node "{self._node}": its progress file belongs to edge {record.edge}', f"rm {self._progress}")
        with closing(ProgressFile(record.edge, self._progress)) as progress:
            self._cut_off((progress.open() or record).place)
            try:
                self._progress.unlink()
            except OSError as problem:
                raise failure(self._node, self._progress, problem) from problem
        kept = "" if self._settings.standard_output else f", and kept the events in {self.place}"
        return [f'progress of edge {record.edge}, file "{self._progress}"{kept}']

    def _cut_off(self, place: Place | None) -> None:
        """Take away what was never recorded."""
        if place is None or self._settings.standard_output:
            return
        newest = self._settings.path.with_name(place.file)
        if newest.exists() and newest.stat().st_size > place.offset:
            with closing(FileOutput(self._node, self._settings.path)) as files:
                files.open(place)
