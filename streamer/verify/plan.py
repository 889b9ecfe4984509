"""The tables of an edge as the source says them: what travels of each, and by what its rows are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from streamer.capture.catalog import SourceTable, read_tables
from streamer.capture.keys import delta_key, on_targets
from streamer.config import Config
from streamer.model import ColumnDefinition, EdgeName, TableName
from streamer.session import Connection
from streamer.shape_config import Shape
from streamer.shaping import RowCut, travelling
from streamer.sinks.shaped import load_functions
from streamer.verify.parts import Part

BUCKET_ROWS: Final = 5_000
BUCKETS: Final = (64, 65_536)
"""How many buckets at least and at most a table has that is read as a whole."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the source says about one table."""

    table: SourceTable
    shape: Shape | None
    #: what travels, and the key, by the source's names
    columns: tuple[ColumnDefinition, ...]
    key: tuple[str, ...]
    #: whether an index of the source leads with the key
    indexed: bool
    cut: RowCut | None

    @property
    def where(self) -> str:
        """The condition that rows must fulfil to travel; empty if there is none."""
        return "" if self.shape is None else self.shape.where

    @property
    def target(self) -> TableName:
        """The table's name on the target."""
        return self.table.table if self.shape is None else self.shape.target

    def called(self, column: str) -> str:
        """What a column is called on the target."""
        return column if self.shape is None else self.shape.column(column)

    @property
    def names(self) -> tuple[str, ...]:
        """What the columns are called on the target."""
        return tuple(self.called(c.name) for c in self.columns)

    @property
    def places(self) -> list[int]:
        """Where in `columns` the key is."""
        return [[c.name for c in self.columns].index(name) for name in self.key]

    @property
    def first(self) -> ColumnDefinition | None:
        """The column that ranges are cut by, if the source can."""
        if not self.indexed or self.table.partitioned or self.cut is not None:
            return None
        return self.columns[self.places[0]]

    @property
    def whole(self) -> Part:
        """The table as one part."""
        low, high = BUCKETS
        return Part(buckets=min(max(self.table.rows // BUCKET_ROWS, low), high))


def find(config: Config, edge: EdgeName, connection: Connection, selects: Callable[[TableName], bool]) -> Iterator[Plan]:
    """Give the tables of an edge that `selects` chooses. Raises ConfigError, SchemaError."""
    sync = config.syncs[edge.sync]
    shapes = sync.shapes_for(edge.target)
    functions = load_functions(shapes.values())
    found = read_tables(connection, lambda table: sync.selects(table) and selects(table))
    for table, there in zip(found, on_targets(found, sync.key_for), strict=True):
        key = delta_key(there, ())
        shape = shapes.get(table.table)
        names = [c.name for c in table.travelling]
        chosen = names if shape is None else travelling(shape, names, key)
        function = functions[shape.transform] if shape is not None and shape.transform else None
        cut = RowCut(shape, names, chosen, key, function) if shape is not None and function is not None else None
        columns = tuple(c for c in table.travelling if c.name in chosen)
        indexed = bool(key) and key in (table.definition.primary_key, *table.definition.unique_keys)
        yield Plan(table, shape, columns, key, indexed, cut)
