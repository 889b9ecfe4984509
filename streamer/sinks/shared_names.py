"""Names that differ in PostgreSQL and are one in another engine: they are refused before anything is made or written. Pure.

https://dev.mysql.com/doc/refman/8.4/en/identifier-case-sensitivity.html, https://www.sqlite.org/lang_keywords.html
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from streamer.errors import SchemaError
from streamer.model import ColumnDefinition, TableDefinition, TableName


def refuse_tables(tables: Iterable[TableName], engine: str, place: Callable[[TableName], Hashable]) -> None:
    """Raise SchemaError if two tables would share a name; `place` is what the engine tells tables apart by."""
    taken: dict[Hashable, TableName] = {}
    for table in tables:
        if (other := taken.setdefault(place(table), table)) != table:
            raise SchemaError(
                f'tables "{other}" and "{table}" would share a name in {engine}',
                "exclude one of them, or rename one for this target (docs/shaping.md)",
            )


def travelling(definition: TableDefinition, engine: str, fold: Callable[[str], str]) -> Sequence[ColumnDefinition]:
    """Return the columns that the engine's table gets: all but generated ones, whose values do not travel.

    Raises SchemaError if there is none, or if two of them would share a name; `fold` is what the engine tells them apart by.
    """
    columns = [c for c in definition.columns if not c.generated]
    if not columns:
        raise SchemaError(
            f'table "{definition.table}" has no column whose values travel, and {engine} has no tables without columns',
            "put it into exclude",
        )
    taken: dict[str, str] = {}
    for column in columns:
        if (other := taken.setdefault(fold(column.name), column.name)) != column.name:
            raise SchemaError(
                f'columns "{other}" and "{column.name}" of table "{definition.table}" would share a name in {engine}',
                "rename one of them for this target (docs/shaping.md), or exclude the table",
            )
    return columns
