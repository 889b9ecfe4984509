"""What streamer.toml says about tables without a usable key: `key`, and `fullcopy` with `fullcopy_every`.

What can be told from the file alone is checked here; whether columns exist and are NOT NULL is not. The trap: whoever reads changes
of a table that is copied whole would be sent all of its rows again and again, so such a table may not be handed on.

docs/tables-without-keys.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from streamer import periods
from streamer.conflict_config import TableSettings
from streamer.model import TableName
from streamer.shape_config import table_name

SEVERAL_SOURCES = "is for syncs with one source: "


class CopiedSync(Protocol):
    """What is asked of a sync."""

    @property
    def sources(self) -> Sequence[str]:
        """Nodes whose changes are captured."""

    @property
    def targets(self) -> Sequence[str]:
        """Nodes that only receive."""

    def captures(self, table: TableName) -> bool:
        """Whether changes of the table are read."""


def read_period(period: str) -> str:
    """Return a `fullcopy_every` as it stands in the file. Raises ValueError."""
    length = periods.seconds(period)
    if length is None or not periods.is_sensible(length):
        raise ValueError(
            f'must be "NUMBER UNIT" with a unit of s, m, h or d, like "1h", at least 1s and at most {periods.LONGEST // 86400}d'
        )
    return period


def problems(tables: Mapping[str, TableSettings], *, several_sources: bool) -> Iterator[tuple[list[str], str]]:
    """Yield what makes no sense in the settings of a sync's tables: the key below the sync, and why."""
    for name, settings in tables.items():
        if settings.key is not None and several_sources:
            yield ["table", name, "key"], f"{SEVERAL_SOURCES}conflicts are noticed by keys that the databases keep; add one there"
        if settings.fullcopy and several_sources:
            yield ["table", name, "fullcopy"], f"{SEVERAL_SOURCES}a copy of one would take away the rows of the others"
        if settings.fullcopy and settings.key is not None:
            yield ["table", name, "key"], "makes no sense with fullcopy: nothing addresses single rows; remove one of them"


def refusal(sync: CopiedSync, table: TableName, jsonl: Sequence[str], syncs: Mapping[str, CopiedSync]) -> str:
    """Return why the table cannot be copied whole to a sync's targets, of which `jsonl` are files of events; empty if it can."""
    if len(sync.sources) > 1:
        return "with several sources a copy of one would take away the rows of the others"
    for node in sync.targets:
        if node in jsonl:
            return f'target "{node}" is a file of events, whose rows nobody can replace; give it a sync of its own, with exclude'
        for name, other in syncs.items():
            if node in other.sources and other.captures(table):
                return f'target "{node}" hands the table on by sync "{name}", which would send all rows again with every copy'
    return ""


def explicit(tables: Mapping[str, TableSettings]) -> Iterator[tuple[str, TableName]]:
    """Give the tables that are to be copied whole: as they stand in the file, and by name."""
    for name, settings in tables.items():
        if settings.fullcopy:
            yield name, table_name(name)
