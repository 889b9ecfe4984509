"""A sink around any sink, for targets whose tables have another shape than the source's: name, columns, rows.

Names, columns and rows are translated on the way in, names back on the way out: neither the sink inside nor the edge outside knows.
What is written at once is judged at once: the values that conditions may use are gathered over all changes, each once, and asked in
one round trip before the first change is made.

The trap: a table that is called otherwise on the target must not be found there under its own name; that would be another table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from streamer.copytext import format_rows, parse
from streamer.model import LSN, Change, Group, Relation, Sharing, SlotIdentity, TableName
from streamer.ports import CopyTable, Progress, Question, RangeLoader, RowFilter, Sink, Start, Written
from streamer.post_data import Builder
from streamer.shape_config import Shape
from streamer.shaping import Function, RowCut, ShapedRelation, Values, copied_columns, loaded_table, travelling
from streamer.sinks import functions

Keys = Mapping[TableName, Sequence[str]]
"""The columns that tell rows apart, by table."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a shaped sink needs to know: the shapes by the source's tables, their functions, and what the source says."""

    of: Mapping[TableName, Shape]
    functions: Mapping[str, Function]
    #: looks at the source, and returns the keys of the tables. Raises SchemaError, SourceError, ConnectError
    examine: Callable[[], Keys]
    row_filter: RowFilter

    def function(self, shape: Shape) -> Function | None:
        """The function that makes rows of this shape, if one does."""
        return self.functions[shape.transform] if shape.transform else None

    def read(self, table: CopyTable) -> CopyTable:
        """Return what a copy reads of the source's table. Raises SchemaError."""
        shape = self.of.get(table.table)
        return table if shape is None else copied_columns(table, shape)


def load_functions(shapes: Iterable[Shape]) -> dict[str, Function]:
    """Return the functions that the shapes name. Raises ConfigError if one is missing."""
    wanted = {(one.table, one.transform) for one in shapes if one.transform}
    return {name: functions.find(name, f'table "{table}": transform "{name}"', "a row as a dict") for table, name in wanted}


class ShapedSink:
    """Implements ports.Sink over another one."""

    def __init__(self, sink: Sink, shapes: Shapes) -> None:
        self._sink = sink
        self._shapes = shapes
        self._keys: Keys = {}
        self._relations: dict[Relation, ShapedRelation | None] = {}
        self._back = {shape.target: shape.table for shape in shapes.of.values()}

    # -- names -------------------------------------------------------------------------------------------------------------------

    def _name(self, table: TableName) -> TableName:
        shape = self._shapes.of.get(table)
        return table if shape is None else shape.target

    def _named_back(self, progress: Progress) -> Progress:
        """The progress with the source's names; what the target has under the name of a table that is renamed is another table."""
        copied = {self._back.get(table, table): position for table, position in progress.copied.items() if self._is_ours(table)}
        return replace(progress, copied=copied)

    def _is_ours(self, table: TableName) -> bool:
        return table in self._back or table not in self._shapes.of

    # -- before streaming --------------------------------------------------------------------------------------------------------

    def open(self) -> Progress | None:
        """Look whether the source can give what the shapes need, then open the sink."""
        self._keys = self._shapes.examine()
        progress = self._sink.open()
        return None if progress is None else self._named_back(progress)

    def begin(self, slot: SlotIdentity, position: LSN) -> None:
        """Record that the edge follows the slot."""
        self._sink.begin(slot, position)

    def follow(self, slot: SlotIdentity) -> None:
        """Record that the edge follows the slot on another timeline."""
        self._sink.follow(slot)

    def has(self, table: TableName) -> bool:
        """Return whether the target has the table, by the name that it has there."""
        return self._sink.has(self._name(table))

    def is_empty(self, table: TableName) -> bool:
        """Return whether the target's table has no rows."""
        return self._sink.is_empty(self._name(table))

    def keep(self, table: TableName, position: LSN) -> None:
        """Record that the table needs no copy."""
        self._sink.keep(self._name(table), position)

    def leave(self, table: TableName) -> None:
        """Forget the table."""
        self._sink.leave(self._name(table))

    def load(self, table: CopyTable, start: Start, blocks: Iterable[bytes]) -> int:
        """Write the rows, which are those that fulfil the condition, with the columns that `copied_columns` has chosen."""
        shape = self._shapes.of.get(table.table)
        if shape is None:
            return self._sink.load(table, start, blocks)
        function = self._shapes.function(shape)
        if function is not None:
            key = self._keys.get(table.table, ())
            cut = RowCut(shape, table.columns, travelling(shape, table.columns, key), key, function)
            blocks = _transformed(cut, blocks)
        return self._sink.load(loaded_table(table, shape), start, blocks)

    @property
    def ranges(self) -> RangeLoader | None:
        """What records tables that are copied in ranges: those that keep their shape."""
        loader = self._sink.ranges
        return None if loader is None else UnshapedRanges(loader, self._shapes.of)

    @property
    def post_data(self) -> Builder | None:
        """What makes indexes and constraints: it tells of tables by what they are called on the source."""
        return self._sink.post_data

    def progress_by_source(self) -> Mapping[str, Progress]:
        """Return what the target holds of all edges of the sync that end here."""
        return {source: self._named_back(progress) for source, progress in self._sink.progress_by_source().items()}

    def try_lock(self, name: str) -> bool:
        """Take the lock of this name."""
        return self._sink.try_lock(name)

    def unlock(self, name: str) -> None:
        """Give it back."""
        self._sink.unlock(name)

    @property
    def parallel_loads(self) -> bool:
        """Whether several loads may run at once."""
        return self._sink.parallel_loads

    @property
    def sharing(self) -> Sharing:
        """Which transactions may share a group."""
        return self._sink.sharing

    # -- streaming ---------------------------------------------------------------------------------------------------------------

    def write(self, groups: Sequence[Group], interrupted: Callable[[], bool]) -> Sequence[Written]:
        """Apply what the groups' changes become."""
        answers = self._ask(groups)
        return self._sink.write([self._shaped_group(group, answers) for group in groups], interrupted)

    def _shaped_group(self, group: Group, answers: Mapping[Relation, dict[Values, bool]]) -> Group:
        changes: list[Change] = []
        ends, done = [], 0
        for end in group.ends:
            changes += self._shaped(group.changes[done:end], answers)
            ends.append(len(changes))
            done = end
        return replace(group, changes=[*changes, *self._shaped(group.changes[done:], answers)], ends=ends)

    def _shaped(self, changes: Iterable[Change], answers: Mapping[Relation, dict[Values, bool]]) -> Iterator[Change]:
        for change in changes:
            relation = self._relation(change[1])
            if relation is None:
                yield change
            elif (made := relation.shaped(change, answers.get(change[1], {}).__getitem__)) is not None:
                yield made

    def _relation(self, relation: Relation) -> ShapedRelation | None:
        if relation not in self._relations:
            shape = self._shapes.of.get(relation.table)
            self._relations[relation] = (
                None
                if shape is None
                else ShapedRelation(relation, shape, self._shapes.function(shape), self._keys.get(relation.table, ()))
            )
        return self._relations[relation]

    def _ask(self, groups: Sequence[Group]) -> dict[Relation, dict[Values, bool]]:
        """Have the conditions judge all rows of the groups, those with the same values once."""
        wanted: dict[Relation, dict[Values, bool]] = {}
        for group in groups:
            for change in group.changes:
                relation = self._relation(change[1])
                if relation is not None and relation.shape.where:
                    asked = wanted.setdefault(change[1], {})
                    asked.update((values, False) for values in relation.asked(change) if values is not None)
        questions = [self._question(relation, asked) for relation, asked in wanted.items() if asked]
        if questions:
            answers = iter(self._shapes.row_filter.answer(questions))
            return {relation: dict(zip(asked, next(answers), strict=True)) for relation, asked in wanted.items() if asked}
        return wanted

    def _question(self, relation: Relation, rows: Iterable[Values]) -> Question:
        shaped = self._relations[relation]
        assert shaped is not None
        return Question(relation.table, shaped.shape.where, shaped.columns, list(rows))

    def durable(self) -> LSN:
        """Return the position up to which everything written survives a crash of the target."""
        return self._sink.durable()

    def quarantined(self) -> int:
        """Return how many changes the target holds in quarantine."""
        return self._sink.quarantined()

    def cancel(self) -> None:
        """Break off what the target or the source does for us."""
        self._shapes.row_filter.cancel()
        self._sink.cancel()

    def close(self) -> None:
        """Disconnect from both."""
        self._shapes.row_filter.close()
        self._sink.close()


class UnshapedRanges:
    """Implements ports.RangeLoader over another one, for tables that have no shape of their own."""

    def __init__(self, loader: RangeLoader, shapes: Mapping[TableName, Shape]) -> None:
        self._shapes = shapes
        self._takes = loader.takes
        self.resumes = loader.resumes
        self.begin = loader.begin
        self.finish = loader.finish
        self.forget = loader.forget
        self.rest = loader.rest

    def takes(self, table: CopyTable) -> bool:
        """Return whether the table is as it is on the source, and can be cut on the target."""
        return table.table not in self._shapes and self._takes(table)


def _transformed(cut: RowCut, blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        if rows := [made for row in parse(block) if (made := cut.row(row)) is not None]:
            yield format_rows(rows)
